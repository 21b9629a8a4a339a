"""Erases the data of an end user of a project, in steps of limited size."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from redis.exceptions import RedisError

from api.erasure.files import FileErasure
from api.erasure.ledger_store import LedgerErasure
from api.erasure.pseudonyms import Pseudonyms
from api.erasure.store import ErasureStore, Export
from api.jobs.service import JobService
from api.keys.principal import Principal, Scope
from shared.domain.errors import Forbidden, InvalidRequest, Unavailable
from shared.domain.owner import end_user_name
from shared.redis.event_log import EventLog
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# How long one call may take, apart from the batch that it has begun. What is left then is erased by the next one.
MAX_S = 20.0


@dataclass(frozen=True, slots=True)
class Erasure:
    """What a call has erased, by what it was, and what is left.

    `complete`: nothing is left that this call could have erased. `unended_batches`: batches with requests of the user,
    whose files can be erased when they have ended. `exports`: the exports that may have data of the user. `named_in`:
    the budgets and limits that operators have created for the user.
    """

    complete: bool
    counts: Mapping[str, int]
    unended_batches: Sequence[str]
    exports: Sequence[Export]
    named_in: Sequence[str]


class ErasureService:
    """Erases all that is stored of an end user."""

    def __init__(
        self,
        store: ErasureStore,
        ledger: LedgerErasure,
        files: FileErasure,
        jobs: JobService,
        logs: EventLog,
        pseudonyms: Pseudonyms,
        metrics: Metrics,
        *,
        max_s: float = MAX_S,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._files = files
        self._jobs = jobs
        self._logs = logs
        self._pseudonyms = pseudonyms
        self._metrics = metrics
        self._max_s = max_s

    async def erase(self, principal: Principal, user: str, project: str | None = None) -> Erasure:
        """Erase the data of an end user of the key's project, or of another one.

        It can be repeated: a call erases what earlier ones have left, and what was added since.

        Raises:
            Forbidden: the key has neither the scope `erase` nor `admin`, or the latter is required.
            InvalidRequest: there is no such project.
            Unavailable: Redis is unavailable. Nothing is lost; the call can be repeated.
        """
        project_id = await self._project(principal, project)
        end_user = end_user_name(user)
        assert end_user is not None, "the path has no empty part"
        run = _Run(self._store, self._ledger, self._files, self._jobs, self._logs, project_id, end_user, self._max_s)
        try:
            await run.run()
        except (RedisError, OSError) as error:
            raise Unavailable("Redis is unavailable; send the request again.") from error
        finally:
            if counts := run.found:
                name, *others = await self._pseudonyms.of(project_id, end_user)
                await self._store.record(principal.key_id, project_id, name, counts, others)
                logger.warning("user=%s project=%d erased by key_%d", name, project_id, principal.key_id)
        complete = not (run.is_late or run.unended)
        self._metrics.erasures.labels("complete" if complete else "partial").inc()
        return Erasure(
            complete,
            run.found,
            run.unended,
            await self._store.exports(project_id),
            await self._store.named_in(project_id, end_user),
        )

    async def _project(self, principal: Principal, name: str | None) -> int:
        if Scope.ADMIN not in principal.scopes:
            principal.require(Scope.ERASE)
        if name is None:
            return principal.project_id
        project_id = await self._store.project_id(name)
        if Scope.ADMIN not in principal.scopes and project_id != principal.project_id:
            raise Forbidden("project: another project needs a key with the `admin` scope.", param="project")
        if project_id is None:
            raise InvalidRequest(f"project: there is no project {name[:64]!r}", param="project")
        return project_id


class _Run:
    """One call."""

    def __init__(
        self,
        store: ErasureStore,
        ledger: LedgerErasure,
        files: FileErasure,
        jobs: JobService,
        logs: EventLog,
        project_id: int,
        end_user: str,
        max_s: float,
    ) -> None:
        self._store = store
        self._ledger = ledger
        self._files = files
        self._jobs = jobs
        self._logs = logs
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
        self.unended = await self._store.unended_batches(*self._of)
        await self._erase_files()
        if self.is_late:
            return
        await self._erase_jobs(in_batches=True)
        await self._erase_jobs()
        await self._erase_log()
        self._counts.update(await self._store.erase_author(*self._of))
        await self._erase_ledger()

    async def _cancel_open(self) -> None:
        after = ""
        while jobs := await self._store.open_jobs(*self._of, after):
            for job in jobs:
                await self._jobs.cancel(job.id, self._of[0])
                after = job.id
                if self.is_late:
                    return
            self._counts["cancelled_jobs"] += len(jobs)

    async def _erase_files(self) -> None:
        after = ""
        while not self.is_late and (batch := await self._store.ended_batch(*self._of, after)) is not None:
            after = batch.id
            lines, custom_ids = 0, set[str]()
            if batch.input_file_id is not None:
                lines, custom_ids = await self._files.requests_of(batch.input_file_id, self._of[1])
            for file_id in batch.result_file_ids:
                lines += await self._files.results_of(file_id, batch.job_ids, custom_ids)
            self._counts["file_lines"] += lines
            # Also if it is late: a later call, which finds the batch by what names the user, would read its files
            # again.
            await self._erase_jobs(batch_id=batch.id)
            await self._erase_log(batch_id=batch.id)

    async def _erase_log(self, *, batch_id: str | None = None) -> None:
        while batch_id is not None or not self.is_late:
            counts = await self._store.erase_log(*self._of, self.unended, batch_id=batch_id)
            if counts is None:
                return
            self._counts.update(counts)

    async def _erase_jobs(self, *, in_batches: bool = False, batch_id: str | None = None) -> None:
        if in_batches and not self.unended:
            return
        while batch_id is not None or not self.is_late:
            jobs = await self._store.jobs(*self._of, self.unended, in_batches=in_batches, batch_id=batch_id)
            if not jobs:
                return
            job_ids = [job_id for job_id, _ in jobs]
            if leaders := [job_id for job_id, may_lead in jobs if may_lead]:
                await self._jobs.settle_all(*leaders)  # without the answer, they would all be run
            # Before the rows, which a repeated call could not find if Redis was unavailable afterwards.
            await self._logs.delete(*job_ids)
            portion = await self._store.erase_jobs(self._of[0], job_ids, keep_user=in_batches)
            await self._logs.delete(*portion.others)
            self._counts.update(portion.counts)

    async def _erase_ledger(self) -> None:
        after: datetime | None = None
        while not self.is_late:
            portion = await self._ledger.erase(*self._of, after)
            self._counts["ledger_entries"] += portion.entries
            after = portion.until
            if after is None:
                return
