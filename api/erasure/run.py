"""One call that erases the data of an end user: the steps, in order, until the time of the call is over."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from api.erasure.files import FileErasure
from api.erasure.ledger_store import LedgerErasure
from api.erasure.store import ErasureStore
from api.jobs.service import JobService
from shared.redis.event_log import EventLog


@dataclass(frozen=True, slots=True)
class DataStores:
    """Where data of end users is, and what cancels their jobs."""

    store: ErasureStore
    ledger: LedgerErasure
    files: FileErasure
    jobs: JobService
    logs: EventLog


class ErasureRun:
    """One call for an end user of a project. `unended`: the batches with requests of the user that have not ended."""

    def __init__(self, data: DataStores, project_id: int, end_user: str, max_s: float) -> None:
        self._data = data
        self._of = (project_id, end_user)
        self._deadline = time.monotonic() + max_s
        self._counts: Counter[str] = Counter()
        self.unended: Sequence[str] = ()

    @property
    def is_late(self) -> bool:
        """Whether the call has taken its time, so that something may be left."""
        return time.monotonic() >= self._deadline

    @property
    def found(self) -> dict[str, int]:
        """What was erased, without what there was none of."""
        return {name: count for name, count in self._counts.items() if count}

    async def run(self) -> None:
        """Erase in an order in which what is left can be found again: files before the jobs that lead to them."""
        await self._cancel_open()
        self.unended = await self._data.store.unended_batches(*self._of)
        await self._erase_files()
        if self.is_late:
            return
        await self._erase_jobs(in_batches=True)
        await self._erase_jobs()
        await self._erase_log()
        self._counts.update(await self._data.store.erase_author(*self._of))
        await self._erase_ledger()

    async def _cancel_open(self) -> None:
        after = ""
        while jobs := await self._data.store.open_jobs(*self._of, after):
            for job in jobs:
                await self._data.jobs.cancel(job.id, self._of[0])
                after = job.id
                if self.is_late:
                    return
            self._counts["cancelled_jobs"] += len(jobs)

    async def _erase_files(self) -> None:
        after = ""
        while not self.is_late and (batch := await self._data.store.ended_batch(*self._of, after)) is not None:
            after = batch.id
            lines, custom_ids = 0, set[str]()
            if batch.input_file_id is not None:
                lines, custom_ids = await self._data.files.requests_of(batch.input_file_id, self._of[1])
            for file_id in batch.result_file_ids:
                lines += await self._data.files.results_of(file_id, batch.job_ids, custom_ids)
            self._counts["file_lines"] += lines
            # Also if it is late: a later call, which finds the batch by what names the user, would read its files
            # again.
            await self._erase_jobs(batch_id=batch.id)
            await self._erase_log(batch_id=batch.id)

    async def _erase_log(self, *, batch_id: str | None = None) -> None:
        while batch_id is not None or not self.is_late:
            counts = await self._data.store.erase_log(*self._of, self.unended, batch_id=batch_id)
            if counts is None:
                return
            self._counts.update(counts)

    async def _erase_jobs(self, *, in_batches: bool = False, batch_id: str | None = None) -> None:
        if in_batches and not self.unended:
            return
        while batch_id is not None or not self.is_late:
            jobs = await self._data.store.jobs(*self._of, self.unended, in_batches=in_batches, batch_id=batch_id)
            if not jobs:
                return
            job_ids = [job_id for job_id, _ in jobs]
            if leaders := [job_id for job_id, may_lead in jobs if may_lead]:
                await self._data.jobs.settle_all(*leaders)  # without the answer, they would all be run
            # Before the rows, which a repeated call could not find if Redis was unavailable afterwards.
            await self._data.logs.delete(*job_ids)
            portion = await self._data.store.erase_jobs(self._of[0], job_ids, keep_user=in_batches)
            await self._data.logs.delete(*portion.others)
            self._counts.update(portion.counts)

    async def _erase_ledger(self) -> None:
        after: datetime | None = None
        while not self.is_late:
            portion = await self._data.ledger.erase(*self._of, after)
            self._counts["ledger_entries"] += portion.entries
            after = portion.until
            if after is None:
                return
