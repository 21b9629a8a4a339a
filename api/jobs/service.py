"""What can be done with jobs, whichever face of the API asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.http.lookup import own_or_404
from api.jobs.context_window import ContextWindow
from api.jobs.queue_estimates import QueueEstimates
from api.streaming.hub import StreamHub
from api.streaming.reader import QueuedReader
from shared.config.models.loader import Registry
from shared.domain.errors import Conflict, InvalidRequest, NotFound
from shared.domain.events import Event
from shared.domain.job import Job, JobStatus, is_job_id
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED
from shared.postgres.job_store import Idempotency, JobStore, NewJob
from shared.recovery.terminator import JobTerminator
from shared.redis import keys as redis_keys
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender
from shared.telemetry.metrics import submitted
from shared.telemetry.tracing import NO_TRACES, Traces

logger = logging.getLogger(__name__)


class JobService:
    """Submits, finds, follows, cancels and forgets jobs."""

    def __init__(
        self,
        *,
        registry: Registry,
        store: JobStore,
        logs: EventLog,
        terminator: JobTerminator,
        hints: HintSender,
        streams: StreamHub,
        context: ContextWindow,
        redis: Redis,
        queue_estimates: QueueEstimates,
        traces: Traces = NO_TRACES,
    ) -> None:
        self._registry = registry
        self._store = store
        self._logs = logs
        self._terminator = terminator
        self._hints = hints
        self._streams = streams
        self._context = context
        self._redis = redis
        self.queue_estimates = queue_estimates
        self.traces = traces

    async def submit(self, new: NewJob, idempotency: Idempotency | None = None) -> tuple[Job, bool]:
        """Check a job, commit it, and hint a worker. When this returns, the job is safe.

        False beside the job: it is the one that this idempotency key made before.

        Raises:
            NotFound: there is no such model.
            InvalidRequest: the prompt does not fit the model's context.
            shared.postgres.job_store.KeyReused: the idempotency key was used with another request.
        """
        self._check_model(new.model)
        await self._context.check(new.model, new.request)
        with self.traces.submitting(new.model) as origin:
            job, created = await self._store.insert(replace(new, request_context=origin), idempotency)
        if created:
            submitted(job.model, job.priority)
            logger.info(
                "job=%s model=%s attempt=%d request=%s queued",
                job.id, job.model, job.attempt, job.request_context.request_id,
            )  # fmt: skip
            self._hints.put(Hint(job.id, job.model, job.priority))
            await asyncio.sleep(0)  # the hint goes before the answer is made
        return job, created

    async def count_tokens(self, model: str, request: GenerateRequest) -> int:
        """Tokens of a prompt.

        Raises:
            NotFound: there is no such model.
            InvalidRequest: this process cannot count for the model, or its template refuses the prompt.
        """
        self._check_model(model)
        return await self._context.count(model, request)

    async def get(self, job_id: str, project_id: int) -> Job:
        """A job of a project.

        Raises:
            NotFound: there is none, or it is another project's.
        """
        return await own_or_404("job", job_id, project_id, is_job_id, self._store.get)

    async def page(
        self, project_id: int, *, status: JobStatus | None, model: str | None, limit: int, after: str | None
    ) -> list[Job]:
        """A project's jobs, newest first.

        Raises:
            InvalidRequest: `after` is no job's id.
        """
        if after is not None and not is_job_id(after):
            raise InvalidRequest(f"after: must be a job's id, got {after[:64]!r}", param="after")
        return await self._store.page(project_id, status=status, model=model, limit=limit, after=after)

    def follow(
        self, job_id: str, after: int = 0, queued: QueuedReader | None = None, *, new: bool = False
    ) -> AsyncIterator[list[Event]]:
        """A job's events after a cursor, in batches, up to and with its last; see `Streams.follow`."""
        return self._streams.follow(job_id, after, queued, new=new)

    async def check_cursor(self, job: Job, after: int, param: str) -> bool:
        """Whether anything can follow a cursor: not after the last event of a job that has ended.

        Raises:
            InvalidRequest: the cursor, which was given as `param`, is beyond the last event.
        """
        if not after:
            return True
        last = await self._streams.last_seq(job.id)
        told = last > 0 or job.attempt == 0  # a started job without events: Redis has lost them for now
        if told and after > last:
            raise InvalidRequest(f"{param}: {after} is beyond the job's last event, {last}", param=param)
        return not (job.status.terminal and after == last)

    async def finished(self, job_id: str, project_id: int) -> Job:
        """Wait for a job's end."""
        await self._streams.ended(job_id)
        return await self.get(job_id, project_id)

    async def cancel(self, job_id: str, project_id: int) -> Job:
        """Cancel a job: at once while it waits, through its worker while it runs. Again: no change."""
        job = await self.get(job_id, project_id)
        while not job.status.terminal:
            if job.status is JobStatus.QUEUED:
                if await self._terminator.end(job, JobStatus.CANCELLED, CANCELLED):
                    return await self.get(job_id, project_id)
            elif (worker := await self._store.mark_cancelling(job_id)) is not None:
                logger.info(
                    "job=%s model=%s attempt=%d worker=%s request=%s cancelling",
                    job.id, job.model, job.attempt, worker, job.request_context.request_id,
                )  # fmt: skip
                await self._tell_worker(worker, job_id)
                return await self.get(job_id, project_id)
            job = await self.get(job_id, project_id)
        return job

    async def delete(self, job_id: str, project_id: int) -> None:
        """Forget a finished job's input and output.

        Raises:
            Conflict: the job has not ended.
        """
        job = await self.get(job_id, project_id)
        if not await self._store.delete(job_id, project_id):
            raise Conflict(f"The job is {job.status.value}; cancel it first.")
        try:
            await self._logs.delete(job_id)
        except (RedisError, OSError) as error:
            logger.warning("job=%s its log stays in Redis until it expires: %s", job_id, error)

    def _check_model(self, model: str) -> None:
        if model not in self._registry:
            known = ", ".join(self._registry.models)
            raise NotFound(
                f"The model `{model}` does not exist; there are: {known}.", param="model", code="model_not_found"
            )

    async def _tell_worker(self, worker: str, job_id: str) -> None:
        try:
            await self._redis.publish(redis_keys.worker_channel(worker), job_id)
        except (RedisError, OSError) as error:
            logger.warning("job=%s its worker will see the cancel at its next heartbeat: %s", job_id, error)
