"""Returns a job to the queue: at the end of its attempt, for another model, or for a while."""

from __future__ import annotations

import asyncio
import logging

from shared.domain.errors import ContentRefused, ContextExceeded, InvalidRequest
from shared.domain.fallback import FallbackReason, candidates_of, may_have_output, next_model
from shared.domain.job import AttemptOutcome, Job, JobStatus
from shared.domain.priorities import Hint, to_front
from shared.domain.result import CANCELLED
from shared.domain.suspects import Verdict
from shared.postgres.rerouting import Move
from shared.recovery.followers import report_changes
from workers.engines.base import UpstreamBusy, UpstreamError
from workers.execution.attempts.abandoned_requests import cancel_upstreams
from workers.execution.attempts.end import end_job, end_status
from workers.execution.attempts.retry import retry
from workers.execution.attempts.state import AttemptState
from workers.execution.deferral import deferral_s, timer_s

logger = logging.getLogger(__name__)


async def requeue(state: AttemptState, outcome: AttemptOutcome, death: Verdict | None = None) -> JobStatus | None:
    """Return the job to the queue with its output so far; a job that is being cancelled ends instead."""
    job, context = state.job, state.context
    state.log.seal()
    context.log_writer.schedule(state.log)
    requeued = await retry(
        lambda: context.store.requeue(
            job.id,
            job.attempt,
            tokens=state.tokens,
            outcome=outcome,
            death=death,
            first_token_at=state.first_token_of_output,
        ),
        "row",
    )
    if not requeued:
        return await end_job(state, JobStatus.CANCELLED, CANCELLED)
    state.metrics.attempt_ended(outcome)
    state.trace.ended(state.database_now(), outcome, state.prompt.prompt_tokens, state.tokens)
    logger.info(
        "job=%s model=%s attempt=%d worker=%s request=%s handed back after %d tokens (%s)",
        job.id, job.model, job.attempt, context.worker, job.request_context.request_id, state.tokens, outcome,
    )  # fmt: skip
    context.send(to_front(Hint(job.id, job.model, job.priority)))
    return None


def fallback_reason(job: Job, error: BaseException | None) -> FallbackReason | None:
    """Why another model may do better after this error; None if it would not."""
    match error:
        case ContextExceeded():
            return FallbackReason.CONTEXT_LENGTH
        case ContentRefused():
            return None
        case InvalidRequest():
            return FallbackReason.REFUSED if job.decisions.has_moved else None
        case UpstreamBusy():
            return FallbackReason.UPSTREAM_BUSY
        case UpstreamError():
            return FallbackReason.UPSTREAM_ERROR
    return FallbackReason.ENGINE_ERROR


async def reroute(state: AttemptState, reason: FallbackReason, *, or_wait: bool = True) -> bool:
    """Move the job to another model; `or_wait` is as in `next_model`.

    False: it stays, because it has no fallback or may have output, or is being cancelled, or is not owned any more.
    """
    job, context = state.job, state.context
    if not candidates_of(job) or job.request.names_tokens or state.first_token_at is not None:
        return False
    if may_have_output(job, state.log.events):
        return False
    to = next_model(job, await retry(context.store.availability, "row"), or_wait=or_wait)
    if to is None:
        return False
    state.log.seal()
    context.log_writer.schedule(state.log)
    move = Move(job, to, reason, state.running_upstream)
    followers = await retry(lambda: context.store.reroute(move), "row")
    if followers is None:
        return False
    report_changes(followers, context.send, context.metrics)
    state.metrics.rerouted(to, reason)
    state.trace.ended(state.database_now(), AttemptOutcome.REROUTED, state.prompt.prompt_tokens, 0)
    logger.warning(
        "job=%s model=%s attempt=%d worker=%s request=%s moved to model %s: %s",
        job.id, job.model, job.attempt, context.worker, job.request_context.request_id, to, reason.value,
    )  # fmt: skip
    context.send(to_front(Hint(job.id, to, job.priority)))
    if context.conversations is not None:
        await context.conversations.move(move.conversation, to)
    if move.upstream is not None:
        await cancel_upstreams(state)
    return True


async def defer(state: AttemptState, busy: UpstreamBusy) -> JobStatus | None:
    """Return the job to the queue for a while; if it cannot wait, it fails.

    A job of a route moves to another model instead, if one is available and the upstream does not run its request; if
    the job cannot wait, it moves in any case.

    Without output, it is as if the job had not run. If it has output, the upstream runs its request on, and the next
    attempt resumes that. The message is sent again from here. If this worker dies meanwhile, redelivery finds the job.
    """
    job, context = state.job, state.context
    if state.transcript.upstream is None and await reroute(state, FallbackReason.UPSTREAM_BUSY, or_wait=False):
        return None
    delay_s = deferral_s(job, busy, state.database_now(), begun=state.first_token_at is not None)
    if delay_s is None:
        if await reroute(state, FallbackReason.UPSTREAM_BUSY):
            return None
        return await end_job(state, *end_status(state, busy))
    state.log.seal()
    context.log_writer.schedule(state.log)
    deferred = await retry(
        lambda: context.store.defer(
            job.id, job.attempt, delay_s, tokens=state.tokens, first_token_at=state.first_token_at
        ),
        "row",
    )
    if not deferred:
        return await end_job(state, JobStatus.CANCELLED, CANCELLED)
    state.metrics.deferred(busy.reason)
    state.trace.ended(state.database_now(), AttemptOutcome.DEFERRED, state.prompt.prompt_tokens, state.tokens)
    logger.info(
        "job=%s model=%s attempt=%d worker=%s request=%s deferred for %.1f s: %s",
        job.id, job.model, job.attempt, context.worker, job.request_context.request_id, delay_s, busy.reason,
    )  # fmt: skip
    # To the front of its own priority: its turn had come before.
    hint = Hint(job.id, job.model, job.priority, front=True)
    asyncio.get_running_loop().call_later(timer_s(delay_s), context.send, hint)
    return None
