"""Storage of file contents as immutable blobs, in a directory or in S3.

A blob becomes visible when it is complete, not before.
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
    """No blob has this name."""


class BlobsUnavailable(Unavailable):
    """The file store is temporarily unavailable; try again."""


class BlobWriter(Protocol):
    """A blob that is being written."""

    async def write(self, data: bytes) -> None:
        """Append data. Raises `BlobsUnavailable` on an I/O error, such as a full disk."""


class Blobs(Protocol):
    """Blobs by name."""

    def writing(self, name: str) -> AbstractAsyncContextManager[BlobWriter]:
        """Write a blob. It is durable once the block has exited; an error in the block discards it."""

    def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes]:
        """Yield a blob's bytes in chunks, from an offset. The caller closes the generator. Raises `BlobMissing`."""

    async def delete(self, name: str) -> None:
        """Delete a blob if it exists."""

    def names(self, older_than_s: float) -> AsyncIterator[list[str]]:
        """Yield the names of complete blobs older than this, in pages."""

    async def delete_unfinished(self, older_than_s: float) -> None:
        """Delete unfinished blobs whose last write is older than this: their writers have died."""


class LocalBlobs:
    """Blobs as files in a directory, which all API processes must share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[BlobWriter]:
        unfinished = self._folder / f"{_UNFINISHED}{secrets.token_hex(8)}"
        # Not in a thread, which would continue after a cancel and leave an orphaned file.
        file = self._create(unfinished)
        try:
            yield _LocalWriter(file)
            await asyncio.to_thread(self._publish, file, unfinished, self._folder / name)
        finally:
            # Discard it if it was not published. No await here, so that a cancel cannot prevent it.
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
            with _raise_unavailable():
                (self._folder / name).unlink(missing_ok=True)

        await asyncio.to_thread(delete)

    async def names(self, older_than_s: float) -> AsyncIterator[list[str]]:
        yield await asyncio.to_thread(self._names, time.time() - older_than_s)

    async def delete_unfinished(self, older_than_s: float) -> None:
        await asyncio.to_thread(self._delete_unfinished, time.time() - older_than_s)

    def _create(self, path: Path) -> BinaryIO:
        with _raise_unavailable():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def _publish(self, file: BinaryIO, unfinished: Path, path: Path) -> None:
        with _raise_unavailable():
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
        with _raise_unavailable():
            try:
                entries = os.scandir(self._folder)
            except FileNotFoundError:
                return []  # nothing has been written yet
        with _raise_unavailable(), entries:
            return [
                entry.name
                for entry in entries
                if not entry.name.startswith(_UNFINISHED) and entry.stat().st_mtime < before
            ]

    def _delete_unfinished(self, before: float) -> None:
        with _raise_unavailable():
            for path in self._folder.glob(f"{_UNFINISHED}*"):
                if path.stat().st_mtime < before:
                    path.unlink(missing_ok=True)


class _LocalWriter:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def write(self, data: bytes) -> None:
        await asyncio.to_thread(self._write, data)

    def _write(self, data: bytes) -> None:
        with _raise_unavailable():
            self._file.write(data)


@contextmanager
def _raise_unavailable() -> Iterator[None]:
    """Convert file system errors to `BlobsUnavailable`."""
    try:
        yield
    except OSError as error:
        raise BlobsUnavailable from error


def _read(file: BinaryIO) -> bytes:
    with _raise_unavailable():
        return file.read(CHUNK)
