"""Blobs in a bucket of S3, or of anything that speaks it: MinIO, Ceph, R2, SeaweedFS.

A blob is a multipart upload, which S3 shows once it is completed and not before. Reads are ranges, each a request of
its own that is tried again by itself, so a slow reader holds no connection open.

Credentials, region and endpoint are the usual AWS environment variables, or the machine's role.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from api.files.blobs import BlobMissing, BlobsUnavailable, BlobWriter

SCHEME = "s3://"
READ_BYTES = 1024 * 1024
# S3's smallest part. A writer holds two of them at most, and what is written meanwhile.
PART_BYTES = 5 * 1024 * 1024
PARTS_AT_ONCE = 2
# Beyond this a request would wait longer than its client; whoever asks tries again.
RETRIES, RETRY_S = 3, timedelta(seconds=10)


class S3Blobs:
    """Blobs as objects under one prefix of a bucket."""

    def __init__(self, address: str) -> None:
        """`address`: `s3://bucket/prefix`."""
        bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
        self._store = S3Store(
            bucket,
            prefix=prefix.strip("/") or None,
            client_options={"allow_http": True},  # an endpoint without TLS is named by the operator
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_S},
        )

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[BlobWriter]:
        writer = _S3Writer()
        putting: asyncio.Future[object] = asyncio.ensure_future(
            obstore.put_async(self._store, name, writer.parts(), chunk_size=PART_BYTES, max_concurrency=PARTS_AT_ONCE)
        )
        putting.add_done_callback(writer.over)
        try:
            yield writer
        except BaseException as error:
            # Not cancelled: told, so that it takes back the parts that it has sent.
            writer.give_up(error)
            await asyncio.wait([putting])
            raise
        with _told():
            await writer.finish()
            await asyncio.shield(putting)

    async def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes]:
        try:
            with _told():
                size = (await obstore.head_async(self._store, name))["size"]
        except BlobsUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise BlobMissing(f"There is no blob {name}.") from None
            raise
        while offset < size:
            end = min(offset + READ_BYTES, size)
            with _told():
                data = await obstore.get_range_async(self._store, name, start=offset, end=end)
            yield data.to_bytes()
            offset = end

    async def delete(self, name: str) -> None:
        with _told():
            await obstore.delete_async(self._store, name)

    async def names(self, older_than_s: float) -> AsyncIterator[list[str]]:
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        with _told():
            async for page in obstore.list(self._store, chunk_size=1000):
                yield [item["path"] for item in page if item["last_modified"] < before]

    async def tidy(self, older_than_s: float) -> None:
        """Nothing: uploads that were cut off are the bucket's own to forget, by its rule for incomplete uploads."""


class _S3Writer:
    """Hands what is written to the upload, no faster than it goes out."""

    def __init__(self) -> None:
        self._next: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._over = asyncio.Event()
        self._upload: asyncio.Future[object] | None = None
        self._error: BaseException | None = None

    async def write(self, data: bytes) -> None:
        with _told():
            await self._put(data)

    async def finish(self) -> None:
        await self._put(None)

    def give_up(self, error: BaseException) -> None:
        """End the upload with an error: nothing of it is kept."""
        self._error = error
        while not self._next.empty():
            self._next.get_nowait()
        self._next.put_nowait(None)

    def over(self, upload: asyncio.Future[object]) -> None:
        """The upload has ended, well or badly."""
        if not upload.cancelled():
            upload.exception()  # it is told to who writes; here it is only seen
        self._upload = upload
        self._over.set()

    async def parts(self) -> AsyncIterator[bytes]:
        while (data := await self._next.get()) is not None:
            yield data
        if self._error is not None:
            raise _GivenUp

    async def _put(self, data: bytes | None) -> None:
        """Wait for room. Raises what has ended the upload before."""
        putting: asyncio.Future[object] = asyncio.ensure_future(self._next.put(data))
        ended = asyncio.ensure_future(self._over.wait())
        try:
            await asyncio.wait((putting, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
            ended.cancel()
        if self._upload is not None:
            self._upload.result()


class _GivenUp(Exception):
    """Whoever wrote has ended before the end."""


@contextmanager
def _told() -> Iterator[None]:
    """What S3 refuses, as what it means here."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise BlobsUnavailable from error
