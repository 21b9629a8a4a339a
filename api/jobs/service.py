"""Operations on jobs, shared by all API dialects."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import fields, replace
from decimal import Decimal

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.cache.response_cache import ResponseCache
from api.http.lookup import own_or_404
from api.jobs.admission import Admission
from api.jobs.queue_estimates import QueueEstimates
from api.keys.principal import Principal
from api.limits.limiter import Taken
from api.limits.settlement import Settlement
from api.streaming.hub import StreamHub
from api.streaming.reader import QueuedReader
from shared.domain.errors import BudgetExceeded, Conflict, HeadraceError, InvalidRequest, QuotaExceeded, RateLimited
from shared.domain.events import Event
from shared.domain.job import Choice, Job, JobStatus, JobSummary, is_job_id
from shared.domain.new_job import Idempotency, NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.result import CANCELLED
from shared.postgres.job_store import JobStore
from shared.recovery.followers import report_changes
from shared.recovery.terminator import JobTerminator
from shared.redis import keys as redis_keys
from shared.redis.carried_requests import carried
from shared.redis.event_log import EventLog
from shared.redis.job_queue import HintSender
from shared.runtime.outages import is_database_outage
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing import NO_TRACES, Traces

logger = logging.getLogger(__name__)

# How often a job tries to follow an open one with the same request, or to get its answer: that may end in between.
COALESCE_TRIES = 3
# How many of the next windows of its budgets a background job may wait for.
HOLD_TRIES = 3
# How many cheaper models a job may try: others may use up the room of the one that was chosen.
DOWNGRADE_TRIES = 3
TIMER_FACTOR, TIMER_S = 1.001, 0.05


class JobService:
    """Submits, looks up, follows, cancels and deletes jobs."""

    def __init__(
        self,
        *,
        admission: Admission,
        store: JobStore,
        logs: EventLog,
        terminator: JobTerminator,
        hints: HintSender,
        hub: StreamHub,
        redis: Redis,
        queue_estimates: QueueEstimates,
        metrics: Metrics,
        traces: Traces = NO_TRACES,
        cache: ResponseCache | None = None,
        settlement: Settlement | None = None,
        starts_early: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`settlement` gets what jobs have taken from rate limits. `starts_early`: whether workers may start a model's
        new jobs before their claims are committed."""
        self._admission = admission
        self._cache = cache
        self._store = store
        self._logs = logs
        self._terminator = terminator
        self._hints = hints
        self._hub = hub
        self._redis = redis
        self._metrics = metrics
        self._settlement = settlement
        self._starts_early = starts_early
        self.queue_estimates = queue_estimates
        self.traces = traces

    async def submit(
        self,
        principal: Principal,
        new: NewJob,
        idempotency: Idempotency | None = None,
        *,
        background: bool = False,
        taken: list[Taken] | None = None,
    ) -> tuple[Job, bool]:
        """Admit a job, commit it, and send the workers a hint. When this returns, the job is durable.

        A job that the response cache answers has ended by then, and is returned with its output. One whose answer an
        open job is to get follows that job. The second value is False if an earlier call with this idempotency key
        created the job. `background`: no client waits for the job, so a budget may hold it until its next window.
        `taken` gets what the job has taken from the rate limits if this call has created it.

        Raises:
            Forbidden, NotFound, InvalidRequest, QuotaExceeded: as `Admission.admit` and `reserve`.
            BudgetExceeded: a hard budget has no room for the job, nor for one with a cheaper model, if it allows that.
            KeyReused: the idempotency key was used with a different request.
        """
        try:
            admitted = await self._admission.admit(principal, new, self)
            return await self._submit_admitted(principal, admitted, idempotency, background=background, taken=taken)
        except BudgetExceeded as error:
            refusal = error
        tries = DOWNGRADE_TRIES
        while refusal.downgrades and tries:
            tries -= 1
            try:
                admitted = await self._admission.downgrade(principal, new, refusal, self)
                job, created = await self._submit_admitted(
                    principal, admitted, idempotency, background=background, taken=taken
                )
            except BudgetExceeded as error:
                refusal = error
            else:
                self._metrics.budget_downgraded_jobs.inc(created)
                return job, created
        if (existing := await self._created_earlier(new, idempotency)) is not None:
            return existing, False
        self._metrics.budget_rejections.labels(refusal.scope.value).inc()
        raise refusal

    async def _created_earlier(self, new: NewJob, idempotency: Idempotency | None) -> Job | None:
        """The job of an earlier call with this idempotency key: a retry receives it, although there may be no room for
        another one."""
        return None if idempotency is None else await self._store.find_created(new.owner, idempotency)

    async def _submit_admitted(
        self,
        principal: Principal,
        new: NewJob,
        idempotency: Idempotency | None,
        *,
        background: bool,
        taken: list[Taken] | None,
    ) -> tuple[Job, bool]:
        """Commit an admitted job; raises as `submit`."""
        if self._cache is not None:
            new = await self._cache.admit(principal, new)
        with self.traces.submitting(new.model) as request_context:
            if request_context is not new.request_context:
                new = replace(new, request_context=request_context)
            try:
                return await self._create_within_limits(new, idempotency, background=background, kept=taken)
            except QuotaExceeded:
                if (existing := await self._created_earlier(new, idempotency)) is None:
                    raise
                return existing, False

    async def _create_within_limits(
        self, new: NewJob, idempotency: Idempotency | None, *, background: bool, kept: list[Taken] | None
    ) -> tuple[Job, bool]:
        """Take what a job needs from the rate limits, and commit it; raises as `submit`."""
        taken = await self._admission.take_rates(new)
        if self._settlement is None or not taken.parts:
            return await self._create(new, idempotency, background=background)
        try:
            delayed = replace(new, delay_s=taken.delay_s)
            job, created = await self._create(delayed, idempotency, background=background)
        except HeadraceError as error:  # after other errors, the job may have been committed
            self._settlement.give_back(taken)
            if isinstance(error, BudgetExceeded) and error.downgrades:
                await self._settlement.apply()  # a cheaper model takes it again at once
            raise
        if created:
            self._settlement.job_created(job, taken)
            if kept is not None:
                kept.append(taken)
        else:
            self._settlement.give_back(taken)
        return job, created

    def check_requests(self, owner: Owner, model: str, number: int) -> None:
        """Check that the rate limits allow `number` requests at the same time; raises as `Admission.check_requests`."""
        self._admission.check_requests(owner, model, number)

    async def refused_together(self, refused: Sequence[RateLimited], taken: Sequence[Taken]) -> RateLimited:
        """The error of several jobs of one call, of which some were refused; the others have `taken` their part."""
        return await self._admission.refused_together(refused, taken)

    def give_back_requests(self, taken: Sequence[Taken]) -> None:
        """Return to the rate limits the requests of jobs whose call has failed."""
        if self._settlement is not None:
            for one in taken:
                self._settlement.give_back_requests(one)

    async def _create(self, new: NewJob, idempotency: Idempotency | None, *, background: bool) -> tuple[Job, bool]:
        """Commit an admitted job; raises as `submit`."""
        looked_up_at = time.monotonic()
        if (answered := await self._answer(new, idempotency)) is not None:
            return answered
        reservation = await self._admission.reserve(new)
        try:
            self._admission.require_model(new.model)
            await self._admission.remember(new)
            job, created = await self._insert_within_budgets(new, idempotency, looked_up_at, background=background)
        finally:
            reservation.release()
        if created and not job.status.terminal:
            self._metrics.submitted(job.model, job.priority)
            self._metrics.cache_decided(job)
            logger.info(
                "job=%s model=%s attempt=%d request=%s %s",
                job.id, job.model, job.attempt, job.request_context.request_id,
                "queued" if job.follows is None else f"follows {job.follows}",
            )  # fmt: skip
            self.queue_estimates.created(job)
            if job.follows is not None:
                await self._settle(job.id)
            elif job.not_before is not None:
                self._send_later(
                    Hint(job.id, job.model, job.priority), (job.not_before - job.created_at).total_seconds()
                )
            else:
                request = None
                if self._starts_early(job.model):
                    request = carried(job, start_within_s=new.start_within_s, stored=new.stored_request())
                self._hints.put_first(Hint(job.id, job.model, job.priority), request)
                await asyncio.sleep(0)  # send the hint before building the response
        return job, created

    def _send_later(self, hint: Hint, delay_s: float) -> None:
        """Send the hint of a job when it can be claimed. If this process ends before that, workers find its row."""
        # By then, the database's clock has reached `not_before`.
        asyncio.get_running_loop().call_later(delay_s * TIMER_FACTOR + TIMER_S, self._hints.put, hint)

    async def is_queue_paused(self, model: str) -> bool:
        """Whether an operator has paused the queue of a model, so that its jobs wait."""
        return await self.queue_estimates.is_queue_paused(model)

    async def _insert_within_budgets(
        self, new: NewJob, idempotency: Idempotency | None, looked_up_at: float, *, background: bool
    ) -> tuple[Job, bool]:
        """Commit a job if the budgets have room for it, or else to be started when they have; raises as `submit`."""
        try:
            return await self._insert(new, idempotency, looked_up_at)
        except BudgetExceeded as error:
            refusal = error
        for _ in range(HOLD_TRIES):
            held = await self._admission.hold(new, refusal) if background else None
            if held is None:
                break
            try:
                created = await self._store.insert(held, idempotency)
            except BudgetExceeded as error:
                refusal = error
            else:
                self._metrics.budget_held_jobs.inc()
                return created
        raise refusal

    async def _insert(self, new: NewJob, idempotency: Idempotency | None, looked_up_at: float) -> tuple[Job, bool]:
        """Commit a job that the response cache had no answer for: it runs, or follows a job with the same request.

        One that a limit delays does neither lead nor follow: jobs that no limit delays would wait for it.
        """
        if new.cache_key is not None and new.delay_s is None:
            for _ in range(COALESCE_TRIES):
                if (coalesced := await self._store.coalesce(new, idempotency, looked_up_at=looked_up_at)) is not None:
                    return coalesced
                looked_up_at = time.monotonic()
                if (answered := await self._answer(new, idempotency)) is not None:
                    return answered
        return await self._store.insert(new, idempotency)

    async def _settle(self, follower: str) -> None:
        """End or release a new follower, if its leader has ended before the follower was committed."""
        try:
            report_changes(await self._store.settle_follower(follower), self._hints.put, self._metrics)
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("job=%s cannot be released, leaving it to the sweeper: %s", follower, error)

    async def settle_all(self, *leaders: str) -> None:
        """End or release all followers of jobs that have ended."""
        while changes := await self._store.settle(leaders):
            report_changes(changes, self._hints.put, self._metrics)

    async def _answer(self, new: NewJob, idempotency: Idempotency | None) -> tuple[Job, bool] | None:
        """Commit a job with the answer that the response cache has for it; None if there is none."""
        if self._cache is None or new.cache_key is None:
            return None
        self._admission.require_model(new.model)
        answered = await self._cache.answer(new, idempotency)
        if answered is not None and answered[1]:
            job = answered[0]
            await self._admission.remember(new)
            self._metrics.submitted(job.model, job.priority)
            self._metrics.cache_decided(job)
            logger.info(
                "job=%s model=%s attempt=%d request=%s %s from the response cache source=%s",
                job.id, job.model, job.attempt, job.request_context.request_id, job.status.value,
                job.decisions.cache.source if job.decisions.cache is not None else None,
            )  # fmt: skip
        return answered

    async def get(self, job_id: str, project_id: int) -> Job:
        """Return a job of a project.

        Raises:
            NotFound: it does not exist or belongs to another project.
        """
        return await own_or_404("job", job_id, project_id, is_job_id, self._store.get)

    async def summary(self, job_id: str, project_id: int) -> JobSummary:
        """Return a job of a project without its request and its output.

        Raises:
            NotFound: as `get`.
        """
        return await own_or_404("job", job_id, project_id, is_job_id, self._store.summary)

    async def result(self, job_id: str, project_id: int) -> tuple[JobSummary, tuple[Choice, ...]]:
        """Return a job of a project without its request, and its output.

        Raises:
            NotFound: as `get`.
        """
        return await own_or_404("job", job_id, project_id, is_job_id, self._store.result)

    def follow(self, job_id: str, after: int = 0, queued: QueuedReader | None = None) -> AsyncIterator[list[Event]]:
        """Yield a job's events after a cursor, in batches up to its last, and keepalives; see `StreamHub.follow`."""
        return self._hub.follow(job_id, after, queued)

    def follow_submitted(self, job: JobSummary, *, created: bool) -> AsyncIterator[list[Event]]:
        """Yield the events of a job from `submit`, whose second value is `created`, as `follow` does."""
        if job.status.terminal:
            return self._hub.replay(job.id, job.log_start if isinstance(job, Job) else None)
        return self._hub.follow(job.id, new=created and job.follows is None)

    async def check_cursor(self, job: JobSummary, after: int, param: str) -> bool:
        """Whether events can follow a cursor; False if it is the last event of an ended job.

        Raises:
            InvalidRequest: the cursor, from the parameter `param`, is beyond the last event.
        """
        if not after:
            return True
        last = await self._hub.last_seq(job.id)
        if not last and job.begins_with is not None:
            last = await self._hub.last_seq(job.begins_with)
        # Redis has lost the log of a started job without events.
        known = last > 0 or (job.attempt == 0 and job.begins_with is None)
        if known and after > last:
            raise InvalidRequest(f"{param}: {after} is beyond the job's last event, {last}", param=param)
        return not (job.status.terminal and after == last)

    async def wait_for_end(self, job_id: str) -> None:
        """Wait for a job to end."""
        await self._hub.wait_for_end(job_id)

    async def ended(self, job: Job) -> Job:
        """Wait for a job from `submit` to end, and return it with its output. Its request is not read again."""
        if job.status.terminal:
            return job
        await self.wait_for_end(job.id)
        summary, output = await self.result(job.id, job.owner.project_id)
        values = {field.name: getattr(summary, field.name) for field in fields(summary)}
        return Job(**values, request=job.request, output=output)

    async def charge(self, jobs: Sequence[JobSummary]) -> Decimal | None:
        """What ended jobs are charged together, in dollars. None if it is not known, or the database is unavailable: an
        answer is complete without it."""
        try:
            return await self._store.charge([job.id for job in jobs])
        except Exception as error:
            if not is_database_outage(error):
                raise
            logger.warning("job=%s cannot read its charge: %s", jobs[0].id, error)
            return None

    async def cancel(self, job_id: str, project_id: int) -> JobSummary:
        """Cancel a job: immediately while it is queued, through its worker while it runs. Idempotent."""
        job = await self.summary(job_id, project_id)
        while not job.status.terminal:
            if job.status is JobStatus.QUEUED:
                if await self._terminator.end(job, JobStatus.CANCELLED, CANCELLED):
                    await self._drop_carried(job_id)
                    return await self.summary(job_id, project_id)
            elif (worker := await self._store.mark_cancelling(job_id)) is not None:
                logger.info(
                    "job=%s model=%s attempt=%d worker=%s request=%s cancelling",
                    job.id, job.model, job.attempt, worker, job.request_context.request_id,
                )  # fmt: skip
                await self._notify_worker(worker, job_id)
                return await self.summary(job_id, project_id)
            job = await self.summary(job_id, project_id)
        return job

    async def delete(self, job_id: str, project_id: int) -> None:
        """Delete an ended job's input and output, also in the request log, and the summaries of its conversation.

        Raises:
            Conflict: the job has not ended.
        """
        job = await self.summary(job_id, project_id)
        if job.may_lead and job.status.terminal:
            await self.settle_all(job_id)  # without its answer, they would all be run
        if not (deleted := await self._store.delete(job_id, project_id)):
            raise Conflict(f"The job is {job.status.value}; cancel it first.")
        for name in deleted:
            try:
                await self._logs.delete(name)
            except (RedisError, OSError) as error:
                logger.warning("job=%s cannot delete its log; it remains until it expires: %s", name, error)

    async def _drop_carried(self, job_id: str) -> None:
        """Let no worker start a job early that was cancelled while it was queued."""
        try:
            await self._redis.delete(redis_keys.carried_request(job_id))
        except (RedisError, OSError) as error:
            logger.warning("job=%s cannot delete its request, which expires: %s", job_id, error)

    async def _notify_worker(self, worker: str, job_id: str) -> None:
        try:
            await self._redis.publish(redis_keys.worker_channel(worker), job_id)
        except (RedisError, OSError) as error:
            logger.warning("job=%s cannot notify the worker; it will cancel at its next heartbeat: %s", job_id, error)
