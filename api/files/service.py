"""Operations on files."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing

from api.files.blobs import BlobMissing, Blobs
from api.files.store import FileStore, StoredFile, is_file_id
from api.files.upload import Upload, refuse_field
from api.http.lookup import own_or_404
from api.http.pagination import Page, check_after, fetch_page
from shared.domain.errors import HeadraceError, NotFound, QuotaExceeded
from shared.domain.owner import Owner
from shared.telemetry.definitions.labels import Quota
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

QUOTA_RETRY_S = 60


class FileService:
    """Uploads, looks up, reads and deletes files."""

    def __init__(
        self,
        store: FileStore,
        blobs: Blobs,
        *,
        max_bytes: int,
        max_lines: int,
        max_project_bytes: int,
        metrics: Metrics,
        retention_s: float | None,
    ) -> None:
        """`retention_s` is the retention, in seconds, of files without `expires_after`; None: unlimited.
        `max_project_bytes`: that of all files of a project; 0: unlimited."""
        self._store = store
        self._blobs = blobs
        self._max_bytes = max_bytes
        self._max_lines = max_lines
        self._max_project_bytes = max_project_bytes
        self._metrics = metrics
        self._retention_s = retention_s

    async def upload(
        self,
        owner: Owner,
        content_type: str,
        length: str,
        body: AsyncIterator[bytes],
        unknown_field: Callable[[str], None] = refuse_field,
    ) -> StoredFile:
        """Store the file of a form; see `Upload`.

        Raises:
            QuotaExceeded: the files of the project would be too large together.
        """
        upload = Upload(
            self._store,
            self._blobs,
            max_bytes=self._max_bytes,
            max_lines=self._max_lines,
            retention_s=self._retention_s,
            unknown_field=unknown_field,
            check_size=lambda size: self._check_quota(owner, size),
        )
        return await upload.receive(owner, content_type, length, body)

    async def _check_quota(self, owner: Owner, size: int) -> None:
        """Raise `QuotaExceeded` if a project has no room for a file. Concurrent uploads do not see one another."""
        most = self._max_project_bytes
        if most and await self._store.total_bytes(owner.project_id) + size > most:
            self._metrics.quota_rejections.labels(Quota.FILE_BYTES.value).inc()
            raise QuotaExceeded(
                f"The files of this project would have more than {most} bytes (HEADRACE_PROJECT_FILE_BYTES); delete"
                " some, or let files expire.",
                retry_after_s=QUOTA_RETRY_S,
            )

    async def get(self, file_id: str, project_id: int, param: str = "file_id") -> StoredFile:
        """Return a file of a project. `param` is the parameter that holds its id, for the error.

        Raises:
            NotFound: it does not exist or belongs to another project.
        """
        return await own_or_404("file", file_id, project_id, is_file_id, self._store.get, param)

    async def names(self, project_id: int, file_ids: Sequence[str]) -> dict[str, str]:
        """Return the names of those of these files that exist and that the project owns, by id."""
        return await self._store.names(project_id, file_ids) if file_ids else {}

    async def page(
        self, project_id: int, *, purpose: str | None, limit: int, after: str | None, ascending: bool
    ) -> Page[StoredFile]:
        """Return a page of a project's files.

        Raises:
            InvalidRequest: `after` is not a file id.
        """
        check_after(after, "file", is_file_id)
        return await fetch_page(
            limit,
            lambda count: self._store.page(project_id, purpose=purpose, limit=count, after=after, ascending=ascending),
        )

    async def content(self, file: StoredFile) -> AsyncIterator[bytes]:
        """Return an iterator over a file's bytes, once the first chunk has been read.

        Raises:
            NotFound: the content is missing, for example because the file has just been deleted.
        """
        chunks = self._blobs.read(file.id)
        try:
            first = await anext(chunks, b"")
        except BlobMissing:
            raise NotFound(
                f"The content of file `{file.id}` is missing.", param="file_id", code="file_not_found"
            ) from None

        async def content() -> AsyncIterator[bytes]:
            async with aclosing(chunks):
                yield first
                async for chunk in chunks:
                    yield chunk

        return content()

    async def delete(self, file_id: str, project_id: int) -> None:
        """Delete a file and its content.

        Raises:
            NotFound: it does not exist or belongs to another project.
            FileInUse: the file is the input of an unfinished batch.
        """
        await self.get(file_id, project_id)
        if not await self._store.delete(file_id, project_id):
            return  # a concurrent call has deleted it
        try:
            await self._blobs.delete(file_id)
        except HeadraceError as error:
            logger.warning("file=%s cannot delete content; cleanup will: %s", file_id, error)
