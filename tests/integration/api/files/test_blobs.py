"""Blobs in a directory and in S3."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from api.files.blobs import CHUNK, BlobMissing, Blobs, BlobsUnavailable, LocalBlobs
from api.files.s3_blobs import PART_BYTES, READ_BYTES, S3Blobs
from tests.support.ports import free_port
from tests.support.s3 import BUCKET, S3, running_s3


@pytest.fixture(scope="module")
def s3() -> Iterator[S3]:
    with running_s3() as s3:
        yield s3


@pytest.fixture
def in_s3(s3: S3, monkeypatch: pytest.MonkeyPatch) -> S3Blobs:
    """Blobs under a new prefix."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return S3Blobs(f"s3://{BUCKET}/{secrets.token_hex(4)}/files")


@pytest.fixture(params=["directory", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    if request.param == "directory":
        return LocalBlobs(tmp_path / "new" / "folder")
    s3_blobs: S3Blobs = request.getfixturevalue("in_s3")
    return s3_blobs


async def content(blobs: Blobs, name: str, offset: int = 0) -> bytes:
    return b"".join([chunk async for chunk in blobs.read(name, offset)])


async def names(blobs: Blobs) -> set[str]:
    return {name async for page in blobs.names(-60) for name in page}


async def write(blobs: Blobs, name: str, *pieces: bytes) -> None:
    async with blobs.writing(name) as blob:
        for piece in pieces:
            await blob.write(piece)


class TestBoth:
    """The contract of the interface."""

    async def test_a_blob_is_read_back_from_any_offset(self, blobs: Blobs) -> None:
        data = os.urandom(2 * CHUNK + 5)
        await write(blobs, "a", data[:7], data[7:])
        assert await content(blobs, "a") == data
        assert await content(blobs, "a", CHUNK + 3) == data[CHUNK + 3 :]
        assert await content(blobs, "a", len(data)) == b""

    async def test_a_blob_of_several_parts_is_read_back(self, blobs: Blobs) -> None:
        data = os.urandom(2 * PART_BYTES + READ_BYTES + 7)
        await write(blobs, "a", *[data[at : at + 100_000] for at in range(0, len(data), 100_000)])
        assert await content(blobs, "a") == data
        assert await content(blobs, "a", PART_BYTES - 1) == data[PART_BYTES - 1 :]

    async def test_an_empty_blob_exists(self, blobs: Blobs) -> None:
        await write(blobs, "a")
        assert await content(blobs, "a") == b""

    @pytest.mark.parametrize("size", [100, PART_BYTES + 1], ids=["small", "more than a part"])
    async def test_an_unfinished_blob_does_not_exist(self, blobs: Blobs, size: int) -> None:
        async def write_half() -> None:
            async with blobs.writing("a") as blob:
                await blob.write(b"x" * size)
                with pytest.raises(BlobMissing):
                    await content(blobs, "a")
                raise ValueError("midway")

        with pytest.raises(ValueError, match="midway"):
            await write_half()
        with pytest.raises(BlobMissing):
            await content(blobs, "a")
        assert await names(blobs) == set()

    async def test_a_cancelled_writer_leaves_nothing(self, blobs: Blobs) -> None:
        started = asyncio.Event()

        async def write_half() -> None:
            async with blobs.writing("a") as blob:
                await blob.write(b"x" * (PART_BYTES + 1))
                started.set()
                await asyncio.Event().wait()

        writing = asyncio.create_task(write_half())
        await asyncio.wait_for(started.wait(), 20)
        writing.cancel()
        await asyncio.wait([writing])
        assert writing.cancelled()
        assert await names(blobs) == set()

    async def test_a_second_write_replaces_the_blob(self, blobs: Blobs) -> None:
        for data in (b"one", b"two"):
            await write(blobs, "a", data)
        assert await content(blobs, "a") == b"two"

    async def test_a_deleted_blob_does_not_exist(self, blobs: Blobs) -> None:
        await write(blobs, "a")
        await blobs.delete("a")
        await blobs.delete("a")
        with pytest.raises(BlobMissing):
            await content(blobs, "a")

    async def test_a_store_without_blobs_has_no_names(self, blobs: Blobs) -> None:
        await blobs.delete_unfinished(3600)
        assert await names(blobs) == set()

    async def test_names_are_those_of_complete_blobs_of_the_given_age(self, blobs: Blobs) -> None:
        for name in ("a", "b"):
            await write(blobs, name, b"x")
        async with blobs.writing("c"):
            assert await names(blobs) == {"a", "b"}
        assert await names(blobs) == {"a", "b", "c"}
        assert [name async for page in blobs.names(3600) for name in page] == []


class TestDirectory:
    async def test_only_the_owner_has_access(self, tmp_path: Path) -> None:
        await write(LocalBlobs(tmp_path / "new"), "a")
        assert (tmp_path / "new" / "a").stat().st_mode & 0o077 == 0

    async def test_unfinished_blobs_of_dead_writers_are_deleted(self, tmp_path: Path) -> None:
        blobs = LocalBlobs(tmp_path)
        await write(blobs, "complete")
        async with blobs.writing("b"):
            unfinished = next(tmp_path / name for name in os.listdir(tmp_path) if name != "complete")
            copy = tmp_path / f"{unfinished.name}-of-a-dead-writer"
            copy.write_bytes(b"half")
            for path in (copy, tmp_path / "complete"):
                os.utime(path, (0, 0))
            await blobs.delete_unfinished(3600)
            assert not copy.exists()
            assert unfinished.exists()
        assert set(os.listdir(tmp_path)) == {"complete", "b"}

    async def test_an_unusable_directory_is_reported(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("in the way")
        with pytest.raises(BlobsUnavailable):
            await write(LocalBlobs(tmp_path / "file"), "a")


class TestS3:
    async def test_objects_have_the_prefix(self, in_s3: S3Blobs, s3: S3) -> None:
        before = set(s3.keys())
        await write(in_s3, "a", b"x")
        (key,) = set(s3.keys()) - before
        assert key.endswith("/files/a")

    async def test_the_parts_of_an_unfinished_blob_are_deleted(self, in_s3: S3Blobs, s3: S3) -> None:
        """S3 charges for the parts of incomplete uploads."""

        async def write_half() -> None:
            async with in_s3.writing("a") as blob:
                for _ in range(4):
                    await blob.write(os.urandom(PART_BYTES))
                assert s3.unfinished() != []
                raise ValueError("midway")

        with pytest.raises(ValueError, match="midway"):
            await write_half()
        assert s3.unfinished() == []

    async def test_an_unavailable_s3_is_reported(self, in_s3: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
        unavailable = S3Blobs(f"s3://{BUCKET}/x")
        with pytest.raises(BlobsUnavailable):
            await write(unavailable, "a", *[b"x" * PART_BYTES] * 4)
        with pytest.raises(BlobsUnavailable):
            await content(unavailable, "a")

    async def test_a_missing_bucket_is_reported(self, in_s3: S3Blobs) -> None:
        with pytest.raises(BlobsUnavailable):
            await write(S3Blobs("s3://no-such-bucket"), "a", b"x")
