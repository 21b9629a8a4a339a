"""Blobs of the local directory: whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shared.blobs import CHUNK, BlobMissing, BlobsUnavailable, LocalBlobs


async def content(blobs: LocalBlobs, name: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(name, offset)])


async def test_a_blob_is_read_back_from_any_offset(tmp_path: Path) -> None:
    blobs, data = LocalBlobs(tmp_path / "new" / "folder"), os.urandom(2 * CHUNK + 5)
    async with blobs.writing("a") as blob:
        await blob.write(data[:7])
        await blob.write(data[7:])
    assert await content(blobs, "a") == data
    assert await content(blobs, "a", CHUNK + 3) == data[CHUNK + 3 :]
    assert await content(blobs, "a", len(data)) == b""
    assert (tmp_path / "new" / "folder" / "a").stat().st_mode & 0o077 == 0


async def test_what_is_not_finished_is_not_there(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)

    async def write_half() -> None:
        async with blobs.writing("a") as blob:
            await blob.write(b"half")
            with pytest.raises(BlobMissing):
                await content(blobs, "a")
            raise ValueError("midway")

    with pytest.raises(ValueError, match="midway"):
        await write_half()
    assert os.listdir(tmp_path) == []


async def test_written_again_it_is_the_new_one(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    for data in (b"one", b"two"):
        async with blobs.writing("a") as blob:
            await blob.write(data)
    assert await content(blobs, "a") == b"two"


async def test_a_deleted_blob_is_gone(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    async with blobs.writing("a"):
        pass
    await blobs.delete("a")
    await blobs.delete("a")
    with pytest.raises(BlobMissing):
        await content(blobs, "a")


async def test_what_a_dead_writer_left_is_tidied_away(tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    async with blobs.writing("whole"):
        pass
    async with blobs.writing("b"):
        left = next(tmp_path / name for name in os.listdir(tmp_path) if name != "whole")
        copy = tmp_path / f"{left.name}-of-a-dead-writer"
        copy.write_bytes(b"half")
        for path in (copy, tmp_path / "whole"):
            os.utime(path, (0, 0))
        await blobs.tidy(3600)
        assert not copy.exists()
        assert left.exists()
    assert set(os.listdir(tmp_path)) == {"whole", "b"}


async def test_a_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(BlobsUnavailable):
        async with LocalBlobs(tmp_path / "file").writing("a"):
            pass
