"""SQL about files: their metadata. Their contents are blobs (`api.files.blobs`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Row,
    Text,
    bindparam,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.errors import FileInUse
from shared.domain.ids import is_id, new_id, region_of
from shared.domain.owner import Owner
from shared.postgres.engine import transaction
from shared.postgres.prepared import Prepared
from shared.postgres.store import Store, readable, seconds
from shared.postgres.tables import BatchRow, FileRow

FILE_ID_PREFIX = "file-"


class Purpose(StrEnum):
    """The purpose of a file, as in OpenAI's API."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's metadata. `bytes` is its size."""

    id: str
    project_id: int
    key_id: int
    purpose: Purpose
    filename: str
    bytes: int
    created_at: datetime
    expires_at: datetime | None


_COLUMNS: tuple[Any, ...] = (
    FileRow.id,
    FileRow.project_id,
    FileRow.key_id,
    FileRow.purpose,
    FileRow.filename,
    FileRow.bytes,
    FileRow.created_at,
    FileRow.expires_at,
)
# Maximum number of files deleted by one statement.
EXPIRE_LIMIT = 100


def is_file_id(text: str) -> bool:
    """Whether a text is a well-formed file id."""
    return is_id(FILE_ID_PREFIX, text)


class FileStore(Store):
    """Files in PostgreSQL."""

    def new_id(self) -> str:
        """Generate an id for a new file."""
        return new_id(FILE_ID_PREFIX, self._region)

    async def insert(
        self, file_id: str, owner: Owner, purpose: Purpose, filename: str, size: int, retention_s: float | None = None
    ) -> StoredFile:
        """Insert a file whose blob is complete, to be retained for `retention_s` seconds; None: unlimited."""
        async with self._engine.connect() as connection:
            return await insert_file(connection, file_id, owner, purpose, filename, size, retention_s)

    async def get(self, file_id: str, project_id: int) -> StoredFile | None:
        """Return a file of a project; None if there is none."""
        statement = select(*_COLUMNS).where(FileRow.id == file_id, FileRow.project_id == project_id, not_expired())
        return await self._one(statement, _file)

    async def names(self, project_id: int, file_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of those of these files that exist and that the project owns, by id."""
        ids = FileRow.id == func.any(bindparam("ids", list(file_ids), type_=ARRAY(Text)))
        statement = select(FileRow.id, FileRow.filename).where(ids, FileRow.project_id == project_id, not_expired())
        async with self._engine.connect() as connection:
            return {row.id: row.filename for row in await connection.execute(statement)}

    async def page(
        self, project_id: int, *, purpose: str | None, limit: int, after: str | None, ascending: bool = False
    ) -> list[StoredFile]:
        """Return a project's files after `after`, newest first unless `ascending`."""
        statement = select(*_COLUMNS).where(FileRow.project_id == project_id, not_expired())
        if purpose is not None:
            statement = statement.where(FileRow.purpose == purpose)
        return await self._page(statement, FileRow.id, _file, limit=limit, after=after, ascending=ascending)

    async def delete(self, file_id: str, project_id: int) -> bool:
        """Delete a file of a project; the caller then deletes its blob. Returns False if there is no such file.

        Raises:
            FileInUse: the file is the input of an unfinished batch.
        """
        async with transaction(self._engine) as connection:
            # Serializes with the creation of batches, which locks the file: one of the two sees the other's change.
            found = select(FileRow.id).where(FileRow.id == file_id, FileRow.project_id == project_id).with_for_update()
            if (await connection.execute(found)).first() is None:
                return False
            if (await connection.execute(select(_in_use(file_id)))).scalar_one():
                raise FileInUse
            await connection.execute(delete(FileRow).where(FileRow.id == file_id))
        return True

    async def expire(self) -> list[str]:
        """Delete up to `EXPIRE_LIMIT` expired files, except the input of unfinished batches. Returns their ids.

        The caller then deletes their blobs. No batch can be created from an expired file in the meantime.
        """
        return [row.id for row in await _EXPIRE.run(self._engine, {})]

    async def orphans(self, names: Sequence[str]) -> list[str]:
        """Return the file ids among these names that this region created and that have no row."""
        names = [name for name in names if is_file_id(name) and region_of(FILE_ID_PREFIX, name) == self._region]
        statement = select(FileRow.id).where(FileRow.id == func.any(bindparam("names", list(names), type_=ARRAY(Text))))
        async with self._engine.connect() as connection:
            known = set((await connection.execute(statement)).scalars())
        return [name for name in names if name not in known]


def not_expired() -> ColumnElement[bool]:
    """Condition: the file has not expired."""
    return or_(FileRow.expires_at.is_(None), FileRow.expires_at > func.clock_timestamp())


def _in_use(file_id: Any) -> ColumnElement[bool]:
    """Condition: the file is the input of an unfinished batch."""
    return exists().where(BatchRow.input_file_id == file_id, BatchRow.ended_at.is_(None))


async def insert_file(
    connection: AsyncConnection,
    file_id: str,
    owner: Owner,
    purpose: Purpose,
    filename: str,
    size: int,
    retention_s: float | None,
) -> StoredFile:
    """Insert a file in the caller's transaction."""
    values: dict[Any, Any] = {
        FileRow.id: file_id,
        FileRow.project_id: owner.project_id,
        FileRow.key_id: owner.key_id,
        FileRow.purpose: literal(purpose.value, Text),
        FileRow.filename: filename,
        FileRow.bytes: size,
    }
    if retention_s is not None:
        values[FileRow.expires_at] = func.now() + seconds(retention_s)
    row = (await connection.execute(insert(FileRow).values(values).returning(*_COLUMNS))).one()
    return _file(row)


def _file(row: Row[Any]) -> StoredFile:
    with readable("file", row.id):
        return StoredFile(
            id=row.id,
            project_id=row.project_id,
            key_id=row.key_id,
            purpose=Purpose(row.purpose),
            filename=row.filename,
            bytes=row.bytes,
            created_at=row.created_at,
            expires_at=row.expires_at,
        )


_EXPIRE = Prepared(
    delete(FileRow)
    .where(
        FileRow.id.in_(
            select(FileRow.id)
            .where(FileRow.expires_at <= func.clock_timestamp(), ~_in_use(FileRow.id))
            .limit(literal_column(str(EXPIRE_LIMIT)))
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
    )
    .returning(FileRow.id)
)
