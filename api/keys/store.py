"""SQL for API keys and projects. A key is shown once, when it is created; only its SHA-256 is stored."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Row, and_, exists, func, or_, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.keys.audited import (
    AUDITED,
    PROJECT,
    change_key,
    change_project,
    insert_project,
    locked_project,
    record_key,
)
from api.keys.changes import NEVER, UNCHANGED, KeyChanges, ProjectChanges
from api.keys.principal import Principal, Scope
from api.keys.projects import ProjectIds
from api.keys.stored_options import merge_stored, read_options, readable_options, to_stored
from api.keys.valid_keys import (
    FIND,
    PROJECT_OPTIONS,
    VALID_SCOPES,
    ValidKey,
    key_is_valid,
    read_valid_key,
    scopes_of,
)
from shared.domain.answer_options import NO_KEY_OPTIONS, KeyOptions
from shared.domain.errors import Conflict, UnreadableRow
from shared.domain.ids import number_of
from shared.domain.owner import Owner
from shared.domain.project_options import NO_PROJECT_OPTIONS, ProjectOptions
from shared.postgres.engine import transaction
from shared.postgres.group_commit import GroupCommit
from shared.postgres.store import seconds
from shared.postgres.tables import ApiKeyRow, ProjectRow


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as listed, without the key itself. `prefix` is empty if an operator chose the key."""

    id: str
    name: str
    prefix: str
    project: str
    scopes: tuple[Scope, ...]
    priority_floor: int
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None
    options: KeyOptions | None  # None: this version cannot read them
    tier: str | None

    def state(self, now: datetime) -> str:
        """`valid`, `expires …`, `expired …` or `revoked …`, with the time in UTC."""
        if self.revoked_at is not None:
            return f"revoked {self.revoked_at:%Y-%m-%d %H:%M}"
        if self.expires_at is None:
            return "valid"
        return f"{'expired' if self.expires_at <= now else 'expires'} {self.expires_at:%Y-%m-%d %H:%M}"


@dataclass(frozen=True, slots=True)
class Project:
    """A project. `keys`: the number of its keys that are neither revoked nor expired."""

    id: int
    name: str
    tier: str | None
    created_at: datetime
    keys: int = 0
    options: ProjectOptions = NO_PROJECT_OPTIONS


def generate_key() -> str:
    """Return `hr_`, a public prefix of 32 bits, `_`, and 256 random bits."""
    return f"hr_{secrets.token_hex(4)}_{secrets.token_urlsafe(32)}"


