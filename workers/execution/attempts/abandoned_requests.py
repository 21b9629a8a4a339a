"""The upstream's requests of an attempt that nothing will resume."""

from __future__ import annotations

import asyncio
import logging

from shared.domain.events import UpstreamState
from shared.runtime.outages import is_outage
from workers.execution.attempts.context import InterruptReason
from workers.execution.attempts.retry import retry
from workers.execution.attempts.state import AttemptState
from workers.execution.upstream_cancellation import cancel_requests

logger = logging.getLogger(__name__)


async def abandon(state: AttemptState, upstream: UpstreamState) -> None:
    """Note that a request of the upstream is to be cancelled, which the log does not name any more.

    A stop does not interrupt this: nothing else knows of the request.
    """
    state.abandoning = asyncio.create_task(_note_abandoned(state, upstream), name=f"abandon-{state.job.id}")
    await asyncio.shield(state.abandoning)


async def _note_abandoned(state: AttemptState, upstream: UpstreamState) -> None:
    job, context = state.job, state.context
    # The log comes first: otherwise, if this worker died in between, the next attempt would resume a request that is
    # cancelled meanwhile. An attempt that has taken over the log may resume it.
    if await context.log_writer.flush(state.log):
        await retry(lambda: context.store.add_cancellation(job.id, job.model, upstream), "row")
    elif state.interrupt_reason is None:
        state.abort(InterruptReason.CLAIM_LOST)


async def cancel_upstreams(state: AttemptState) -> None:
    """Cancel the upstream's requests of this job that nothing will resume. If that fails, it is tried again later.

    Requests of other jobs are left to `UpstreamCancellations`: there may be many, and this attempt would wait.
    """
    job, context = state.job, state.context
    try:
        await cancel_requests(context.store, context.engine, context.metrics, job.model, job_id=job.id)
    except Exception as error:
        if not is_outage(error):
            raise
        logger.warning("job=%s cannot cancel the upstream's request yet: %s", state.job.id, error)
