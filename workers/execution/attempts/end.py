"""The end of a job by its attempt: what the status is, the result in the row, and the last event of the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from shared.domain.conversation import Conversation
from shared.domain.errors import ErrorCode, InvalidRequest
from shared.domain.events import Event, UpstreamState
from shared.domain.job import AttemptOutcome, Failure, JobStatus
from shared.domain.ledger import Source
from shared.domain.result import CANCELLED, LATE, JobResult, build_result, cannot_continue
from shared.postgres.followers import Ended
from shared.recovery.followers import report_changes
from workers.engines.base import CannotContinue, EngineError
from workers.engines.upstream.estimated_tokens import estimated_tokens
from workers.execution.attempts.abandoned_requests import cancel_upstreams
from workers.execution.attempts.context import InterruptReason
from workers.execution.attempts.retry import retry
from workers.execution.attempts.state import AttemptState
from workers.execution.attempts.usage_check import disagreement
from workers.execution.log_writer import LogBuffer

logger = logging.getLogger(__name__)

# Answers of a job by which its conversation is recognized.
MAX_NAMED = 8


def end_status(state: AttemptState, error: BaseException | None) -> tuple[JobStatus, Failure | None]:
    """The status with which the job ends after the generation, and its error; `error` is that of the generation."""
    if isinstance(error, InvalidRequest):
        return JobStatus.FAILED, Failure(ErrorCode.INVALID_REQUEST, error.message, error.param)
    if isinstance(error, CannotContinue) and not state.generated and state.prior_tokens:
        return JobStatus.FAILED, cannot_continue(state.prior_tokens)
    if isinstance(error, EngineError):
        return JobStatus.FAILED, Failure(error.code, error.message)
    if error is not None:
        logger.error("job=%s failed unexpectedly", state.job.id, exc_info=error)
        return JobStatus.FAILED, Failure(ErrorCode.ENGINE_ERROR, f"{type(error).__name__}: {error}")
    reasons = state.transcript.finish_reasons
    if not all(reasons):
        if state.interrupt_reason is None:
            return JobStatus.FAILED, Failure(ErrorCode.ENGINE_ERROR, "The engine ended the request too early.")
        is_late = state.interrupt_reason is InterruptReason.DEADLINE_EXCEEDED
        return JobStatus.CANCELLED, LATE if is_late else CANCELLED
    if "length" in reasons or "content_filter" in reasons:
        return JobStatus.INCOMPLETE, None
    return JobStatus.COMPLETED, None


async def end_job(state: AttemptState, status: JobStatus, failure: Failure | None) -> JobStatus | None:
    """Write the result to the row, then append the last event. Returns None if a later attempt owns the job."""
    job, store = state.job, state.context.store
    state.log.seal()
    result, last = await job_result(state, state.log, status, failure, state.running_upstream)
    route = job.decisions.route
    named = None
    if status.succeeded and route is not None and route.conversation is not None:
        named = asyncio.create_task(_note_answer(state, route.route, route.conversation))
    finish = retry(lambda: store.finish(job.id, job.attempt, result), "result")
    ended = await asyncio.shield(asyncio.ensure_future(finish))
    if named is not None:
        await named  # before the client gets the last event, and continues the conversation
    if not report_end(state, state.log, result, last, ended):
        return None
    if result.upstream is not None:
        await cancel_upstreams(state)
    return status


async def _note_answer(state: AttemptState, route: str, conversation: str) -> None:
    """Let the next request of a route's conversation find the model by this answer."""
    job, conversations = state.job, state.context.conversations
    choices = state.transcript.choices()[:MAX_NAMED]
    answers = [(choice.text, [call.id for call in choice.tool_calls]) for choice in choices]
    names = Conversation(job.request).answered(route, job.owner, answers)
    if names and conversations is not None:
        await conversations.name(conversation, names)


def job_result(
    state: AttemptState,
    log: LogBuffer,
    status: JobStatus,
    failure: Failure | None,
    upstream: UpstreamState | None,
    *,
    handed_over: bool = False,
) -> Awaitable[tuple[JobResult, Event]]:
    """The result of the output so far, with these events, and the log's last event.

    `handed_over` is as in `build_result`.
    """
    # An upstream reports the usage last: of a request that was cut, nobody has counted the prompt.
    unreported = state.source is Source.ESTIMATE
    choices, disagrees = state.transcript.choices(), None
    if state.source is Source.PROVIDER and status.succeeded:
        disagrees = disagreement(state.job.request, choices, state.usage)
    if disagrees is not None:
        state.metrics.usage_disagrees(disagrees.parts)
        logger.warning(
            "job=%s model=%s attempt=%d the provider's usage cannot be right: %s", state.job.id, state.job.model,
            state.job.attempt, ", ".join(disagrees.parts),
        )  # fmt: skip
    return build_result(
        state.job,
        log.events,
        log.seq + 1,
        status=status,
        output=choices,
        usage=state.usage,
        failure=failure,
        first_token_at=state.first_token_of_output,
        finished_at=state.database_now(),
        outcome=AttemptOutcome(status.value),
        runs=state.runs,
        source=state.source,
        upstream=upstream,
        revision=state.revision,
        handed_over=handed_over,
        prompt_estimate=estimated_tokens(state.job.request) if unreported else 0,
        counted=None if disagrees is None else disagrees.stored(),
        engine_of=state.context.engine_of,
    )


def report_end(state: AttemptState, log: LogBuffer, result: JobResult, last: Event, ended: Ended | None) -> bool:
    """Report that the result was written, and append the last event. False: a later attempt owns the job."""
    job, context, usage = state.job, state.context, result.usage
    if ended is None:
        logger.warning("job=%s attempt=%d is no longer owned by this worker; result dropped", job.id, job.attempt)
        state.metrics.result_fenced()
        return False
    report_changes(ended.followers, context.send, context.metrics)
    outcome = AttemptOutcome(result.status.value)
    state.metrics.job_ended(result)
    state.metrics.attempt_ended(outcome)
    state.trace.ended(result.finished_at, outcome, usage.prompt_tokens, state.tokens)
    log.close(last, context.log_ttl_s)
    context.log_writer.schedule(log)
    logger.info(
        "job=%s model=%s attempt=%d worker=%s request=%s %s prompt=%d output=%d ms=%d",
        job.id, job.model, job.attempt, context.worker, job.request_context.request_id, result.status.value,
        usage.prompt_tokens, usage.completion_tokens,
        round((result.finished_at - job.created_at).total_seconds() * 1000),
    )  # fmt: skip
    return True
