"""Ends deferred jobs that have waited for their upstream as long as they may, while its circuit breaker is open.

A job that is run again fails once it may not wait any longer. While the breaker is open, only probes run, and queued
jobs with fallbacks move to them.
"""

from __future__ import annotations

from shared.domain.errors import ErrorCode
from shared.domain.fallback import FallbackReason
from shared.domain.job import Failure
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.fallbacks import Fallbacks
from shared.recovery.terminator import JobTerminator
from shared.runtime.faulty_items import FaultyItems
from shared.runtime.periodic import run_periodically
from workers.execution.runner import Runner

INTERVAL_S = 5.0
LIMIT = 100
WAITED_TOO_LONG = Failure(
    ErrorCode.UPSTREAM_ERROR, "The upstream was unavailable for longer than the job may wait for it."
)


class DeferralLimit:
    """Each worker does this for its own model."""

    def __init__(
        self, runner: Runner, store: RecoveryStore, terminator: JobTerminator, fallbacks: Fallbacks | None = None
    ) -> None:
        self._runner = runner
        self._store = store
        self._terminator = terminator
        self._fallbacks = fallbacks
        self._faulty = FaultyItems("job")

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self.end_overdue, "ending deferred jobs", interval_s=INTERVAL_S, jitter=0.2)

    async def end_overdue(self) -> None:
        """Move the jobs that can move, and end those that have waited too long, at most `LIMIT` of them."""
        gate = self._runner.gate
        if gate is None or gate.breaker is None:
            return
        if self._fallbacks is not None:
            await self._fallbacks.move_waiting(gate.model)
        for job in await self._store.deferred_for(gate.model, gate.max_wait_s, LIMIT, without=self._faulty.ids()):
            with self._faulty.isolated(job.id):
                await self._terminator.fail(job, WAITED_TOO_LONG, FallbackReason.UPSTREAM_BUSY)
