"""The worker's heartbeat: renews one lease for all of its jobs, and reconciles them with its claims in the database.

It runs on the event loop. While the loop is busy, `LeaseKeeper` renews the lease.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from shared.domain.job import JobStatus, WorkerReport, WorkerState
from shared.domain.version import VERSION
from shared.postgres.claim_store import ClaimStore, HeartbeatReply
from shared.runtime.outages import is_outage
from shared.runtime.periodic import run_periodically
from workers.engines.base import EngineStats, ManagedEngine
from workers.execution.attempts.context import InterruptReason
from workers.execution.runner import Runner
from workers.settings import WorkerSettings
from workers.supervision.heartbeat_file import HeartbeatFile

logger = logging.getLogger(__name__)

# A rate over a shorter time says little; states are published between the regular heartbeats.
MIN_RATE_S = 0.5


class Heartbeat:
    """Renews the lease and compares the worker's claims with its running jobs.

    Jobs whose claim is lost or that are being cancelled are stopped; claims without a running job are released.
    """

    def __init__(
        self,
        runner: Runner,
        engine: ManagedEngine,
        store: ClaimStore,
        model: str,
        settings: WorkerSettings,
        state: WorkerState = WorkerState.READY,
        options: Callable[[], Mapping[str, Any]] = dict,
        tokens: Callable[[], int] = lambda: 0,
    ) -> None:
        """`options` returns how the model is run, `tokens` the number of output tokens generated so far."""
        self._runner = runner
        self._engine = engine
        self._store = store
        self._model = model
        self._settings = settings
        self._not_running: set[tuple[str, int]] = set()
        self._state = state
        # Called with each reply of the database.
        self.on_reply: Callable[[HeartbeatReply], None] = lambda _: None
        self._hurry = asyncio.Event()
        self._file = HeartbeatFile(settings.heartbeat_file)
        self._options = options
        self._tokens = tokens
        self._last_error: str | None = None
        # The time and the number of tokens of the last heartbeat with a rate, and that rate.
        self._rated = (time.monotonic(), tokens())
        self._tokens_per_s: float | None = None

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        await run_periodically(self.renew, "lease renewal", interval_s=self._settings.heartbeat_s, hurry=self._hurry)

    def hurry(self) -> None:
        """Let the next heartbeat follow at once: an operator has ordered something."""
        self._hurry.set()

    async def set_state(self, state: WorkerState, error: str | None = None) -> None:
        """Publish the worker's state now, or with a later heartbeat if the database is unavailable.

        `error`: why its engine failed. It is reported from then on.
        """
        self._state = state
        self._last_error = error or self._last_error
        try:
            await self.renew()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("cannot publish the state %s, retrying: %s", state.value, error)

    def beat(self) -> None:
        """Rewrite the heartbeat file. May be called from any thread."""
        self._file.write(self._state)

    async def renew(self) -> None:
        """Renew the lease and reconcile the running jobs with the claims, once."""
        self.beat()
        before = time.monotonic()
        gate = self._runner.gate
        stats = self._engine.stats()
        reply = await self._store.heartbeat(
            self._model,
            slots=self._runner.slot_pool.slots,
            running=stats.requests,
            lease_s=self._settings.lease_s,
            state=self._state,
            breaker=gate.breaker if gate is not None else None,
            report=self._report(stats),
        )
        self.on_reply(reply)
        claims = reply.claims
        owned = {(claim.job_id, claim.attempt) for claim in claims}
        for job_id, attempt in self._runner.claimed_before(before):
            if (job_id, attempt) not in owned:
                logger.warning("job=%s attempt=%d is no longer owned by this worker; stopping it", job_id, attempt)
                self._runner.stop(job_id, InterruptReason.CLAIM_LOST, attempt)
        for claim in claims:
            if claim.status is JobStatus.CANCELLING:
                self._runner.stop(claim.job_id, InterruptReason.CANCELLED, claim.attempt)
        await self._release({(claim.job_id, claim.attempt) for claim in self._runner.not_running(claims)})

    def _report(self, stats: EngineStats) -> WorkerReport:
        now, tokens = time.monotonic(), self._tokens()
        since, before = self._rated
        if now - since >= MIN_RATE_S:
            self._tokens_per_s = (tokens - before) / (now - since)
            self._rated = (now, tokens)
        return WorkerReport(
            VERSION,
            self._options(),
            stats.waiting,
            stats.cache.usage if stats.cache is not None else None,
            self._tokens_per_s,
            self._last_error,
            stats.info,
        )

    async def _release(self, not_running: set[tuple[str, int]]) -> None:
        """Release claims that are not running here after two consecutive heartbeats.

        The reply to such a claim was lost with its connection, or the job's result could not be written. Sweepers
        treat the job as if its worker had died, so that the number of attempts stays limited.
        """
        for job_id, attempt in not_running & self._not_running:
            logger.warning("job=%s attempt=%d is claimed but not running; releasing the claim", job_id, attempt)
            await self._store.release_claim(job_id, attempt)
        self._not_running = not_running
