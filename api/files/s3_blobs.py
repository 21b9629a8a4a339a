"""Blobs in a bucket of S3 or a compatible store: MinIO, Ceph, R2, SeaweedFS.

A blob is a multipart upload, which becomes visible when it is completed. Reads are range requests, which are retried
individually, so that a slow reader holds no connection open.

Credentials, region and endpoint come from the standard AWS environment variables or the instance role.
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
# S3's minimum part size. A writer buffers up to `CONCURRENT_PARTS` parts.
PART_BYTES = 5 * 1024 * 1024
CONCURRENT_PARTS = 2
# With more retries a request would outlast its client's timeout; the caller retries instead.
RETRIES, RETRY_S = 3, timedelta(seconds=10)


class S3Blobs:
    """Blobs as objects under a prefix of a bucket."""

    def __init__(self, address: str) -> None:
        """`address`: `s3://bucket/prefix`."""
        bucket, _, prefix = address.removeprefix(SCHEME).partition("/")
        self._store = S3Store(
            bucket,
            prefix=prefix.strip("/") or None,
            client_options={"allow_http": True},  # the operator may configure an endpoint without TLS
            retry_config={"max_retries": RETRIES, "retry_timeout": RETRY_S},
        )

    @asynccontextmanager
    async def writing(self, name: str) -> AsyncIterator[BlobWriter]:
        writer = _S3Writer()
        upload: asyncio.Future[object] = asyncio.ensure_future(
            obstore.put_async(
                self._store, name, writer.parts(), chunk_size=PART_BYTES, max_concurrency=CONCURRENT_PARTS
            )
        )
        upload.add_done_callback(writer.upload_done)
        try:
            yield writer
        except BaseException as error:
            # Abort through the writer instead of a cancel, so that the parts already sent are deleted.
            writer.abort(error)
            await asyncio.wait([upload])
            raise
        with _raise_unavailable():
            await writer.finish()
            await asyncio.shield(upload)

    async def read(self, name: str, offset: int = 0) -> AsyncGenerator[bytes]:
        try:
            with _raise_unavailable():
                size = (await obstore.head_async(self._store, name))["size"]
        except BlobsUnavailable as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise BlobMissing(f"There is no blob {name}.") from None
            raise
        while offset < size:
            end = min(offset + READ_BYTES, size)
            with _raise_unavailable():
                data = await obstore.get_range_async(self._store, name, start=offset, end=end)
            yield data.to_bytes()
            offset = end

    async def delete(self, name: str) -> None:
        with _raise_unavailable():
            await obstore.delete_async(self._store, name)

    async def names(self, older_than_s: float) -> AsyncIterator[list[str]]:
        before = datetime.now(UTC) - timedelta(seconds=older_than_s)
        with _raise_unavailable():
            async for page in obstore.list(self._store, chunk_size=1000):
                yield [item["path"] for item in page if item["last_modified"] < before]

    async def delete_unfinished(self, older_than_s: float) -> None:
        """Do nothing: the bucket's lifecycle rule deletes incomplete multipart uploads."""


class _S3Writer:
    """Passes written data to the upload, with backpressure."""

    def __init__(self) -> None:
        self._next: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._done = asyncio.Event()
        self._upload: asyncio.Future[object] | None = None
        self._error: BaseException | None = None

    async def write(self, data: bytes) -> None:
        with _raise_unavailable():
            await self._put(data)

    async def finish(self) -> None:
        await self._put(None)

    def abort(self, error: BaseException) -> None:
        """Make the upload fail, so that nothing is stored."""
        self._error = error
        while not self._next.empty():
            self._next.get_nowait()
        self._next.put_nowait(None)

    def upload_done(self, upload: asyncio.Future[object]) -> None:
        """The upload has succeeded or failed."""
        if not upload.cancelled():
            upload.exception()  # mark it as retrieved; `_put` raises it
        self._upload = upload
        self._done.set()

    async def parts(self) -> AsyncIterator[bytes]:
        while (data := await self._next.get()) is not None:
            yield data
        if self._error is not None:
            raise _Aborted

    async def _put(self, data: bytes | None) -> None:
        """Wait for room in the queue. Raises the error of an upload that has failed."""
        putting: asyncio.Future[object] = asyncio.ensure_future(self._next.put(data))
        ended = asyncio.ensure_future(self._done.wait())
        try:
            await asyncio.wait((putting, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            putting.cancel()
            ended.cancel()
        if self._upload is not None:
            self._upload.result()


class _Aborted(Exception):
    """The writer has aborted the upload."""


@contextmanager
def _raise_unavailable() -> Iterator[None]:
    """Convert S3 errors to `BlobsUnavailable`."""
    try:
        yield
    except (BaseError, OSError) as error:
        raise BlobsUnavailable from error
