"""What can be done with files."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import aclosing

from api.files.blobs import BlobMissing, Blobs
from api.files.store import FileStore, StoredFile, is_file_id
from api.files.upload import Upload
from api.http.lookup import own_or_404
from api.http.pagination import Page, check_after, fetch_page
from shared.domain.errors import HeadraceError, NotFound
from shared.domain.owner import Owner

logger = logging.getLogger(__name__)


class FileService:
    """Takes, finds, reads and forgets files."""

    def __init__(self, store: FileStore, blobs: Blobs, *, max_bytes: int, max_lines: int, keep_s: float | None) -> None:
        """Files are kept for `keep_s` seconds, or for ever, where their upload does not say."""
        self._store = store
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._keep_s = keep_s

    async def upload(self, owner: Owner, content_type: str, length: str, body: AsyncIterator[bytes]) -> StoredFile:
        """Store the file of a form; see `Upload.take`."""
        upload = Upload(
            self._store, self._blobs, max_bytes=self._max_bytes, max_lines=self._max_lines, keep_s=self._keep_s
        )
        return await upload.take(owner, content_type, length, body)

    async def get(self, file_id: str, project_id: int, param: str = "file_id") -> StoredFile:
        """A file of a project; `param` is where its id was given.

        Raises:
            NotFound: there is none, or it is another project's.
        """
        return await own_or_404("file", file_id, project_id, is_file_id, self._store.get, param)

    async def page(
        self, project_id: int, *, purpose: str | None, limit: int, after: str | None, ascending: bool
    ) -> Page[StoredFile]:
        """A page of a project's files.

        Raises:
            InvalidRequest: `after` is not a file's id.
        """
        check_after(after, "file", is_file_id)
        return await fetch_page(
            limit,
            lambda count: self._store.page(project_id, purpose=purpose, limit=count, after=after, ascending=ascending),
        )

    async def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """A file's bytes, once they are known to be there.

        Raises:
            NotFound: they are gone: the file was deleted just now, or its folder was.
        """
        chunks = self._blobs.read(file.id)
        try:
            first = await anext(chunks, b"")
        except BlobMissing:
            raise NotFound(
                f"The content of file `{file.id}` is gone.", param="file_id", code="file_not_found"
            ) from None

        async def content() -> AsyncIterator[bytes]:
            async with aclosing(chunks):
                yield first
                async for chunk in chunks:
                    yield chunk

        return content()

    async def delete(self, file_id: str, project_id: int) -> None:
        """Forget a file.

        Raises:
            NotFound: there is none, or it is another project's.
            FileInUse: a batch that has not ended reads it.
        """
        await self.get(file_id, project_id)
        if not await self._store.delete(file_id, project_id):
            return  # another call was faster
        try:
            await self._blobs.delete(file_id)
        except HeadraceError as error:
            logger.warning("file=%s its bytes stay until they are tidied away: %s", file_id, error)
