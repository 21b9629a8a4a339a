"""The steps of a batch. A step can be interrupted anywhere and repeated by any process; see `api.batches.store`."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from api.batches.batch import Batch, BatchStatus, LineError, Position
from api.batches.jsonl_reader import Line, read_lines
from api.batches.line_jobs import BatchJob, NoRoom, SubmittedLines
from api.batches.request_line import LineRejected, parse
from api.batches.results import Results, write_results
from api.batches.store import BatchStore
from api.batches.validation import validate
from api.cache.response_cache import ResponseCache
from api.files.blobs import BlobMissing, Blobs
from api.http.members import MemberReader
from api.jobs.admission import Admission
from api.jobs.service import JobService
from api.keys.earlier_work import EarlierWork
from api.limits.limiter import Taken
from api.limits.settlement import Settlement
from shared.config.models.loader import Registry
from shared.domain.decisions import CacheOutcome
from shared.domain.errors import BudgetExceeded, InvalidRequest, NotFound, RateLimited
from shared.domain.job import JobStatus
from shared.domain.new_job import NewJob
from shared.domain.priorities import Hint
from shared.domain.result import CANCELLED
from shared.recovery.terminator import JobTerminator
from shared.runtime.offload import off_loop
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# Time that the running requests of a cancelled batch have to finish, as at OpenAI.
CANCEL_GRACE = timedelta(minutes=10)
# Maximum jobs per transaction, and bytes of their lines.
CHUNK_JOBS = 100
CHUNK_BYTES = 4 * 1024 * 1024

INPUT_MISSING = LineError("input_file_missing", "The content of the input file is missing.")


class BatchSteps:
    """Runs the steps of batches."""

    def __init__(
        self,
        *,
        registry: Registry,
        members: MemberReader,
        admission: Admission,
        cache: ResponseCache,
        earlier_work: EarlierWork,
        store: BatchStore,
        blobs: Blobs,
        jobs: JobService,
        settlement: Settlement,
        terminator: JobTerminator,
        send: Callable[[Hint], None],
        metrics: Metrics,
        max_line_bytes: int,
        max_jobs: int,
        retention_s: float | None,
    ) -> None:
        """`retention_s` is the retention of result files, in seconds, if the batch does not set it; None: unlimited."""
        self._registry = registry
        self._members = members
        self._admission = admission
        self._cache = cache
        self._earlier_work = earlier_work
        self._store = store
        self._blobs = blobs
        self._jobs = jobs
        self._settlement = settlement
        self._terminator = terminator
        self._send = send
        self._metrics = metrics
        self._max_line_bytes = max_line_bytes
        self._max_jobs = max_jobs
        self._retention_s = retention_s

    async def take(self, batch: Batch) -> bool:
        """Run the next step. Returns True if another can follow immediately, False if jobs have to progress first.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, redis.exceptions.RedisError, api.files.blobs.BlobsUnavailable:
                a service is unavailable; repeat the step.
        """
        try:
            match batch.status:
                case BatchStatus.VALIDATING:
                    return await self._validate(batch)
                case BatchStatus.IN_PROGRESS:
                    return await self._advance(batch)
                case BatchStatus.CANCELLING:
                    await self._cancel_jobs(batch)
                    return await self._finish(batch)
                case BatchStatus.FINALIZING:
                    return await self._finish(batch)
        except BlobMissing:
            logger.error("batch=%s input file content is missing", batch.id)
            await self._store.fail(batch, [INPUT_MISSING])
        return False

    async def _validate(self, batch: Batch) -> bool:
        async with self._lines(batch, Position()) as lines:
            validation = await validate(lines, batch.endpoint, self._members, self._registry)
        if validation.errors:
            logger.info("batch=%s failed: its input is invalid", batch.id)
            await self._store.fail(batch, validation.errors)
            return False
        logger.info("batch=%s has %d requests", batch.id, validation.requests)
        return await self._store.begin(batch.id, validation.requests)

    async def _advance(self, batch: Batch) -> bool:
        """Keep up to `max_jobs` jobs queued or running. Finalize the batch if it has expired or its jobs have ended."""
        tally = await self._store.tally(batch.id)
        if tally is None:
            return False
        if batch.expired:
            logger.info("batch=%s expired", batch.id)
            return await self._store.finalize(batch.id, BatchStatus.EXPIRED)
        if batch.submitted == batch.total and not tally.open:
            return await self._store.finalize(batch.id, BatchStatus.COMPLETED)
        return batch.submitted < batch.total and await self._submit_lines(batch, self._max_jobs - tally.open)

    async def _submit_lines(self, batch: Batch, room: int) -> bool:
        """Submit jobs for up to `room` of the next lines. Returns whether there is room for more at once, because the
        response cache has answered some."""
        has_room = False
        jobs: list[BatchJob] = []
        # The number of requests before the line of each job, and where it begins.
        starts: dict[int, tuple[int, Position]] = {}
        taken: list[Taken] = []
        requests = size = 0
        next_line = batch.next

        async def submit() -> bool:
            nonlocal has_room, jobs, taken, requests, next_line
            submitted = await self._store.submit(batch, jobs, requests, next_line)
            if isinstance(submitted, NoRoom):
                # The lines before it are submitted. It waits until jobs have ended or a window of its budgets has.
                count = sum(job.line < submitted.line for job in jobs)
                for rates in taken[count:]:
                    self._settlement.give_back(rates)
                jobs, taken = jobs[:count], taken[:count]
                requests, next_line = starts[submitted.line]
                if requests:
                    await submit()
                has_room = False
                return False
            if submitted is None:
                has_room = False
                for rates in taken:
                    self._settlement.give_back(rates)
                return False
            self._settlement.jobs_created(submitted.ids, taken)
            for hint in submitted.hints:
                self._metrics.submitted(hint.model, hint.priority)
                logger.info("job=%s model=%s attempt=%d batch=%s queued", hint.job_id, hint.model, 0, batch.id)
                self._send(hint)
            self._count_cached(batch, jobs, submitted)
            has_room = has_room or bool(submitted.answered)
            self._metrics.batch_lines.labels("submitted").inc(requests)
            return True

        async with self._lines(batch, batch.next) as lines:
            async for line in lines:
                if room <= 0:
                    break
                if line.blank:
                    next_line = line.next
                    continue
                # As the line is not read yet, this is where it begins.
                starts[line.number] = requests, next_line
                await asyncio.sleep(0)  # parsing a line and counting its tokens takes some milliseconds
                try:
                    job, rates = await self._admitted(batch, line)
                    jobs.append(job)
                    taken.append(rates)
                    room -= 1
                except RateLimited:  # the line is tried again at the batch's next step
                    self._metrics.batch_lines_held.inc()
                    break
                except (LineRejected, InvalidRequest, NotFound, BudgetExceeded) as error:
                    # No job; the result reports the reason.
                    logger.debug("batch=%s line=%d rejected: %s", batch.id, line.number, error)
                next_line = line.next
                requests += 1
                size += line.size
                if len(jobs) >= CHUNK_JOBS or size >= CHUNK_BYTES:
                    if not await submit():
                        return False
                    batch = replace(batch, next=next_line, submitted=batch.submitted + requests)
                    jobs, taken, requests, size = [], [], 0, 0
                    starts.clear()
        if requests:
            await submit()
        return has_room

    def _count_cached(self, batch: Batch, jobs: Sequence[BatchJob], submitted: SubmittedLines) -> None:
        """Count the outcomes of the response cache for submitted lines."""
        for job in submitted.answered:
            self._metrics.submitted(job.model, job.priority)
            self._metrics.cache_decided(job)
            logger.info(
                "job=%s model=%s attempt=%d batch=%s completed from the response cache source=%s",
                job.id, job.model, job.attempt, batch.id,
                job.decisions.cache.source if job.decisions.cache is not None else None,
            )  # fmt: skip
        self._cache.add_uses(Counter(submitted.keys))
        outcomes = Counter((job.model, job.decisions.cache.outcome) for job in jobs if job.decisions.cache is not None)
        outcomes.subtract((job.model, CacheOutcome.MISS) for job in submitted.answered)
        for (model, outcome), count in outcomes.items():
            self._metrics.cache_requests.labels(self._metrics.model_label(model), outcome).inc(count)

    async def _admitted(self, batch: Batch, line: Line) -> tuple[BatchJob, Taken]:
        """Parse and admit a line. Raises `LineRejected`, and as `Admission.admit` and `take_rates`."""
        request = await off_loop(line.size, parse, line, batch.endpoint, self._members, counted=True)
        job = request.job
        new = job.new(batch)
        principal = await self._earlier_work.principal(new.owner)
        new = await self._admission.admit(principal, new)
        new = await self._cache.admit(principal, new)
        taken = await self._admission.take_rates(new, of_batch=True)
        await self._admission.remember(new)
        admitted = replace(
            job,
            model=new.model,
            request=new.request,
            metadata=new.metadata,
            requested_model=new.requested_model,
            decisions=new.decisions,
            cache_key=new.cache_key,
            reservations=new.reservations,
            log_level=new.log_level,
        )
        return admitted, taken

    async def _recheck(self, new: NewJob) -> None:
        await self._admission.recheck(await self._earlier_work.principal(new.owner), new)

    async def _cancel_jobs(self, batch: Batch) -> None:
        """Cancel queued jobs, and after `CANCEL_GRACE` those that are running or were preempted."""
        assert batch.cancelling_at is not None
        in_grace_period = datetime.now(UTC) < batch.cancelling_at + CANCEL_GRACE
        for job in await self._store.open_jobs(batch.id):
            if job.status is JobStatus.QUEUED and not (in_grace_period and job.started_at):
                await self._terminator.end(job, JobStatus.CANCELLED, CANCELLED)
            elif not in_grace_period and job.status is JobStatus.IN_PROGRESS:
                await self._jobs.cancel(job.id, job.owner.project_id)

    async def _finish(self, batch: Batch) -> bool:
        """Write the results once all jobs have ended."""
        tally = await self._store.tally(batch.id)
        if tally is None or tally.open:
            return False
        assert batch.ending is not None
        results = Results()
        if batch.total:  # 0 if it was cancelled before its input was read
            async with self._lines(batch, Position()) as lines:
                results = await write_results(batch, lines, self._store, self._blobs, self._members, self._recheck)
        ending = batch.ending
        if ending is BatchStatus.EXPIRED and not results.expired:
            ending = BatchStatus.COMPLETED
        ended = await self._store.end(
            batch,
            ending,
            output=results.output,
            errors=results.errors,
            completed=results.completed,
            failed=results.failed,
            usage=results.usage,
            retention_s=batch.output_expires_after_s or self._retention_s,
        )
        if ended:
            self._metrics.batch_lines.labels("completed").inc(results.completed)
            self._metrics.batch_lines.labels("failed").inc(results.failed)
            logger.info("batch=%s %s", batch.id, ending.value)
        return False

    @asynccontextmanager
    async def _lines(self, batch: Batch, start: Position) -> AsyncIterator[AsyncIterator[Line]]:
        """Read a batch's input from a position on."""
        async with aclosing(self._blobs.read(batch.input_file_id, start.offset)) as chunks:
            yield read_lines(chunks, start, self._max_line_bytes)
