"""Operations on batches."""

from __future__ import annotations

from api.batches.batch import Batch, BatchStatus, is_batch_id
from api.batches.driver import BatchDriver
from api.batches.schemas import BatchCreate
from api.batches.store import BatchStore
from api.files.service import FileService
from api.files.store import Purpose
from api.http.lookup import own_or_404
from api.http.pagination import Page, check_after, fetch_page
from api.webhooks.request_webhooks import RequestWebhooks
from shared.config.durations import seconds_of
from shared.domain.errors import Conflict, InvalidRequest, NotFound
from shared.domain.owner import Owner

MAX_WINDOW_S = 30 * 24 * 3600


class BatchService:
    """Creates, looks up and cancels batches."""

    def __init__(
        self, store: BatchStore, files: FileService, driver: BatchDriver, webhooks: RequestWebhooks | None = None
    ) -> None:
        self._store = store
        self._files = files
        self._driver = driver
        self._webhooks = webhooks

    async def create(self, owner: Owner, body: BatchCreate) -> Batch:
        """Commit a batch. When this returns, it is durable.

        Raises:
            NotFound: the file does not exist or belongs to another project.
            InvalidRequest: the completion window or the file's purpose is invalid, or nothing may be sent to the
                webhook.
        """
        window_s = _window_s(body.completion_window)
        file = await self._files.get(body.input_file_id, owner.project_id, "input_file_id")
        if file.purpose is not Purpose.BATCH:
            raise InvalidRequest(
                f"input_file_id: must be a file with purpose `batch`, got `{file.purpose.value}`", param="input_file_id"
            )
        webhook = body.request_webhook
        if self._webhooks is not None and webhook is not None:
            await self._webhooks.admit(owner.project_id, webhook)
        batch = await self._store.insert(
            owner,
            body.endpoint,
            file.id,
            body.completion_window,
            window_s,
            body.metadata,
            body.output_expires_after.seconds if body.output_expires_after else None,
            webhook,
        )
        if batch is None:
            raise NotFound(f"There is no file `{file.id}`.", param="input_file_id", code="file_not_found")
        self._driver.wake()
        return batch

    async def get(self, batch_id: str, project_id: int) -> Batch:
        """Return a batch of a project.

        Raises:
            NotFound: it does not exist or belongs to another project.
        """
        return await own_or_404("batch", batch_id, project_id, is_batch_id, self._store.get)

    async def page(self, project_id: int, *, limit: int, after: str | None) -> Page[Batch]:
        """Return a page of a project's batches, newest first.

        Raises:
            InvalidRequest: `after` is not a batch id.
        """
        check_after(after, "batch", is_batch_id)
        return await fetch_page(limit, lambda count: self._store.page(project_id, limit=count, after=after))

    async def cancel(self, batch_id: str, project_id: int) -> Batch:
        """Cancel a batch: queued jobs end immediately, running jobs may finish. Idempotent.

        Raises:
            NotFound: it does not exist or belongs to another project.
            Conflict: it has ended or is writing its results.
        """
        batch = await self.get(batch_id, project_id)
        if await self._store.cancel(batch_id):
            self._driver.wake()
        batch = await self.get(batch_id, project_id)
        if batch.status not in (BatchStatus.CANCELLING, BatchStatus.CANCELLED):
            raise Conflict(f"Cannot cancel a batch with status `{batch.status.value}`.")
        return batch


def _window_s(window: str) -> float:
    seconds = seconds_of(window, ("m", "h"))
    if seconds is None or not 0 < seconds <= MAX_WINDOW_S:
        raise InvalidRequest(
            f"completion_window: must be hours or minutes such as 24h or 90m (at most 30 days), got {window[:64]!r}",
            param="completion_window",
        )
    return seconds
