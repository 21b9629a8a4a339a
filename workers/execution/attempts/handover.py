"""Hands the generation of a job that was cancelled or is late over to one of its followers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace

from shared.domain.errors import UnreadableRow
from shared.domain.events import EventType
from shared.domain.job import Job, JobStatus
from shared.domain.result import CANCELLED, LATE
from shared.postgres.followers import Ended
from workers.execution.attempts.abandoned_requests import cancel_upstreams
from workers.execution.attempts.context import InterruptReason
from workers.execution.attempts.end import job_result, report_end
from workers.execution.attempts.log import drop_inherited, start_data
from workers.execution.attempts.retry import retry
from workers.execution.attempts.state import AttemptState
from workers.execution.job_metrics import JobMetrics

logger = logging.getLogger(__name__)


async def hand_over(
    state: AttemptState, reason: InterruptReason, on_continued: Callable[[str], None]
) -> JobStatus | None:
    """End a job that was cancelled or is late, and let its generation continue for one of its followers.

    Returns the job's status if it has ended and no follower continues. Otherwise None: a follower's job is this
    attempt's then, and `on_continued` is called with the id of the earlier one; or, without followers, this attempt is
    stopped as usual.
    """
    job, store = state.job, state.context.store
    try:
        if not await retry(lambda: store.has_followers(job.id), "row"):
            state.abort(reason)
            return None
        log, upstream, tokens, restarts = (
            state.log, state.running_upstream, state.transcript.tokens, state.restarts
        )  # fmt: skip
        failure = LATE if reason is InterruptReason.DEADLINE_EXCEEDED else CANCELLED
        # What comes from now on is not the job's any more.
        state.log = log.fork()
        state.log.event(EventType.STARTED, start_data(state, attempt=1, continues=job.id))
        result, last = await job_result(state, log, JobStatus.CANCELLED, failure, None, handed_over=True)
        ended = await retry(lambda: store.hand_over(job.id, job.attempt, result), "result")
        if not report_end(state, log, result, last, ended):
            state.abort(InterruptReason.CLAIM_LOST)
            return None
        successor = await _successor(state, ended)
    except BaseException:
        state.abort(reason)
        raise
    if successor is None:  # they have all ended meanwhile
        state.abort(reason)
        if upstream is not None:
            await retry(lambda: store.add_cancellation(job.id, job.model, upstream), "row")
            await cancel_upstreams(state)
        return JobStatus.CANCELLED
    has_restarted = state.restarts > restarts
    _continue_for(state, successor, 0 if has_restarted else tokens)
    on_continued(job.id)
    if has_restarted:
        await drop_inherited(state)
    return None


async def _successor(state: AttemptState, ended: Ended | None) -> Job | None:
    """The follower that was claimed when its leader ended; None if there is none that can be read."""
    store, changes = state.context.store, ended.followers if ended is not None else ()
    claimed = next((change.job_id for change in changes if change.status is JobStatus.IN_PROGRESS), None)
    if claimed is None:
        return None
    try:
        return await retry(lambda: store.claimed(claimed), "row")
    except UnreadableRow as error:
        logger.error("job=%s cannot be read, releasing it: %s", claimed, error.reason)
        await retry(lambda: store.release_claim(claimed, 1), "row")
        return None


def _continue_for(state: AttemptState, job: Job, tokens: int) -> None:
    """Continue for another job, whose log begins with the events so far, of `tokens`."""
    context = state.context
    state.job = replace(job, request=job.request.for_provider(context.provider))
    state.claimed_at = time.monotonic()
    state.suspect = False
    state.prior_tokens, state.earlier_runs = tokens, {}
    state.discarded_tokens = 0
    state.metrics = JobMetrics(context.metrics, job)
    state.trace = context.traces.claimed(job)
    state.log.assign(job.id, job.attempt)
    context.log_writer.schedule(state.log)
    logger.info(
        "job=%s model=%s attempt=%d worker=%s request=%s continues a generation, after %d tokens",
        job.id, job.model, job.attempt, context.worker, job.request_context.request_id, tokens,
    )  # fmt: skip
