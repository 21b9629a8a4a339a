"""What operators do with keys and projects."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from api.admin.keys.schemas import ApiKeyCreate, ApiKeyRotate, ApiKeyUpdate, ProjectCreate, ProjectUpdate
from api.http.pagination import Page, fetch_page, number_after
from api.keys.principal import Principal, Scope
from api.keys.store import ApiKey, ApiKeyStore, Project, ProjectExists, generate_key, parse_id
from shared.domain.answer_options import NO_KEY_OPTIONS
from shared.domain.errors import Conflict, NotFound
from shared.domain.log_level import LogLevel, require_log_key

logger = logging.getLogger(__name__)


class KeyService:
    """Creates, changes, rotates, revokes and lists keys; creates, changes and lists projects."""

    def __init__(self, store: ApiKeyStore, *, has_log_key: bool = False) -> None:
        """`has_log_key`: whether the request log can keep bodies (HEADRACE_LOG_KEY)."""
        self._store = store
        self._has_log_key = has_log_key

    async def page(self, *, limit: int, after: str | None, project: str | None) -> Page[ApiKey]:
        """Return a page of keys, newest first.

        Raises:
            InvalidRequest: `after` is not the id of a key.
        """
        after_id = number_after(after, "key", parse_id)
        return await fetch_page(limit, lambda count: self._store.page(limit=count, after=after_id, project=project))

    async def create(self, principal: Principal, body: ApiKeyCreate) -> tuple[ApiKey, str]:
        """Create a key; return it, and the key itself.

        Raises:
            Conflict: no project is given, and there is one with the name of the key.
            InvalidRequest: as `change_project`.
        """
        options = NO_KEY_OPTIONS if body.options is None else body.options.options()
        self._require_log_key(options.log_level)
        secret = generate_key()
        try:
            created = await self._store.create(
                body.name,
                secret,
                project=body.project,
                # As on the command line: without a project, the key must not gain access to another key's work.
                new_project=body.project is None,
                scopes=body.scopes,
                expires_in_s=body.expires_in_s,
                priority_floor=body.priority_floor,
                options=options,
                generated=True,
                by=principal.key_id,
            )
        except ProjectExists:
            raise Conflict(
                f"project: the project {body.name!r} exists; name it to create another of its keys, or choose another"
                " name for the key."
            ) from None
        assert created is not None  # a generated key is new
        logger.warning("key=%s created by key_%d", created, principal.key_id)
        return await self._key(created), secret

    async def rotate(self, principal: Principal, key_id: str, body: ApiKeyRotate) -> tuple[ApiKey, str]:
        """Create the successor of a key; return it, and the key itself.

        Raises:
            NotFound, Conflict: as `revoke`.
        """
        old, secret = await self._key(key_id), generate_key()
        created = await self._store.rotate(
            _number(old.id), secret, overlap_s=body.overlap_s, expires_in_s=body.expires_in_s, by=principal.key_id
        )
        if created is None:
            raise Conflict(f"key_id: the key {key_id} is not valid any more.")
        logger.warning("key=%s replaced by %s, by key_%d", key_id, created, principal.key_id)
        return await self._key(created), secret

    async def change(self, principal: Principal, key_id: str, body: ApiKeyUpdate) -> ApiKey:
        """Change a key; return it. Requests with the key follow within `HEADRACE_KEY_CACHE_S` seconds.

        Raises:
            NotFound: there is no such key.
            Conflict: the key was revoked or has expired, or would take the admin scope from the request's own key.
            InvalidRequest: the changed options contradict each other, or as `change_project`.
        """
        key, changes = await self._key(key_id), body.changes()
        if body.options is not None:
            self._require_log_key(body.options.log_level)
        if _number(key.id) == principal.key_id and changes.scopes is not None and Scope.ADMIN not in changes.scopes:
            raise Conflict("scopes: a key cannot take the admin scope from itself; use another one.")
        if not await self._store.change(_number(key.id), changes, by=principal.key_id):
            raise Conflict(f"key_id: the key {key_id} is not valid any more.")
        if names := changes.names():
            logger.warning("key=%s changed by key_%d: %s", key_id, principal.key_id, ", ".join(names))
        return await self._key(key_id)

    async def revoke(self, principal: Principal, key_id: str) -> ApiKey:
        """Revoke a key; return it. It is refused within `HEADRACE_KEY_CACHE_S` seconds.

        Raises:
            NotFound: there is no such key.
            Conflict: the key was revoked or has expired, or is the one that the request is made with.
        """
        key = await self._key(key_id)
        if _number(key.id) == principal.key_id:
            raise Conflict("key_id: a key cannot revoke itself; use another one.")
        if not await self._store.revoke(_number(key.id), by=principal.key_id):
            raise Conflict(f"key_id: the key {key_id} is not valid any more.")
        logger.warning("key=%s revoked by key_%d", key_id, principal.key_id)
        return await self._key(key_id)

    async def projects(self, *, limit: int, after: str | None) -> Page[Project]:
        """Return a page of projects, by name."""

        async def fetch(count: int) -> Sequence[Project]:
            return await self._store.projects(limit=count, after=after)

        return await fetch_page(limit, fetch)

    async def create_project(self, principal: Principal, body: ProjectCreate) -> Project:
        """Create a project.

        Raises:
            Conflict: a project with this name exists.
            InvalidRequest: as `change_project`.
        """
        options = body.project_options()
        self._require_log_key(options.log_level)
        try:
            project = await self._store.create_project(body.name, body.tier, options, by=principal.key_id)
        except ProjectExists:
            raise Conflict(f"name: the project {body.name!r} exists.") from None
        logger.warning("project=%s created by key_%d", project.name, principal.key_id)
        return project

    async def project(self, name: str) -> Project:
        """Return a project.

        Raises:
            NotFound: there is no project with this name.
        """
        project = await self._store.project(name)
        if project is None:
            raise NotFound(f"There is no project {name[:64]!r}.", param="name", code="project_not_found")
        return project

    async def change_project(self, principal: Principal, name: str, body: ProjectUpdate) -> Project:
        """Change a project; return it.

        Raises:
            NotFound: as `project`.
            InvalidRequest: the request log is to keep bodies, and there is no key to encrypt them with.
        """
        changes = body.changes()
        if body.options is not None:
            self._require_log_key(body.options.log_level)
        names = changes.names()
        if names and await self._store.change_project(name, changes, by=principal.key_id):
            logger.warning("project=%s changed by key_%d: %s", name, principal.key_id, ", ".join(names))
        return await self.project(name)

    def _require_log_key(self, level: LogLevel | None) -> None:
        require_log_key(level, "options.log_level", has_key=self._has_log_key)

    async def _key(self, key_id: str) -> ApiKey:
        number = parse_id(key_id)
        key = await self._store.get(number) if number is not None else None
        if key is None:
            raise NotFound(f"There is no key `{key_id[:64]}`.", param="key_id", code="api_key_not_found")
        return key


def _number(key_id: str) -> int:
    number = parse_id(key_id)
    assert number is not None
    return number
