"""One attempt of a job: it generates, publishes and ends the job, or returns it to the queue."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import TypeVar

from shared.domain.conversation import Conversation
from shared.domain.errors import ContentRefused, ContextExceeded, ErrorCode, InvalidRequest, UnreadableRow
from shared.domain.events import Delta, Event, EventType, UpstreamState, seq_before
from shared.domain.fallback import FallbackReason, candidates_of, may_have_output, next_model
from shared.domain.job import AttemptOutcome, Failure, Job, JobStatus, Usage
from shared.domain.priorities import Hint, to_front
from shared.domain.result import CANCELLED, LATE, JobResult, build_result, cannot_continue, exhausted
from shared.domain.suspects import Verdict, kills_late
from shared.domain.transcript import Transcript
from shared.postgres.claim_store import ClaimStore
from shared.postgres.followers import Ended
from shared.postgres.rerouting import Move
from shared.recovery.followers import read_beginning, report_changes
from shared.redis.conversation_models import ConversationModels
from shared.redis.event_log import FENCED, Append, EventLog, Fenced
from shared.runtime.outages import is_outage
from shared.telemetry.metrics import Metrics
from shared.telemetry.tracing import NO_TRACES, AttemptTrace, Traces
from workers.engines.base import (
    NO_PRIOR,
    CannotContinue,
    Engine,
    EngineDead,
    EngineError,
    Prior,
    PromptInfo,
    Restarted,
    RunEnded,
    UpstreamBusy,
    UpstreamError,
)
from workers.engines.resume import Resume
from workers.execution.compilations import Compilations
from workers.execution.deferral import deferral_s, timer_s
from workers.execution.job_metrics import JobMetrics
from workers.execution.log_writer import LogBuffer, LogWriter
from workers.execution.upstream_cancellation import cancel_requests

logger = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_S = (0.1, 2.0)
# Answers of a job by which its conversation is recognized.
MAX_NAMED = 8


class InterruptReason(StrEnum):
    """Why a running attempt was stopped from outside."""

    CANCELLED = "cancelled"
    DEADLINE_EXCEEDED = "deadline exceeded"
    # The worker drains, or restarts its engine.
    REQUEUED = "requeued"
    # A batch job makes room for an urgent one.
    PREEMPTED = "preempted"
    CLAIM_LOST = "claim lost"


# Jobs that were stopped for these reasons end, but not the generation if others follow them.
_HANDED_OVER = (InterruptReason.CANCELLED, InterruptReason.DEADLINE_EXCEEDED)
# Attempts that were stopped for these reasons return their jobs to the queue.
_REQUEUE_OUTCOMES = {
    InterruptReason.REQUEUED: AttemptOutcome.HANDED_BACK,
    InterruptReason.PREEMPTED: AttemptOutcome.SET_ASIDE,
}


@dataclass(frozen=True, slots=True)
class JobAtDeath:
    """A job that an engine ran when it died; see `shared.domain.suspects.Casualty`."""

    job_id: str
    suspect: bool
    exposures: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptContext:
    """What the attempts of one worker share.

    `on_engine_death` is called from the event loop, once for each job that finds the engine dead. Without
    `compilations`, structured outputs are not compiled here. Of the opaque parts of a request, the engine gets those of
    `provider`, and of a job that has moved here, at most `max_output` tokens are generated: admission has applied the
    limits of its first model. `conversations` get to know which model takes over a job, and its answer. `revision` is
    that of the model's entry (`Spec.revision`).
    """

    worker: str
    engine: Engine
    store: ClaimStore
    logs: EventLog
    log_writer: LogWriter
    log_ttl_s: int
    max_attempts: int
    send: Callable[[Hint], None]
    on_engine_death: Callable[[], None]
    metrics: Metrics
    traces: Traces = NO_TRACES
    compilations: Compilations | None = None
    provider: str | None = None
    max_output: int | None = None
    conversations: ConversationModels | None = None
    revision: str | None = None


class JobAttempt:
    """One attempt of a job that this worker has claimed."""

    def __init__(
        self,
        job: Job,
        context: AttemptContext,
        judge: Callable[[JobAttempt], Verdict],
        on_cleared: Callable[[], None],
        on_handover: Callable[[JobAttempt, str], None] = lambda _attempt, _earlier: None,
    ) -> None:
        """`judge` decides what the death of the engine means for the job; `on_cleared` is called once it is no suspect
        any more, and `on_handover`, with the id of the earlier job, when the generation continues for another job."""
        request = job.request.for_provider(context.provider)
        if context.max_output is not None and job.decisions.has_moved:
            request = request.with_output_of(context.max_output)
        self.job = replace(job, request=request)
        # On the monotonic clock, as is `_submitted_at`, when the engine received the request.
        self.claimed_at = time.monotonic()
        self.interrupt_reason: InterruptReason | None = None
        self._submitted_at = 0.0
        self._context = context
        self._judge = judge
        self._on_cleared = on_cleared
        self._on_handover = on_handover
        self._handover: asyncio.Task[JobStatus | None] | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._suspect = job.suspect
        self._clearing: asyncio.Task[None] | None = None
        self._abandoning: asyncio.Task[None] | None = None
        self._generated = False
        # Whether readers may have seen output that the engine cannot continue.
        self._stuck = False
        self._log = LogBuffer(job.id, job.attempt, context.metrics, job.model, counted=job.request.token_counts)
        self._transcript = Transcript(job.request.sampling.n)
        self._trace = AttemptTrace()
        self._metrics = JobMetrics(context.metrics, job)
        if request is not job.request:
            self._metrics.parts_dropped(job.request.opaque_parts - request.opaque_parts)
        self._generation: asyncio.Task[None] | None = None
        self._prompt = PromptInfo(0)
        self._reported_usage: Usage | None = None
        # Tokens that this attempt continues from, and tokens that each earlier attempt generated, from the log.
        self._prior_tokens = 0
        # How often the output was discarded.
        self._restarts = 0
        # Whether the upstream's request of an earlier attempt is resumed, instead of a new one sent.
        self._resumes_request = False
        # Whether the upstream's request in the transcript has ended, so that there is nothing to cancel.
        self._run_ended = False
        self._earlier_tokens: dict[int, int] = {}
        self._first_token_at: datetime | None = None

    @property
    def engine(self) -> Engine:
        return self._context.engine

    @property
    def active(self) -> bool:
        """Whether it generates or is about to: it has not been stopped, and the engine has not finished."""
        return self.interrupt_reason is None and not (self._generation is not None and self._generation.done())

    @property
    def in_engine(self) -> bool:
        """Whether the engine has its request, or had it when it died."""
        if self._generation is None or not self._submitted_at:
            return False
        return not self._generation.done() or self._died

    @property
    def silent(self) -> bool:
        """Whether this attempt has not generated a token."""
        return not self._generated

    @property
    def usage(self) -> Usage:
        """The usage so far: as the upstream reported it, if it did; otherwise as counted here."""
        return self._usage()

    @property
    def resumed_after(self) -> int:
        """The tokens of earlier attempts, if the upstream's request that generated them was resumed."""
        return self._prior_tokens if self._resumes_request else 0

    @property
    def casualty(self) -> JobAtDeath:
        """The job, for the judgement of a death of its engine."""
        return JobAtDeath(self.job.id, self._suspect, self.job.exposures)

    @property
    def _died(self) -> bool:
        """Whether the generation has ended with the death of the engine."""
        generation, engine = self._generation, self._context.engine
        if generation is None or not generation.done():
            return False
        if generation.cancelled():
            return self.interrupt_reason is InterruptReason.REQUEUED and engine.dead
        return isinstance(generation.exception(), EngineDead)

    async def run(self) -> JobStatus | None:
        """Run the attempt. Returns the job's final status; None if it was requeued or the claim was lost."""
        self._metrics.claimed()
        self._trace = self._context.traces.claimed(self.job)
        if not await self._open_log():
            return None
        await self._generate()
        if self._handover is not None:
            ended = await self._handover
            if ended is not None:
                await self._clean_up()
                return ended
        return await self._finish()

    def stop(self, reason: InterruptReason) -> None:
        """Stop the attempt: the engine aborts the request, and the output so far is kept. The first reason counts.

        If other jobs follow a job that was cancelled or is late, the request continues for the first of them.
        """
        if self.interrupt_reason is not None:
            return
        if reason in _HANDED_OVER and self.job.may_lead and self._generation is not None and self.active:
            if not self.handing_over:
                self._handover = asyncio.create_task(self._hand_over(reason), name=f"handover-{self.job.id}")
            return
        self._abort(reason)

    async def _open_log(self) -> bool:
        """Take over the log of earlier attempts, and resume after their last token if that is exact.

        Returns False if a later attempt owns the log.
        """
        job, log = self.job, self._log
        if job.attempt > 1 or job.continues is not None:
            try:
                events = await self._retry(lambda: self._context.logs.take_over(job.id, job.attempt), "log")
                if not events and job.continues is not None:
                    events = await self._begin_with_leader()
            except Fenced:
                return False
            before = seq_before(job.attempt, after_leader=job.continues is not None)
            log.resume_after(events, events[-1].seq if events else before)
            self._transcript = await Transcript.of(events, job.request.sampling.n, model=job.model)
            self._prior_tokens = self._transcript.tokens
            self._earlier_tokens = self._transcript.tokens_by_attempt
            if not events:
                # Attempts that were deferred, which are not in the history, and those of other models had no output.
                had_output = any(attempt.outcome != AttemptOutcome.REROUTED for attempt in job.attempts[:-1])
                if had_output or job.continues:
                    await self._restart()  # the log is lost, with its output and its readers
            elif not (self._transcript.empty or self._complete):
                mode = self._context.engine.resume_mode(job.request, self._prior)
                self._stuck = mode is Resume.NONE and await self._shown()
                self._resumes_request = mode is Resume.EXACT and self._transcript.upstream is not None
                if mode <= Resume.RESTART and not self._stuck:
                    await self._restart()
        log.event(EventType.STARTED, self._started(job.attempt))
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s started, after %d tokens",
            job.id, job.model, job.attempt, self._context.worker, job.request_context.request_id, self._prior_tokens,
        )  # fmt: skip
        return True

    def _started(self, attempt: int) -> dict[str, object]:
        started: dict[str, object] = {"attempt": attempt, "worker": self._context.worker}
        if self.job.decisions.route is not None:
            started["model"] = self.job.model
        return started | {"fingerprint": self._context.engine.fingerprint}

    async def _begin_with_leader(self) -> list[Event]:
        """Begin the log with that of the job that this one followed, whose events its readers have received.

        Returns its events; none if their tokens, with which the engine would continue, are lost.

        Raises:
            Fenced: a later attempt owns the log.
        """
        job, logs = self.job, self._context.logs
        beginning = await self._retry(lambda: read_beginning(logs, self._context.store, job), "log")
        if not (beginning.exact and beginning.events):
            return []
        whole = Append(job.id, job.attempt, beginning.events)
        if await self._retry(lambda: logs.replace(whole), "log") == FENCED:
            raise Fenced
        return beginning.events

    @property
    def _complete(self) -> bool:
        """Whether every choice has its finish reason."""
        return not self._transcript.empty and all(self._transcript.finish_reasons)

    @property
    def _prior(self) -> Prior:
        """What earlier attempts emitted, as the engine needs it."""
        transcript = self._transcript
        # Attempts of versions that did not report a fingerprint count as comparable: a difference shows then.
        comparable = transcript.fingerprints - {None} <= {self._context.engine.fingerprint}
        return Prior(transcript.deltas(), comparable, transcript.upstream, transcript.cursor)

    @property
    def _running_upstream(self) -> UpstreamState | None:
        """The upstream's request in the transcript, unless it has ended."""
        return None if self._run_ended else self._transcript.upstream

    async def _shown(self) -> bool:
        """Whether a reader may have seen the output so far."""
        return await self._retry(lambda: self._context.logs.shown(self.job.id), "log")

    async def _restart(self) -> None:
        """Discard the output so far, here and at the readers, and the upstream's request that generates it."""
        await self._drop_inherited()
        upstream = self._running_upstream
        self._restarts += 1
        self._transcript.clear()
        self._prior_tokens, self._resumes_request, self._run_ended = 0, False, False
        self._log.discard_pending()
        self._log.event(EventType.RESTARTED, {"attempt": self.job.attempt})
        if upstream is not None:
            await self._abandon(upstream)
            await self._cancel_upstreams()

    async def _drop_inherited(self) -> None:
        """Let all tokens count for this job, although its answer began with those of a job that it followed."""
        while (job := self.job).decisions.inherits:
            await self._retry(partial(self._context.store.drop_inherited, job.id, job.attempt), "row")
            if self.job is job:  # the generation was not handed over meanwhile
                self.job = replace(job, decisions=job.decisions.without_inherited())
                self._metrics = JobMetrics(self._context.metrics, self.job)

    async def _generate(self) -> None:
        """Generate in a separate task, so that a stop cancels that task and nothing else."""
        if self.interrupt_reason is None:
            self._generation = asyncio.create_task(self._publish_output(), name=f"generate-{self.job.id}")
        # After the task is created: submitting to the engine takes longer than publishing the start.
        self._context.log_writer.schedule(self._log)
        if self._generation is None:
            return
        self._watch_deadline()
        await asyncio.wait([self._generation])

    def _watch_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.job.finish_before is not None:
            left_s = (self.job.finish_before - self._database_now()).total_seconds()
            self._deadline = asyncio.get_running_loop().call_later(
                max(0.0, left_s), self.stop, InterruptReason.DEADLINE_EXCEEDED
            )

    async def _publish_output(self) -> None:
        job = self.job
        if self._complete:
            return  # an earlier attempt ended after its last token, before it wrote the row
        if self._stuck:
            raise CannotContinue
        if self._context.compilations is None:
            await self._submit(lambda: None)
        else:
            async with self._context.compilations.turn(job) as compiled:
                await self._submit(compiled)

    async def _submit(self, compiled: Callable[[], None]) -> None:
        """Generate the rest of the answer. `compiled` is called at the engine's first output."""
        engine = self._context.engine
        if engine.dead:
            raise EngineDead
        self._submitted_at = time.monotonic()
        self._metrics.submitted(self._submitted_at - self.claimed_at)
        self._trace.generation_started(self._database_now(), self._prior_tokens)
        try:
            await self._relay(self._prior, compiled)
        except CannotContinue:
            if await self._shown():
                raise
            await self._restart()
            await self._relay(NO_PRIOR, compiled)

    async def _relay(self, prior: Prior, compiled: Callable[[], None]) -> None:
        """Publish what the engine emits after `prior`."""
        job = self.job
        outputs = self._context.engine.generate(f"{job.id}-{job.attempt}", job.request, prior)
        async with aclosing(outputs):
            async for item in outputs:
                compiled()
                match item:
                    case PromptInfo():
                        self._prompt = item
                    case Usage():
                        self._reported_usage = item
                    case Restarted():
                        await self._restart()
                    case RunEnded():
                        self._run_ended = True
                    case UpstreamState():
                        self._resumes_request = False
                        earlier = self._running_upstream
                        self._transcript.upstream, self._run_ended = item, False
                        self._log.upstream(item)
                        self._context.log_writer.schedule(self._log)
                        if earlier is not None and earlier.id != item.id:  # the engine could not resume it
                            await self._abandon(earlier)
                    case _:
                        self._publish(item)

    def _publish(self, delta: Delta) -> None:
        if self._first_token_at is None:
            self._first_token_at = self._database_now()
            delta.prompt_tokens = self._prompt.prompt_tokens or None
            is_first_of_job = not any(self._earlier_tokens.values())
            self._metrics.first_token(
                time.monotonic() - self._submitted_at, self._first_token_at if is_first_of_job else None
            )
            self._trace.first_token(self._first_token_at, self._prompt.prompt_tokens, self._prompt.cached_tokens)
        if delta.tokens and not self._generated:
            self._generated = True
            # The first token of a job that may kill late does not clear it.
            cleared = self._suspect and not kills_late(self.job.exposures, self._context.max_attempts)
            if cleared or self.job.deferred_since is not None:
                self._clearing = asyncio.create_task(self._record_token(cleared), name=f"token-{self.job.id}")
        if delta.opaque:
            delta.opaque = self._transcript.placed(delta)
        self._transcript.add(delta)
        self._log.delta(delta)
        self._context.log_writer.schedule(self._log)

    async def _record_token(self, cleared: bool) -> None:
        """Record that the job is not deferred any more and, if `cleared`, no suspect."""
        job, store = self.job, self._context.store
        await self._retry(lambda: store.record_token(job.id, job.attempt, cleared=cleared), "row")
        if cleared:
            self._suspect = False
            self._on_cleared()

    async def _finish(self) -> JobStatus | None:
        """End or requeue the job, depending on how the generation ended."""
        assert self._generation is None or self._generation.done()
        death = self._judge(self) if self._died and self._submitted_at else None
        await self._clean_up()
        cancelled = self._generation is None or self._generation.cancelled()
        error = None if self._generation is None or cancelled else self._generation.exception()
        if death is not None:
            logger.error(
                "job=%s the engine died while it ran the job%s", self.job.id, "" if death.charged else " and others"
            )
            self._context.on_engine_death()
            if death.charged and self.job.deaths + 1 >= self._context.max_attempts:
                if await self._reroute(FallbackReason.ATTEMPTS_EXHAUSTED):
                    return None
                return await self._end(JobStatus.FAILED, exhausted(self._context.max_attempts))
            return await self._requeue(AttemptOutcome.ENGINE_LOST, death)
        if isinstance(error, EngineDead):  # it had died before it received the request
            self._context.on_engine_death()
            return await self._requeue(AttemptOutcome.HANDED_BACK)
        if self.interrupt_reason is InterruptReason.CLAIM_LOST:
            return None
        if isinstance(error, UpstreamBusy) and (self._first_token_at is None or self._transcript.upstream is not None):
            return await self._defer(error)
        requeue_outcome = _REQUEUE_OUTCOMES.get(self.interrupt_reason) if self.interrupt_reason is not None else None
        if cancelled and requeue_outcome is not None:
            return await self._requeue(requeue_outcome)
        status, failure = self._status(error)
        reason = self._fallback_reason(error) if status is JobStatus.FAILED else None
        if reason is not None and await self._reroute(reason):
            return None
        return await self._end(status, failure)

    async def _clean_up(self) -> None:
        """Stop the timer of the deadline, and wait for writes that have begun."""
        if self._deadline is not None:
            self._deadline.cancel()
        for task in (self._clearing, self._abandoning):
            if task is not None:
                await task

    def _fallback_reason(self, error: BaseException | None) -> FallbackReason | None:
        """Why another model may do better after this error; None if it would not."""
        match error:
            case ContextExceeded():
                return FallbackReason.CONTEXT_LENGTH
            case ContentRefused():
                return None
            case InvalidRequest():
                return FallbackReason.REFUSED if self.job.decisions.has_moved else None
            case UpstreamBusy():
                return FallbackReason.UPSTREAM_BUSY
            case UpstreamError():
                return FallbackReason.UPSTREAM_ERROR
        return FallbackReason.ENGINE_ERROR

    def _status(self, error: BaseException | None) -> tuple[JobStatus, Failure | None]:
        if isinstance(error, InvalidRequest):
            return JobStatus.FAILED, Failure(ErrorCode.INVALID_REQUEST, error.message, error.param)
        if isinstance(error, CannotContinue) and self.silent and self._prior_tokens:
            return JobStatus.FAILED, cannot_continue(self._prior_tokens)
        if isinstance(error, EngineError):
            return JobStatus.FAILED, Failure(error.code, error.message)
        if error is not None:
            logger.error("job=%s failed unexpectedly", self.job.id, exc_info=error)
            return JobStatus.FAILED, Failure(ErrorCode.ENGINE_ERROR, f"{type(error).__name__}: {error}")
        reasons = self._transcript.finish_reasons
        if not all(reasons):
            if self.interrupt_reason is None:
                return JobStatus.FAILED, Failure(ErrorCode.ENGINE_ERROR, "The engine ended the request too early.")
            is_late = self.interrupt_reason is InterruptReason.DEADLINE_EXCEEDED
            return JobStatus.CANCELLED, LATE if is_late else CANCELLED
        if "length" in reasons or "content_filter" in reasons:
            return JobStatus.INCOMPLETE, None
        return JobStatus.COMPLETED, None

    async def _end(self, status: JobStatus, failure: Failure | None) -> JobStatus | None:
        """Write the result to the row, then append the last event. Returns None if a later attempt owns the job."""
        job, store = self.job, self._context.store
        self._log.seal()
        result, last = await self._result(self._log, status, failure, self._running_upstream)
        route = job.decisions.route
        named = None
        if status.succeeded and route is not None and route.conversation is not None:
            named = asyncio.create_task(self._note_answer(route.route, route.conversation))
        finish = self._retry(lambda: store.finish(job.id, job.attempt, result), "result")
        ended = await asyncio.shield(asyncio.ensure_future(finish))
        if named is not None:
            await named  # before the client gets the last event, and continues the conversation
        if not self._ended(self._log, result, last, ended):
            return None
        if result.upstream is not None:
            await self._cancel_upstreams()
        return status

    async def _note_answer(self, route: str, conversation: str) -> None:
        """Let the next request of a route's conversation find the model by this answer."""
        job, conversations = self.job, self._context.conversations
        choices = self._transcript.choices()[:MAX_NAMED]
        answers = [(choice.text, [call.id for call in choice.tool_calls]) for choice in choices]
        names = Conversation(job.request).answered(route, job.owner, answers)
        if names and conversations is not None:
            await conversations.name(conversation, names)

    def _result(
        self, log: LogBuffer, status: JobStatus, failure: Failure | None, upstream: UpstreamState | None
    ) -> Awaitable[tuple[JobResult, Event]]:
        """The result of the output so far, with these events, and the log's last event."""
        return build_result(
            self.job,
            log.events,
            log.seq + 1,
            status=status,
            output=self._transcript.choices(),
            usage=self._usage(),
            failure=failure,
            first_token_at=self._first_token_at,
            finished_at=self._database_now(),
            outcome=AttemptOutcome(status.value),
            tokens={**self._earlier_tokens, self.job.attempt: self._tokens},
            upstream=upstream,
            revision=self._context.revision,
        )

    def _ended(self, log: LogBuffer, result: JobResult, last: Event, ended: Ended | None) -> bool:
        """Report that the result was written, and append the last event. False: a later attempt owns the job."""
        job, context, usage = self.job, self._context, result.usage
        if ended is None:
            logger.warning("job=%s attempt=%d is no longer owned by this worker; result dropped", job.id, job.attempt)
            self._metrics.result_fenced()
            return False
        report_changes(ended.followers, context.send, context.metrics)
        outcome = AttemptOutcome(result.status.value)
        self._metrics.job_ended(result)
        self._metrics.attempt_ended(outcome)
        self._trace.ended(result.finished_at, outcome, usage.prompt_tokens, self._tokens)
        log.close(last, context.log_ttl_s)
        context.log_writer.schedule(log)
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s %s prompt=%d output=%d ms=%d",
            job.id, job.model, job.attempt, context.worker, job.request_context.request_id, result.status.value,
            usage.prompt_tokens, usage.completion_tokens,
            round((result.finished_at - job.created_at).total_seconds() * 1000),
        )  # fmt: skip
        return True

    @property
    def handing_over(self) -> bool:
        """Whether the generation is being handed over to another job."""
        return self._handover is not None and not self._handover.done()

    async def _hand_over(self, reason: InterruptReason) -> JobStatus | None:
        """End a job that was cancelled or is late, and let its generation continue for one of its followers.

        Returns the job's status if it has ended and no follower continues. Otherwise None: a follower's job is this
        attempt's then; or, without followers, this attempt is stopped as usual.
        """
        job, store = self.job, self._context.store
        try:
            if not await self._retry(lambda: store.has_followers(job.id), "row"):
                self._abort(reason)
                return None
            log, upstream, tokens, restarts = (
                self._log, self._running_upstream, self._transcript.tokens, self._restarts
            )  # fmt: skip
            failure = LATE if reason is InterruptReason.DEADLINE_EXCEEDED else CANCELLED
            # What comes from now on is not the job's any more.
            self._log = log.fork()
            self._log.event(EventType.STARTED, self._started(attempt=1))
            result, last = await self._result(log, JobStatus.CANCELLED, failure, None)
            ended = await self._retry(lambda: store.hand_over(job.id, job.attempt, result), "result")
            if not self._ended(log, result, last, ended):
                self._abort(InterruptReason.CLAIM_LOST)
                return None
            successor = await self._successor(ended)
        except BaseException:
            self._abort(reason)
            raise
        if successor is None:  # they have all ended meanwhile
            self._abort(reason)
            if upstream is not None:
                await self._retry(lambda: store.add_cancellation(job.id, job.model, upstream), "row")
                await self._cancel_upstreams()
            return JobStatus.CANCELLED
        has_restarted = self._restarts > restarts
        self._continue_for(successor, 0 if has_restarted else tokens)
        self._on_handover(self, job.id)
        if has_restarted:
            await self._drop_inherited()
        return None

    async def _successor(self, ended: Ended | None) -> Job | None:
        """The follower that was claimed when its leader ended; None if there is none that can be read."""
        store, changes = self._context.store, ended.followers if ended is not None else ()
        claimed = next((change.job_id for change in changes if change.status is JobStatus.IN_PROGRESS), None)
        if claimed is None:
            return None
        try:
            return await self._retry(lambda: store.claimed(claimed), "row")
        except UnreadableRow as error:
            logger.error("job=%s cannot be read, releasing it: %s", claimed, error.reason)
            await self._retry(lambda: store.release_claim(claimed, 1), "row")
            return None

    def _continue_for(self, job: Job, tokens: int) -> None:
        """Continue for another job, whose log begins with the events so far, of `tokens`."""
        context = self._context
        self.job = replace(job, request=job.request.for_provider(context.provider))
        self.claimed_at = time.monotonic()
        self._suspect = False
        self._prior_tokens, self._earlier_tokens = tokens, {}
        self._metrics = JobMetrics(context.metrics, job)
        self._trace = context.traces.claimed(job)
        self._log.assign(job.id, job.attempt)
        context.log_writer.schedule(self._log)
        self._watch_deadline()
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s continues a generation, after %d tokens",
            job.id, job.model, job.attempt, context.worker, job.request_context.request_id, tokens,
        )  # fmt: skip

    def _abort(self, reason: InterruptReason) -> None:
        """Stop the generation; the first reason counts."""
        if self.interrupt_reason is None:
            self.interrupt_reason = reason
        if self._generation is not None:
            self._generation.cancel()

    async def _abandon(self, upstream: UpstreamState) -> None:
        """Note that a request of the upstream is to be cancelled, which the log does not name any more.

        A stop does not interrupt this: nothing else knows of the request.
        """
        self._abandoning = asyncio.create_task(self._note_abandoned(upstream), name=f"abandon-{self.job.id}")
        await asyncio.shield(self._abandoning)

    async def _note_abandoned(self, upstream: UpstreamState) -> None:
        job, context = self.job, self._context
        # The log comes first: otherwise, if this worker died in between, the next attempt would resume a request that
        # is cancelled meanwhile. An attempt that has taken over the log may resume it.
        if await context.log_writer.flush(self._log):
            await self._retry(lambda: context.store.add_cancellation(job.id, job.model, upstream), "row")
        else:
            self.stop(InterruptReason.CLAIM_LOST)

    async def _cancel_upstreams(self) -> None:
        """Cancel the upstream's requests of this job that nothing will resume. If that fails, it is tried again later.

        Requests of other jobs are left to `UpstreamCancellations`: there may be many, and this attempt would wait.
        """
        job, context = self.job, self._context
        try:
            await cancel_requests(context.store, context.engine, context.metrics, job.model, job_id=job.id)
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("job=%s cannot cancel the upstream's request yet: %s", self.job.id, error)

    async def _requeue(self, outcome: AttemptOutcome, death: Verdict | None = None) -> JobStatus | None:
        """Return the job to the queue with its output so far; a job that is being cancelled ends instead."""
        job, context = self.job, self._context
        self._log.seal()
        context.log_writer.schedule(self._log)
        requeued = await self._retry(
            lambda: context.store.requeue(
                job.id,
                job.attempt,
                tokens=self._tokens,
                outcome=outcome,
                death=death,
                first_token_at=self._first_token_at,
            ),
            "row",
        )
        if not requeued:
            return await self._end(JobStatus.CANCELLED, CANCELLED)
        self._metrics.attempt_ended(outcome)
        self._trace.ended(self._database_now(), outcome, self._prompt.prompt_tokens, self._tokens)
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s handed back after %d tokens (%s)",
            job.id, job.model, job.attempt, context.worker, job.request_context.request_id, self._tokens, outcome,
        )  # fmt: skip
        context.send(to_front(Hint(job.id, job.model, job.priority)))
        return None

    async def _reroute(self, reason: FallbackReason, *, or_wait: bool = True) -> bool:
        """Move the job to another model; `or_wait` is as in `next_model`.

        False: it stays, because it has no fallback or may have output, or is being cancelled, or is not owned any more.
        """
        job, context = self.job, self._context
        if not candidates_of(job) or job.request.names_tokens or self._first_token_at is not None:
            return False
        if may_have_output(job, self._log.events):
            return False
        available = await self._retry(context.store.available, "row")
        to = next_model(job, available, or_wait=or_wait)
        if to is None:
            return False
        self._log.seal()
        context.log_writer.schedule(self._log)
        move = Move(job, to, reason, self._running_upstream)
        followers = await self._retry(lambda: context.store.reroute(move), "row")
        if followers is None:
            return False
        report_changes(followers, context.send, context.metrics)
        self._metrics.rerouted(to, reason)
        self._trace.ended(self._database_now(), AttemptOutcome.REROUTED, self._prompt.prompt_tokens, 0)
        logger.warning(
            "job=%s model=%s attempt=%d worker=%s request=%s moved to model %s: %s",
            job.id, job.model, job.attempt, context.worker, job.request_context.request_id, to, reason.value,
        )  # fmt: skip
        context.send(to_front(Hint(job.id, to, job.priority)))
        if context.conversations is not None:
            await context.conversations.move(move.conversation, to)
        if move.upstream is not None:
            await self._cancel_upstreams()
        return True

    async def _defer(self, busy: UpstreamBusy) -> JobStatus | None:
        """Return the job to the queue for a while; if it cannot wait, it fails.

        A job of a route moves to another model instead, if one is available and the upstream does not run its request;
        if the job cannot wait, it moves in any case.

        Without output, it is as if the job had not run. If it has output, the upstream runs its request on, and the
        next attempt resumes that. The message is sent again from here. If this worker dies meanwhile, redelivery finds
        the job.
        """
        job, context = self.job, self._context
        if self._transcript.upstream is None and await self._reroute(FallbackReason.UPSTREAM_BUSY, or_wait=False):
            return None
        delay_s = deferral_s(job, busy, self._database_now(), begun=self._first_token_at is not None)
        if delay_s is None:
            if await self._reroute(FallbackReason.UPSTREAM_BUSY):
                return None
            return await self._end(*self._status(busy))
        self._log.seal()
        context.log_writer.schedule(self._log)
        deferred = await self._retry(
            lambda: context.store.defer(
                job.id, job.attempt, delay_s, tokens=self._tokens, first_token_at=self._first_token_at
            ),
            "row",
        )
        if not deferred:
            return await self._end(JobStatus.CANCELLED, CANCELLED)
        self._metrics.deferred(busy.reason)
        self._trace.ended(self._database_now(), AttemptOutcome.DEFERRED, self._prompt.prompt_tokens, self._tokens)
        logger.info(
            "job=%s model=%s attempt=%d worker=%s request=%s deferred for %.1f s: %s",
            job.id, job.model, job.attempt, context.worker, job.request_context.request_id, delay_s, busy.reason,
        )  # fmt: skip
        # To the front of its own priority: its turn had come before.
        hint = Hint(job.id, job.model, job.priority, front=True)
        asyncio.get_running_loop().call_later(timer_s(delay_s), context.send, hint)
        return None

    async def _retry(self, call: Callable[[], Awaitable[T]], what: str) -> T:
        """Await `call` until the database and Redis are available; the job's output waits in memory meanwhile."""
        delay = RETRY_S[0]
        while True:
            try:
                return await call()
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot read or write a job's %s, retrying: %s", what, error)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])

    @property
    def _tokens(self) -> int:
        """Tokens that this attempt generated."""
        return max(0, self._usage().completion_tokens - self._prior_tokens)

    def _usage(self) -> Usage:
        """The usage that the upstream reported, if it did; otherwise as counted here."""
        if self._reported_usage is not None:
            return self._reported_usage
        return Usage(self._prompt.prompt_tokens, self._prompt.cached_tokens, self._transcript.tokens)

    def _database_now(self) -> datetime:
        """The database's clock: the time of the claim, plus the time that has passed here since."""
        return self.job.attempts[-1].started_at + timedelta(seconds=time.monotonic() - self.claimed_at)