def digest(key: str) -> str:
    """The stored form of a key: a plain hash, which is enough for 256 random bits."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def _public_prefix(generated_key: str) -> str:
    """The part of a generated key that may be shown."""
    return "_".join(generated_key.split("_")[:2])


class ProjectExists(Conflict):
    """A project with this name exists."""


class ApiKeyStore(ProjectIds):
    """API keys and projects in PostgreSQL.

    Changes are recorded in the audit log as those of the key `by`; None: of the command line of the installation.
    """

    def __init__(self, engine: AsyncEngine) -> None:
        super().__init__(engine)
        self._lookups = GroupCommit(self._find)

    async def create(
        self,
        name: str,
        key: str,
        *,
        project: str | None = None,
        new_project: bool = False,
        scopes: Iterable[Scope] = (Scope.INFERENCE,),
        expires_in_s: float | None = None,
        priority_floor: int = 0,
        options: KeyOptions = NO_KEY_OPTIONS,
        generated: bool = False,
        by: int | None = None,
    ) -> str | None:
        """Store a key of a project (default: the project named like the key), which is created if it is missing.

        Returns the id of the new key; None if the key is already stored, which does not change it. `generated`: the key
        comes from `generate_key`, so that its prefix is public.

        Raises:
            ProjectExists: with `new_project`, a project with this name exists.
        """
        async with transaction(self._engine) as connection:
            known = select(exists().where(ApiKeyRow.sha256 == digest(key)))
            if (await connection.execute(known)).scalar_one():
                return None
            project_id = await _project_id(connection, project or name, must_be_new=new_project, by=by)
            values = {
                ApiKeyRow.name: name,
                ApiKeyRow.prefix: _public_prefix(key) if generated else "",
                ApiKeyRow.sha256: digest(key),
                ApiKeyRow.project_id: project_id,
                ApiKeyRow.scopes: sorted(scope.value for scope in scopes),
                ApiKeyRow.expires_at: None if expires_in_s is None else func.now() + seconds(expires_in_s),
                ApiKeyRow.priority_floor: priority_floor,
                ApiKeyRow.options: to_stored(options),
            }
            statement = insert(ApiKeyRow).values(values).on_conflict_do_nothing(index_elements=[ApiKeyRow.sha256])
            created = (await connection.execute(statement.returning(*AUDITED))).first()
            if created is None:
                return None
            await record_key(connection, by, "key.create", after=created)
            return format_id(created.id)

    async def add_scopes(self, key: str, scopes: Iterable[Scope], *, by: int | None = None) -> None:
        """Give a valid key these scopes in addition to its own."""
        async with transaction(self._engine) as connection:
            valid = and_(ApiKeyRow.sha256 == digest(key), key_is_valid())
            row = (await connection.execute(select(*AUDITED).where(valid).with_for_update())).first()
            if row is not None and (missing := {scope.value for scope in scopes}.difference(row.scopes)):
                values = {ApiKeyRow.scopes: sorted(missing.union(row.scopes))}
                await change_key(connection, by, row, values)

    async def rotate(
        self,
        key_id: int,
        key: str,
        *,
        overlap_s: float,
        expires_in_s: float | None = None,
        by: int | None = None,
    ) -> str | None:
        """Store a generated successor of a valid key; the old key expires after the overlap.

        The successor has the same name, project, scopes, priorities and options. Returns its id; None if the old key is
        not valid.
        """
        copied = (
            ApiKeyRow.name, ApiKeyRow.project_id, ApiKeyRow.scopes, ApiKeyRow.priority_floor, ApiKeyRow.options,
        )  # fmt: skip
        async with transaction(self._engine) as connection:
            old = select(*AUDITED).where(ApiKeyRow.id == key_id, key_is_valid()).with_for_update(key_share=True)
            row = (await connection.execute(old)).first()
            if row is None:
                return None
            values: dict[Any, Any] = {
                **{column: getattr(row, column.key) for column in copied},
                ApiKeyRow.prefix: _public_prefix(key),
                ApiKeyRow.sha256: digest(key),
                ApiKeyRow.expires_at: None if expires_in_s is None else func.now() + seconds(expires_in_s),
            }
            created = (await connection.execute(insert(ApiKeyRow).values(values).returning(*AUDITED))).one()
            ends = func.least(func.now() + seconds(overlap_s), ApiKeyRow.expires_at)
            await record_key(connection, by, "key.create", after=created, replaces=format_id(key_id))
            await change_key(connection, by, row, {ApiKeyRow.expires_at: ends}, action="key.rotate")
            return format_id(created.id)

    async def find(self, key: str) -> ValidKey | None:
        """Return the principal of a key that is neither revoked nor expired, else None. Records the key's use.

        The use is written at most once a minute per key, without waiting for another process that writes it. Concurrent
        lookups share a query, so that guessed keys do not cost a round trip each.

        Raises:
            UnreadableRow: this version cannot read the key's options.
        """
        found = await self._lookups(digest(key))
        if isinstance(found, UnreadableRow):
            raise found
        return found

    async def _find(self, digests: Sequence[str]) -> list[ValidKey | UnreadableRow | None]:
        rows = await FIND.run(self._engine, {"digests": list(digests)})
        found = {row.sha256: read_valid_key(row) for row in rows}
        return [found.get(sha256) for sha256 in digests]

    async def principal(self, owner: Owner) -> Principal:
        """Return the principal of work that was accepted earlier, whether or not its key is still valid.

        Raises:
            UnreadableRow: as `find`.
        """
        statement = (
            select(ApiKeyRow.options, ProjectRow.tier, PROJECT_OPTIONS)
            .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
            .where(ApiKeyRow.id == owner.key_id)
        )
        row = await self._first(statement)
        principal = Principal.of(owner)
        if row is None:
            return principal
        return replace(
            principal,
            options=read_options(owner.key_id, row.options),
            tier=row.tier,
            project_log_level=ProjectOptions.read(row.project_options).log_level,
        )

    async def valid_scopes(self, key_ids: Iterable[int]) -> dict[int, frozenset[Scope]]:
        """Return the scopes of those keys that are neither revoked nor expired."""
        rows = await VALID_SCOPES.run(self._engine, {"ids": list(key_ids)})
        return {row.id: frozenset(scopes_of(row)) for row in rows}

    async def all(self) -> Sequence[ApiKey]:
        """Return all keys, oldest first."""
        return await self._all(_listed(), _api_key)

    async def get(self, key_id: int) -> ApiKey | None:
        """Return a key, valid or not."""
        return await self._one(_listed().where(ApiKeyRow.id == key_id), _api_key)

    async def page(self, *, limit: int, after: int | None = None, project: str | None = None) -> list[ApiKey]:
        """Return one page of keys, newest first, of one project or of all."""
        statement = _listed().order_by(None).order_by(ApiKeyRow.id.desc()).limit(limit)
        if after is not None:
            statement = statement.where(ApiKeyRow.id < after)
        if project is not None:
            statement = statement.where(ProjectRow.name == project)
        return await self._all(statement, _api_key)

    async def project(self, name: str) -> Project | None:
        """Return a project."""
        return await self._one(_projects().where(ProjectRow.name == name), _project)

    async def projects(self, *, limit: int, after: str | None = None) -> list[Project]:
        """Return one page of projects, by name."""
        statement = _projects().order_by(ProjectRow.name)
        if after is not None:
            statement = statement.where(ProjectRow.name > after)
        return await self._all(statement.limit(limit), _project)

    async def create_project(
        self,
        name: str,
        tier: str | None = None,
        options: ProjectOptions = NO_PROJECT_OPTIONS,
        *,
        by: int | None = None,
    ) -> Project:
        """Create a project without keys.

        Raises:
            ProjectExists: a project with this name exists.
        """
        async with transaction(self._engine) as connection:
            created = await insert_project(connection, by, name, tier, options.stored())
        if created is None:
            raise ProjectExists
        return Project(created.id, created.name, created.tier, created.created_at, options=options)

    async def candidates(self, text: str) -> Sequence[ApiKey]:
        """Return the valid keys that have this text as their prefix or name, or that are this text."""
        either = or_(
            and_(ApiKeyRow.prefix == text, ApiKeyRow.prefix != ""),
            ApiKeyRow.name == text,
            ApiKeyRow.sha256 == digest(text),
        )
        return await self._all(_listed().where(either, key_is_valid()), _api_key)

    async def revoke(self, key_id: int, *, by: int | None = None) -> bool:
        """Revoke a key. False: there is no valid key with this id."""
        async with transaction(self._engine) as connection:
            valid = select(*AUDITED).where(ApiKeyRow.id == key_id, key_is_valid()).with_for_update(key_share=True)
            row = (await connection.execute(valid)).first()
            if row is not None:
                await change_key(connection, by, row, {ApiKeyRow.revoked_at: func.now()}, action="key.revoke")
            return row is not None

    async def change(self, key_id: int, changes: KeyChanges, *, by: int | None = None) -> bool:
        """Change a key. False: there is no valid key with this id.

        Concurrent changes wait for each other. What only a newer version knows is kept. Errors of `changes.options`
        propagate.

        Raises:
            UnreadableRow: as `find`.
        """
        async with transaction(self._engine) as connection:
            old = select(*AUDITED).where(ApiKeyRow.id == key_id, key_is_valid()).with_for_update(key_share=True)
            row = (await connection.execute(old)).first()
            if row is None:
                return False
            values: dict[Any, Any] = {}
            if changes.name is not None:
                values[ApiKeyRow.name] = changes.name
            if changes.scopes is not None:
                unknown = set(row.scopes).difference(Scope)
                values[ApiKeyRow.scopes] = sorted({*unknown, *(scope.value for scope in changes.scopes)})
            if changes.priority_floor is not None:
                values[ApiKeyRow.priority_floor] = changes.priority_floor
            if changes.expires_in_s is not None:
                ends = None if changes.expires_in_s == NEVER else func.now() + seconds(changes.expires_in_s)
                values[ApiKeyRow.expires_at] = ends
            if changes.options is not None:
                options = read_options(key_id, row.options)
                merged = merge_stored(row.options, to_stored(options), to_stored(changes.options(options)))
                values[ApiKeyRow.options] = merged
            if values:
                await change_key(connection, by, row, values)
            return True

    async def project_of(self, key_id: int) -> int | None:
        """The id of the project that a key belongs to, valid or not; None if there is no such key."""
        statement = select(ApiKeyRow.project_id).where(ApiKeyRow.id == key_id)
        return await self._one(statement, lambda row: int(row.project_id))

    async def change_project(self, name: str, changes: ProjectChanges, *, by: int | None = None) -> bool:
        """Change a project. False: there is no project with this name.

        Concurrent changes wait for each other. What only a newer version knows is kept. Errors of `changes.options`
        propagate.
        """
        async with transaction(self._engine) as connection:
            row = await locked_project(connection, name)
            if row is None:
                return False
            values: dict[Any, Any] = {}
            if changes.tier is not UNCHANGED:
                values[ProjectRow.tier] = changes.tier
            if changes.options is not None:
                old = ProjectOptions.read(row.options)
                values[ProjectRow.options] = merge_stored(row.options, old.stored(), changes.options(old).stored())
            if values:
                await change_project(connection, by, name, row, values)
            return True


def format_id(key_id: int) -> str:
    """The id of a key as operators see it. It reveals nothing of the key."""
    return f"key_{key_id}"


def parse_id(text: str) -> int | None:
    """The number of a key's id; None if the text is no such id."""
    return number_of("key_", text)


