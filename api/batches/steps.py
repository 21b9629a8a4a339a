"""The steps of a batch. Each can be cut off anywhere and taken again, by any process; see `api.batches.store`."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from api.batches.batch import Batch, BatchStatus, LineError, Position
from api.batches.jsonl_reader import Line, read_lines
from api.batches.request_line import LineRejected, parse
from api.batches.results import Results, write_results
from api.batches.store import BatchJob, BatchStore
from api.batches.validation import validate
from api.files.blobs import BlobMissing, Blobs
from api.jobs.admission import Admission
from api.jobs.service import JobService
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.domain.errors import InvalidRequest, NotFound
from shared.domain.job import JobStatus
from shared.domain.owner import Owner
from shared.domain.priorities import BATCH_PRIORITY, Hint
from shared.domain.result import CANCELLED
from shared.postgres.job_store import NewJob
from shared.recovery.terminator import JobTerminator
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

# What running requests of a cancelled batch get, as at OpenAI.
CANCEL_GRACE = timedelta(minutes=10)
# One transaction's jobs, and bytes of their lines.
CHUNK_JOBS = 100
CHUNK_BYTES = 4 * 1024 * 1024

GONE = LineError("input_file_missing", "The content of the input file is gone.")


class BatchSteps:
    """Takes one step of a batch at a time."""

    def __init__(
        self,
        *,
        registry: Registry,
        admission: Admission,
        store: BatchStore,
        blobs: Blobs,
        jobs: JobService,
        terminator: JobTerminator,
        send: Callable[[Hint], None],
        metrics: Metrics,
        max_line_bytes: int,
        max_jobs: int,
        keep_s: float | None,
    ) -> None:
        """Results are kept for `keep_s` seconds, or for ever, where their batch does not say."""
        self._registry = registry
        self._admission = admission
        self._store = store
        self._blobs = blobs
        self._jobs = jobs
        self._terminator = terminator
        self._send = send
        self._metrics = metrics
        self._max_line_bytes = max_line_bytes
        self._max_jobs = max_jobs
        self._keep_s = keep_s

    async def take(self, batch: Batch) -> bool:
        """Take the next step. True: another can follow at once; False: jobs must come further first.

        Raises:
            sqlalchemy.exc.SQLAlchemyError, redis.exceptions.RedisError, api.files.blobs.BlobsUnavailable:
                a service is away; take the step again.
        """
        try:
            match batch.status:
                case BatchStatus.VALIDATING:
                    return await self._validate(batch)
                case BatchStatus.IN_PROGRESS:
                    return await self._advance(batch)
                case BatchStatus.CANCELLING:
                    await self._cancel_jobs(batch)
                    return await self._end(batch)
                case BatchStatus.FINALIZING:
                    return await self._end(batch)
        except BlobMissing:
            logger.error("batch=%s its input file's content is gone", batch.id)
            await self._store.fail(batch, [GONE])
        return False

    async def _validate(self, batch: Batch) -> bool:
        async with self._lines(batch, Position()) as lines:
            found = await validate(lines, batch.endpoint, self._registry)
        if found.errors:
            logger.info("batch=%s failed: its input is not valid", batch.id)
            await self._store.fail(batch, found.errors)
            return False
        logger.info("batch=%s has %d requests", batch.id, found.requests)
        return await self._store.begin(batch.id, found.requests)

    async def _advance(self, batch: Batch) -> bool:
        """Keep up to `max_jobs` jobs on their way; decide when there is nothing more to wait for."""
        tally = await self._store.tally(batch.id)
        if tally is None:
            return False
        if batch.over:
            logger.info("batch=%s its time is up", batch.id)
            return await self._store.finalize(batch.id, BatchStatus.EXPIRED)
        if batch.submitted == batch.total and not tally.open:
            return await self._store.finalize(batch.id, BatchStatus.COMPLETED)
        if batch.submitted < batch.total:
            await self._feed(batch, self._max_jobs - tally.open)
        return False

    async def _feed(self, batch: Batch, room: int) -> None:
        """Make jobs of the next lines."""
        jobs: list[BatchJob] = []
        requests = size = 0
        then = batch.next

        async def submit() -> bool:
            hints = await self._store.submit(batch, jobs, requests, then)
            for hint in hints or ():
                self._metrics.submitted(hint.model, hint.priority)
                logger.info("job=%s model=%s attempt=%d batch=%s queued", hint.job_id, hint.model, 0, batch.id)
                self._send(hint)
            if hints is not None:
                self._metrics.batch_lines.labels("submitted").inc(requests)
            return hints is not None

        async with self._lines(batch, batch.next) as lines:
            async for line in lines:
                if room <= 0:
                    break
                then = line.then
                if line.blank:
                    continue
                requests += 1
                size += len(line.data or b"")
                try:
                    jobs.append(await self._admitted(batch, line))
                    room -= 1
                except (LineRejected, InvalidRequest, NotFound) as error:  # it gets no job; its result says why
                    logger.warning("batch=%s line=%d is rejected: %s", batch.id, line.number, error)
                if len(jobs) >= CHUNK_JOBS or size >= CHUNK_BYTES:
                    if not await submit():
                        return
                    batch = replace(batch, next=then, submitted=batch.submitted + requests)
                    jobs, requests, size = [], 0, 0
        if requests:
            await submit()

    async def _admitted(self, batch: Batch, line: Line) -> BatchJob:
        """The job of a line. Raises `LineRejected`, and as `Admission.admit`."""
        job = parse(line, batch.endpoint).job
        owner = Owner(batch.project_id, batch.key_id, job.end_user)
        new = await self._admission.admit(
            Principal.of(owner), NewJob(owner, job.model, BATCH_PRIORITY, job.request, job.metadata)
        )
        return replace(job, model=new.model, request=new.request, metadata=new.metadata)

    async def _cancel_jobs(self, batch: Batch) -> None:
        """End what waits; what runs, or was set aside while it ran, is let finish for a while."""
        assert batch.cancelling_at is not None
        patient = datetime.now(UTC) < batch.cancelling_at + CANCEL_GRACE
        for job in await self._store.open_jobs(batch.id):
            if job.status is JobStatus.QUEUED and not (patient and job.started_at):
                await self._terminator.end(job, JobStatus.CANCELLED, CANCELLED)
            elif not patient and job.status is JobStatus.IN_PROGRESS:
                await self._jobs.cancel(job.id, job.owner.project_id)

    async def _end(self, batch: Batch) -> bool:
        """Write the results once all jobs have ended."""
        tally = await self._store.tally(batch.id)
        if tally is None or tally.open:
            return False
        assert batch.ending is not None
        results = Results()
        if batch.total:  # one that was cancelled before its input was read has no requests
            async with self._lines(batch, Position()) as lines:
                results = await write_results(batch, lines, self._store, self._blobs, self._admission)
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
            keep_s=batch.output_expires_after_s or self._keep_s,
        )
        if ended:
            self._metrics.batch_lines.labels("completed").inc(results.completed)
            self._metrics.batch_lines.labels("failed").inc(results.failed)
            logger.info("batch=%s %s", batch.id, ending.value)
        return False

    @asynccontextmanager
    async def _lines(self, batch: Batch, start: Position) -> AsyncIterator[AsyncIterator[Line]]:
        """A batch's input from a line on."""
        async with aclosing(self._blobs.read(batch.input_file_id, start.offset)) as chunks:
            yield read_lines(chunks, start, self._max_line_bytes)
