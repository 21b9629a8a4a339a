"""Cancels the upstream's requests of jobs that ended without a worker, or whose worker could not cancel them."""

from __future__ import annotations

from shared.postgres.claim_store import ClaimStore
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics
from workers.execution.runner import Runner
from workers.execution.upstream_cancellation import cancel_requests

INTERVAL_S = 5.0


class UpstreamCancellations:
    """Each worker does this for its own model, in turns of some seconds."""

    def __init__(self, runner: Runner, store: ClaimStore, metrics: Metrics, model: str) -> None:
        self._runner = runner
        self._store = store
        self._metrics = metrics
        self._model = model

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self._cancel, "cancelling upstream requests", interval_s=INTERVAL_S, jitter=0.2)

    async def _cancel(self) -> None:
        await cancel_requests(self._store, self._runner.context.engine, self._metrics, self._model)
