"""Where files' bytes are kept. Written once, under a name, then only read: in a directory, or in S3.

What begins to be written exists only once it is whole.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from shared.domain.errors import HeadraceError, Unavailable

CHUNK = 128 * 1024
_UNFINISHED = ".unfinished-"


class BlobMissing(HeadraceError):
    """There is no blob of this name."""


class BlobsUnavailable(Unavailable):
    """The file store cannot be used right now; try again."""


class BlobWriter(Protocol):
    """A blob that is being written."""

    async def write(self, data: bytes) -> None:
        """Append. Raises `BlobsUnavailable`: the disk is full, or away."""


class Blobs(Protocol):
    """Blobs by name."""

    def writing(self, name: str) -> AbstractAsyncContextManager[BlobWriter]:
        """Write a blob. It is there, and on disk, once the block has ended; an error in the block leaves nothing."""

    def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes]:
        """A blob's bytes in chunks, from an offset on; close it. Raises `BlobMissing`."""

    async def delete(self, name: str) -> None:
        """Forget a blob; one that is not there is fine."""

    def names(self, older_than_s: float) -> AsyncIterator[list[str]]:
        """All whole blobs that were written so long ago, some at a time."""

    async def tidy(self, older_than_s: float) -> None:
        """Forget what nobody has written to for so long and was never finished: its writer has died."""


class LocalBlobs:
    """Blobs as files of one directory, which all API processes must share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[BlobWriter]:
        unfinished = self._folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
        # Not in a thread, which could go on after a cancel, and leave a file that nobody knows.
        file = self._create(unfinished)
        try:
            yield _LocalWriter(file)
            await asyncio.to_thread(self._publish, file, unfinished, self._folder / name)
        finally:
            # Nothing is left of it where it was not published. Without a wait, so that a cancel cannot prevent it.
            file.close()
            unfinished.unlink(missing_ok=True)

    async def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes]:
        file = self._open(name, offset)
        try:
            while data := await asyncio.to_thread(_read, file):
                yield data
        finally:
            file.close()

    async def delete(self, name: str) -> None:
        def delete() -> None:
            with _told():
                (self._folder / name).unlink(missing_ok=True)

        await asyncio.to_thread(delete)

    async def names(self, older_than_s: float) -> AsyncIterator[list[str]]:
        yield await asyncio.to_thread(self._names, time.time() - older_than_s)

    async def tidy(self, older_than_s: float) -> None:
        await asyncio.to_thread(self._tidy, time.time() - older_than_s)

    def _create(self, path: Path) -> BinaryIO:
        with _told():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def _publish(self, file: BinaryIO, unfinished: Path, path: Path) -> None:
        with _told():
            file.flush()
            os.fsync(file.fileno())
            unfinished.rename(path)
            folder = os.open(self._folder, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    def _open(self, name: str, offset: int) -> BinaryIO:
        try:
            file = (self._folder / name).open("rb")
        except FileNotFoundError:
            raise BlobMissing(f"There is no blob {name}.") from None
        except OSError as error:
            raise BlobsUnavailable from error
        file.seek(offset)
        return file

    def _names(self, before: float) -> list[str]:
        with _told():
            try:
                entries = os.scandir(self._folder)
            except FileNotFoundError:
                return []  # nothing was ever written
        with _told(), entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(_UNFINISHED) and entry.stat().st_mtime < before
            ]

    def _tidy(self, before: float) -> None:
        with _told():
            for path in self._folder.glob(f"{_UNFINISHED}*"):
                if path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)


class _LocalWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        with _told():
            self._file.write(data)


@contextmanager
def _told() -> Iterator[None]:
    """What the file system refuses, as what it means here."""
    try:
        yield
    except OSError as error:
        raise BlobsUnavailable from error


def _read(file: BinaryIO) -> bytes:
    with _told():
        return file.read(CHUNK)
