"""Cleanup deletes expired files and orphaned contents, and nothing else."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from api.batches.store import BatchStore
from api.files.blobs import LocalBlobs
from api.files.cleanup import ORPHAN_S, FileCleanup
from api.files.store import FileStore, Purpose, StoredFile
from shared.domain.errors import FileInUse
from shared.domain.owner import Owner
from tests.support.interrupt import interrupt_at

CHAT = "/v1/chat/completions"


@pytest.fixture
def files(database: AsyncEngine) -> FileStore:
    return FileStore(database)


@pytest.fixture
def blobs(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path)


@pytest.fixture
def cleanup(files: FileStore, blobs: LocalBlobs) -> FileCleanup:
    return FileCleanup(files, blobs)


async def upload(files: FileStore, blobs: LocalBlobs, owner: Owner, retention_s: float | None = None) -> StoredFile:
    file_id = files.new_id()
    async with blobs.writing(file_id) as blob:
        await blob.write(b"x")
    return await files.insert(file_id, owner, Purpose.BATCH, "a", 1, retention_s)


async def expire(database: AsyncEngine, file: StoredFile) -> None:
    async with database.connect() as connection:
        await connection.execute(text("UPDATE files SET expires_at = now() WHERE id = :id"), {"id": file.id})


async def test_an_expired_file_is_not_found_even_before_cleanup(
    files: FileStore, blobs: LocalBlobs, cleanup: FileCleanup, database: AsyncEngine, owner: Owner, tmp_path: Path
) -> None:
    retained, expiring = await upload(files, blobs, owner), await upload(files, blobs, owner, 3600)
    assert expiring.expires_at is not None
    assert (expiring.expires_at - expiring.created_at).total_seconds() == 3600
    assert await cleanup.expire() == 0
    await expire(database, expiring)
    assert await files.get(expiring.id, owner.project_id) is None
    assert [file.id for file in await files.page(owner.project_id, purpose=None, limit=9, after=None)] == [retained.id]
    assert await BatchStore(database).insert(owner, CHAT, expiring.id, "24h", 60, None) is None
    assert await cleanup.expire() == 1
    assert os.listdir(tmp_path) == [retained.id]


async def test_the_input_of_an_unfinished_batch_is_not_deleted(
    files: FileStore, blobs: LocalBlobs, cleanup: FileCleanup, database: AsyncEngine, owner: Owner, tmp_path: Path
) -> None:
    file = await upload(files, blobs, owner, 3600)
    batches = BatchStore(database)
    batch = await batches.insert(owner, CHAT, file.id, "24h", 60, None)
    assert batch is not None
    with pytest.raises(FileInUse):
        await files.delete(file.id, owner.project_id)
    await expire(database, file)
    assert await cleanup.expire() == 0
    assert os.listdir(tmp_path) == [file.id]
    assert await batches.fail(batch, [])
    assert await cleanup.expire() == 1
    assert os.listdir(tmp_path) == []


async def test_only_old_orphans_of_this_region_are_deleted(
    files: FileStore, blobs: LocalBlobs, cleanup: FileCleanup, database: AsyncEngine, owner: Owner, tmp_path: Path
) -> None:
    """Orphans result from an upload that died before its row was inserted, or a deletion after its row was deleted.

    Regions may share a bucket; each deletes its own orphans."""
    file, orphan, young = await upload(files, blobs, owner), files.new_id(), files.new_id()
    elsewhere = FileStore(database, "eu").new_id()
    for name in (orphan, young, "not-ours", elsewhere):
        (tmp_path / name).write_bytes(b"x")
    for name in (orphan, file.id, "not-ours", elsewhere):
        os.utime(tmp_path / name, (0, 0))
    assert await cleanup.delete_orphans(ORPHAN_S) == 1
    assert set(os.listdir(tmp_path)) == {file.id, young, "not-ours", elsewhere}


async def test_cleanup_can_be_interrupted_anywhere(
    files: FileStore, blobs: LocalBlobs, cleanup: FileCleanup, database: AsyncEngine, owner: Owner, tmp_path: Path
) -> None:
    at = 0
    while True:
        at += 1
        file = await upload(files, blobs, owner, 3600)
        await expire(database, file)
        died = await interrupt_at(cleanup.expire(), at)
        await cleanup.expire()
        for name in os.listdir(tmp_path):
            os.utime(tmp_path / name, (0, 0))
        await cleanup.delete_orphans(ORPHAN_S)
        assert os.listdir(tmp_path) == []
        if not died:
            break
    assert at > 2


async def test_concurrent_cleanups_delete_each_file_once(
    files: FileStore, blobs: LocalBlobs, database: AsyncEngine, owner: Owner, tmp_path: Path
) -> None:
    for _ in range(20):
        await expire(database, await upload(files, blobs, owner))
    counts = await asyncio.gather(*[FileCleanup(files, blobs).expire() for _ in range(4)])
    assert sum(counts) == 20
    assert os.listdir(tmp_path) == []
