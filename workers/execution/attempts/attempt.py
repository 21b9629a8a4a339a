"""One attempt of a job: it generates, publishes and ends the job, or returns it to the queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shared.domain.fallback import FallbackReason
from shared.domain.job import AttemptOutcome, Job, JobStatus, Usage
from shared.domain.result import exhausted
from shared.domain.suspects import JobAtDeath, Verdict
from workers.engines.base import Engine, EngineDead, UpstreamBusy
from workers.execution.attempts.context import AttemptContext, InterruptReason
from workers.execution.attempts.early_start import EarlyStart
from workers.execution.attempts.end import end_job, end_status
from workers.execution.attempts.handover import hand_over
from workers.execution.attempts.log import open_log
from workers.execution.attempts.output import OutputPublisher
from workers.execution.attempts.requeue import defer, fallback_reason, requeue, reroute
from workers.execution.attempts.state import AttemptState

logger = logging.getLogger(__name__)

# Jobs that were stopped for these reasons end, but not the generation if others follow them.
_HANDED_OVER = (InterruptReason.CANCELLED, InterruptReason.DEADLINE_EXCEEDED)
# Attempts that were stopped for these reasons return their jobs to the queue.
_REQUEUE_OUTCOMES = {
    InterruptReason.REQUEUED: AttemptOutcome.HANDED_BACK,
    InterruptReason.PREEMPTED: AttemptOutcome.SET_ASIDE,
}


class JobAttempt:
    """One attempt of a job that this worker has claimed."""

    def __init__(
        self,
        job: Job,
        context: AttemptContext,
        judge: Callable[[JobAttempt], Verdict],
        on_cleared: Callable[[], None],
        on_handover: Callable[[JobAttempt, str], None] = lambda _attempt, _earlier: None,
        early: EarlyStart | None = None,
    ) -> None:
        """`judge` decides what the death of the engine means for the job; `on_cleared` is called once it is no suspect
        any more, and `on_handover`, with the id of the earlier job, when the generation continues for another job.
        `early`: the engine has the request already."""
        self._state = AttemptState(job, context, early)
        self._output = OutputPublisher(self._state, on_cleared)
        # What the death of the engine means for the job; None until that is judged.
        self.verdict = None if early is None else early.verdict
        self._judge = judge
        self._on_handover = on_handover
        # Whether it is giving up the claim: it ends the job, or returns it to the queue. Its row may say so before it
        # knows.
        self.finishing = False
        self._handover: asyncio.Task[JobStatus | None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    @property
    def job(self) -> Job:
        """The job that the attempt runs; another one after a handover."""
        return self._state.job

    @property
    def claimed_at(self) -> float:
        """When the job was claimed, on the monotonic clock."""
        return self._state.claimed_at

    @property
    def interrupt_reason(self) -> InterruptReason | None:
        """Why it was stopped from outside; None if it was not."""
        return self._state.interrupt_reason

    @property
    def engine(self) -> Engine:
        return self._state.context.engine

    @property
    def active(self) -> bool:
        """Whether it generates or is about to: it has not been stopped, and the engine has not finished."""
        generation = self._state.generation
        return self._state.interrupt_reason is None and not (generation is not None and generation.done())

    @property
    def in_engine(self) -> bool:
        """Whether the engine has its request, or had it when it died."""
        generation, early = self._state.generation, self._state.early
        if generation is None or not self._output.submitted_at:
            return early is not None and early.in_engine
        return not generation.done() or self._died

    @property
    def silent(self) -> bool:
        """Whether this attempt has not generated a token."""
        return not self._state.generated

    @property
    def usage(self) -> Usage:
        """The usage so far: as the upstream reported it, if it did; otherwise as counted here."""
        return self._state.usage

    @property
    def resumed_after(self) -> int:
        """The tokens of earlier attempts, if the upstream's request that generated them was resumed."""
        return self._state.prior_tokens if self._state.resumes_request else 0

    @property
    def casualty(self) -> JobAtDeath:
        """The job, for the judgement of a death of its engine."""
        return JobAtDeath(self.job.id, self._state.suspect, self.job.exposures)

    @property
    def handing_over(self) -> bool:
        """Whether the generation is being handed over to another job."""
        return self._handover is not None and not self._handover.done()

    @property
    def _died(self) -> bool:
        """Whether the generation has ended with the death of the engine."""
        generation, early = self._state.generation, self._state.early
        if generation is not None and not generation.done():
            return False
        if generation is None or generation.cancelled():
            died = self.engine.dead or (early is not None and early.died)
            return self._state.interrupt_reason is InterruptReason.REQUEUED and died
        return isinstance(generation.exception(), EngineDead)

    async def run(self) -> JobStatus | None:
        """Run the attempt. Returns the job's final status; None if it was requeued or the claim was lost."""
        self._state.metrics.claimed()
        self._state.trace = self._state.context.traces.claimed(self.job)
        if not await open_log(self._state):
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
        state = self._state
        if state.interrupt_reason is not None:
            return
        if reason in _HANDED_OVER and self.job.may_lead and state.generation is not None and self.active:
            if not self.handing_over:
                handover = hand_over(state, reason, self._continued)
                self._handover = asyncio.create_task(handover, name=f"handover-{self.job.id}")
            return
        state.abort(reason)

    def _continued(self, earlier_id: str) -> None:
        """The generation continues for another job."""
        self._watch_deadline()
        self._on_handover(self, earlier_id)

    async def _generate(self) -> None:
        """Generate in a separate task, so that a stop cancels that task and nothing else."""
        state = self._state
        if state.interrupt_reason is None:
            state.generation = asyncio.create_task(self._output.run(), name=f"generate-{self.job.id}")
        # After the task is created: submitting to the engine takes longer than publishing the start.
        state.context.log_writer.schedule(state.log)
        if state.generation is None:
            return
        self._watch_deadline()
        await asyncio.wait([state.generation])

    def _watch_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self.job.finish_before is not None:
            left_s = (self.job.finish_before - self._state.database_now()).total_seconds()
            self._deadline = asyncio.get_running_loop().call_later(
                max(0.0, left_s), self.stop, InterruptReason.DEADLINE_EXCEEDED
            )

    async def _finish(self) -> JobStatus | None:
        """End or requeue the job, depending on how the generation ended."""
        state, context, generation = self._state, self._state.context, self._state.generation
        assert generation is None or generation.done()
        self.finishing = True
        death = self._judge(self) if self._died and self.in_engine else None
        await self._clean_up()
        cancelled = generation is None or generation.cancelled()
        error = None if generation is None or cancelled else generation.exception()
        if death is not None:
            logger.error(
                "job=%s the engine died while it ran the job%s", self.job.id, "" if death.charged else " and others"
            )
            context.on_engine_death()
            if death.charged and self.job.deaths + 1 >= context.max_attempts:
                if await reroute(state, FallbackReason.ATTEMPTS_EXHAUSTED):
                    return None
                return await end_job(state, JobStatus.FAILED, exhausted(context.max_attempts))
            return await requeue(state, AttemptOutcome.ENGINE_LOST, death)
        if isinstance(error, EngineDead):  # it had died before it received the request
            context.on_engine_death()
            return await requeue(state, AttemptOutcome.HANDED_BACK)
        reason = state.interrupt_reason
        if reason is InterruptReason.CLAIM_LOST:
            return None
        if isinstance(error, UpstreamBusy) and (state.first_token_at is None or state.transcript.upstream is not None):
            return await defer(state, error)
        requeue_outcome = _REQUEUE_OUTCOMES.get(reason) if reason is not None else None
        if cancelled and requeue_outcome is not None:
            return await requeue(state, requeue_outcome)
        status, failure = end_status(state, error)
        fallback = fallback_reason(self.job, error) if status is JobStatus.FAILED else None
        if fallback is not None and await reroute(state, fallback):
            return None
        return await end_job(state, status, failure)

    async def _clean_up(self) -> None:
        """Stop the timer of the deadline, and wait for writes that have begun."""
        if self._deadline is not None:
            self._deadline.cancel()
        await self._output.wait_for_writes()
        if self._state.abandoning is not None:
            await self._state.abandoning
