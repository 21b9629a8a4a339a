"""Cancels the upstream's requests of jobs that have ended or start again.

Their list is in the database: a job may end without a worker, and a worker may die before the upstream has confirmed.
"""

from __future__ import annotations

import asyncio
import logging

from shared.postgres.claim_store import ClaimStore
from shared.postgres.upstream_cancellations import Cancellation
from shared.telemetry.metrics import Metrics
from workers.engines.base import Engine, EngineError

logger = logging.getLogger(__name__)

# Longest wait for an upstream to confirm that it cancels a request.
CANCEL_S = 5.0
# How many are cancelled at a time.
LIMIT = 50


async def cancel_requests(
    store: ClaimStore, engine: Engine, metrics: Metrics, model: str, *, job_id: str | None = None
) -> int:
    """Cancel the requests of a model that are due. Returns the number of those that were cancelled.

    The others are due again later. `job_id`: only those of this job. Raises SQLAlchemy's errors if the database is
    unavailable.
    """
    cancelled = 0
    while due := await store.due_cancellations(model, LIMIT, job_id=job_id):
        done = await asyncio.gather(*(_cancel(one, engine) for one in due))
        await store.remove_cancellations([one.id for one, is_done in zip(due, done, strict=True) if is_done])
        for one, is_done in zip(due, done, strict=True):
            outcome = "cancelled" if is_done else "failed"
            metrics.upstream_cancellations.labels(metrics.model_label(one.model), outcome).inc()
        cancelled += sum(done)
        if len(due) < LIMIT:
            break
    return cancelled


async def _cancel(one: Cancellation, engine: Engine) -> bool:
    try:
        async with asyncio.timeout(CANCEL_S):
            await engine.cancel(one.state)
    except Exception as error:
        logger.warning(
            "job=%s model=%s cannot cancel the upstream's request, retrying later: %s",
            one.job_id,
            one.model,
            error if isinstance(error, EngineError) else type(error).__name__,
        )
        return False
    return True
