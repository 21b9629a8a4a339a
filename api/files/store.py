"""SQL about files: what they are called and whose they are. Their bytes are blobs (`api.files.blobs`)."""

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
    or_,
    select,
)
from sqlalchemy.ext.asyncio import AsyncConnection

from shared.domain.errors import FileInUse
from shared.domain.ids import is_id, new_id, region_of
from shared.domain.owner import Owner
from shared.postgres.engine import transaction
from shared.postgres.store import Store, page_by_id, seconds
from shared.postgres.tables import BatchRow, FileRow

FILE_ID_PREFIX = "file-"


class Purpose(StrEnum):
    """What a file is for."""

    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file. `bytes` is its size."""

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
# Some files are forgotten at a time.
EXPIRED_AT_ONCE = 100


def is_file_id(text: str) -> bool:
    """Whether a file could have this id."""
    return is_id(FILE_ID_PREFIX, text)


class FileStore(Store):
    """Files in PostgreSQL."""

    def new_id(self) -> str:
        """An id for a file that is to be stored."""
        return new_id(FILE_ID_PREFIX, self._region)

    async def insert(
        self, file_id: str, owner: Owner, purpose: Purpose, filename: str, size: int, keep_s: float | None = None
    ) -> StoredFile:
        """Make a file of a blob that is whole, and keep it for so long, or for ever."""
        async with self._engine.connect() as connection:
            return await insert_file(connection, file_id, owner, purpose, filename, size, keep_s)

    async def get(self, file_id: str, project_id: int) -> StoredFile | None:
        """A file of a project."""
        statement = select(*_COLUMNS).where(FileRow.id == file_id, FileRow.project_id == project_id, kept())
        return await self._one(statement, _file)

    async def page(
        self, project_id: int, *, purpose: str | None, limit: int, after: str | None, ascending: bool = False
    ) -> list[StoredFile]:
        """A project's files, newest first unless `ascending`, from behind `after`."""
        statement = select(*_COLUMNS).where(FileRow.project_id == project_id, kept())
        if purpose is not None:
            statement = statement.where(FileRow.purpose == purpose)
        page = page_by_id(statement, FileRow.id, limit=limit, after=after, ascending=ascending)
        return await self._all(page, _file)

    async def delete(self, file_id: str, project_id: int) -> bool:
        """Forget a file of a project; its blob is the caller's to delete afterwards. False: there is none.

        Raises:
            FileInUse: a batch that has not ended reads it.
        """
        async with transaction(self._engine) as connection:
            # Who makes a batch of this file waits for this lock, or this waits for it and then sees the batch.
            found = select(FileRow.id).where(FileRow.id == file_id, FileRow.project_id == project_id).with_for_update()
            if (await connection.execute(found)).first() is None:
                return False
            if (await connection.execute(select(_in_use(file_id)))).scalar_one():
                raise FileInUse
            await connection.execute(delete(FileRow).where(FileRow.id == file_id))
        return True

    async def expire(self) -> list[str]:
        """Forget some files whose time is up, but for those that an unfinished batch reads; returns their ids.

        Their blobs are the caller's to delete afterwards. No batch can be made of them meanwhile: they are `kept` no
        more.
        """
        due = (
            select(FileRow.id)
            .where(FileRow.expires_at <= func.clock_timestamp(), ~_in_use(FileRow.id))
            .limit(EXPIRED_AT_ONCE)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        async with self._engine.connect() as connection:
            found = await connection.execute(delete(FileRow).where(FileRow.id.in_(due)).returning(FileRow.id))
            return list(found.scalars())

    async def unknown(self, names: Sequence[str]) -> list[str]:
        """Those of these ids that were made here and are no file's. A bucket may be shared with other regions."""
        names = [name for name in names if is_file_id(name) and region_of(FILE_ID_PREFIX, name) == self._region]
        statement = select(FileRow.id).where(FileRow.id == func.any(bindparam("names", list(names), type_=ARRAY(Text))))
        async with self._engine.connect() as connection:
            known = set((await connection.execute(statement)).scalars())
        return [name for name in names if name not in known]


def kept() -> ColumnElement[bool]:
    """A file's time is not up."""
    return or_(FileRow.expires_at.is_(None), FileRow.expires_at > func.clock_timestamp())


def _in_use(file_id: Any) -> ColumnElement[bool]:
    """An unfinished batch reads a file."""
    return exists().where(BatchRow.input_file_id == file_id, BatchRow.ended_at.is_(None))


async def insert_file(
    connection: AsyncConnection,
    file_id: str,
    owner: Owner,
    purpose: Purpose,
    filename: str,
    size: int,
    keep_s: float | None,
) -> StoredFile:
    """Make a file in a transaction of the caller's."""
    values: dict[Any, Any] = {
        FileRow.id: file_id,
        FileRow.project_id: owner.project_id,
        FileRow.key_id: owner.key_id,
        FileRow.purpose: literal(purpose.value, Text),
        FileRow.filename: filename,
        FileRow.bytes: size,
    }
    if keep_s is not None:
        values[FileRow.expires_at] = func.now() + seconds(keep_s)
    row = (await connection.execute(insert(FileRow).values(values).returning(*_COLUMNS))).one()
    return _file(row)


def _file(row: Row[Any]) -> StoredFile:
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
