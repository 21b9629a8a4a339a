"""The beginning of an attempt's log: the events of earlier attempts, or a restart without their output."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial

from shared.domain.events import Event, EventType, seq_before
from shared.domain.job import AttemptOutcome
from shared.domain.transcript import Transcript
from shared.recovery.followers import read_beginning
from shared.redis.event_log import FENCED, Append, Fenced
from workers.engines.resume import Resume
from workers.execution.attempts.abandoned_requests import abandon, cancel_upstreams
from workers.execution.attempts.retry import retry
from workers.execution.attempts.state import AttemptState
from workers.execution.job_metrics import JobMetrics

logger = logging.getLogger(__name__)


async def open_log(state: AttemptState) -> bool:
    """Take over the log of earlier attempts, and resume after their last token if that is exact.

    Returns False if a later attempt owns the log.
    """
    job, log, context = state.job, state.log, state.context
    if job.attempt > 1 or job.continues is not None:
        try:
            taken = await retry(lambda: context.logs.take_over(job.id, job.attempt), "log")
            events = taken.events
            if not events and job.continues is not None:
                events = await _begin_with_leader(state)
        except Fenced:
            return False
        before = seq_before(job.attempt, after_leader=job.continues is not None)
        log.resume_after(events, events[-1].seq if events else before)
        choices = job.request.sampling.n
        state.transcript = await Transcript.of(events, choices, model=job.model, after=job.begins_with)
        state.prior_tokens = state.transcript.tokens
        state.earlier_runs = state.transcript.runs
        if taken.first_token_at is not None:
            state.earlier_first_token_at = max(taken.first_token_at, job.created_at)
        if not events:
            # Attempts that were deferred, which are not in the history, and those of other models had no output.
            had_output = any(attempt.outcome != AttemptOutcome.REROUTED for attempt in job.attempts[:-1])
            if had_output or job.continues:
                await restart(state)  # the log is lost, with its output and its readers
        elif not (state.transcript.empty or state.complete):
            mode = context.engine.resume_mode(job.request, state.prior)
            state.stuck = mode is Resume.NONE and await shown(state)
            state.resumes_request = mode is Resume.EXACT and state.transcript.upstream is not None
            # Another version of the adapter's files has other weights: its tokens would not follow from these.
            other_weights = job.request.adapter is not None and not state.prior.comparable
            if (mode <= Resume.RESTART or other_weights) and not state.stuck:
                await restart(state)
    log.event(EventType.STARTED, start_data(state, job.attempt, continues=job.continues))
    logger.info(
        "job=%s model=%s attempt=%d worker=%s request=%s started, after %d tokens early=%d",
        job.id, job.model, job.attempt, context.worker, job.request_context.request_id, state.prior_tokens,
        int(state.early is not None),
    )  # fmt: skip
    return True


def start_data(state: AttemptState, attempt: int, *, continues: str | None) -> dict[str, object]:
    """The data of the event that an attempt has started. `continues`: the job with whose events the log begins."""
    data: dict[str, object] = {"attempt": attempt, "worker": state.context.worker}
    if state.job.decisions.route is not None:
        data["model"] = state.job.model
    if continues:
        data["continues"] = continues
    return data | {"fingerprint": state.fingerprint}


async def _begin_with_leader(state: AttemptState) -> list[Event]:
    """Begin the log with that of the job that this one followed, whose events its readers have received.

    Returns its events; none if their tokens, with which the engine would continue, are lost.

    Raises:
        Fenced: a later attempt owns the log.
    """
    job, logs, store = state.job, state.context.logs, state.context.store
    beginning = await retry(lambda: read_beginning(logs, store, job), "log")
    if not (beginning.exact and beginning.events):
        return []
    whole = Append(job.id, job.attempt, beginning.events)
    if await retry(lambda: logs.replace(whole), "log") == FENCED:
        raise Fenced
    return beginning.events


async def shown(state: AttemptState) -> bool:
    """Whether a reader may have seen the output so far."""
    return await retry(lambda: state.context.logs.shown(state.job.id), "log")


async def restart(state: AttemptState) -> None:
    """Discard the output so far, here and at the readers, and the upstream's request that generates it."""
    await drop_inherited(state)
    upstream = state.running_upstream
    state.restarts += 1
    state.discarded_tokens += state.tokens
    state.earlier_first_token_at = None
    state.transcript.clear()
    state.prior_tokens, state.resumes_request, state.run_ended = 0, False, False
    state.log.discard_pending()
    state.log.event(EventType.RESTARTED, {"attempt": state.job.attempt})
    if upstream is not None:
        await abandon(state, upstream)
        await cancel_upstreams(state)


async def drop_inherited(state: AttemptState) -> None:
    """Let all tokens count for this job, although its answer began with those of a job that it followed."""
    while (job := state.job).decisions.inherits:
        await retry(partial(state.context.store.drop_inherited, job.id, job.attempt), "row")
        if state.job is job:  # the generation was not handed over meanwhile
            state.job = replace(job, decisions=job.decisions.without_inherited())
            state.metrics = JobMetrics(state.context.metrics, state.job)