def _projects() -> Any:
    keys = select(func.count()).where(ApiKeyRow.project_id == ProjectRow.id, key_is_valid()).scalar_subquery()
    return select(*PROJECT, keys.label("keys"))


def _project(row: Row[Any]) -> Project:
    return Project(row.id, row.name, row.tier, row.created_at, row.keys, ProjectOptions.read(row.options))


def _listed() -> Any:
    return (
        select(
            ApiKeyRow.id,
            ApiKeyRow.name,
            ApiKeyRow.prefix,
            ProjectRow.name.label("project"),
            ApiKeyRow.scopes,
            ApiKeyRow.priority_floor,
            ApiKeyRow.created_at,
            ApiKeyRow.expires_at,
            ApiKeyRow.revoked_at,
            ApiKeyRow.last_used_at,
            ApiKeyRow.options,
            ProjectRow.tier,
        )
        .join(ProjectRow, ProjectRow.id == ApiKeyRow.project_id)
        .order_by(ApiKeyRow.id)
    )


def _api_key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        id=format_id(row.id),
        name=row.name,
        prefix=row.prefix,
        project=row.project,
        scopes=scopes_of(row),
        priority_floor=row.priority_floor,
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
        last_used_at=row.last_used_at,
        options=readable_options(row.id, row.options),
        tier=row.tier,
    )


async def _project_id(connection: AsyncConnection, name: str, *, must_be_new: bool, by: int | None) -> int:
    """Return the id of the project with this name, which is created if it is missing."""
    if (created := await insert_project(connection, by, name)) is not None:
        return int(created.id)
    if must_be_new:
        raise ProjectExists
    found = await connection.execute(select(ProjectRow.id).where(ProjectRow.name == name))
    return int(found.scalar_one())
