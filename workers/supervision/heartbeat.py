"""The worker's heartbeat: one lease for all of its jobs, and the database's word on which those are."""

from __future__ import annotations

import logging
import time

from shared.domain.job import JobStatus, WorkerState
from shared.postgres.claim_store import ClaimStore
from shared.runtime.outages import is_outage
from shared.runtime.periodic import run_periodically
from workers.engines.base import Engine
from workers.execution.attempt import StopReason
from workers.execution.runner import Runner
from workers.settings import WorkerSettings
from workers.supervision.heartbeat_file import HeartbeatFile

logger = logging.getLogger(__name__)


class Heartbeat:
    """Renews the lease, stops what is not ours any more, cancels what should be, returns what is not run."""

    def __init__(
        self,
        runner: Runner,
        engine: Engine,
        store: ClaimStore,
        model: str,
        settings: WorkerSettings,
    ) -> None:
        self._runner = runner
        self._engine = engine
        self._store = store
        self._model = model
        self._settings = settings
        self._terminator: set[tuple[str, int]] = set()
        self._state = WorkerState.READY
        self._beacon = HeartbeatFile(settings.beacon)

    async def run(self) -> None:
        """Renew the lease until cancelled."""
        await run_periodically(self.renew, "lease renewal", interval_s=self._settings.heartbeat_s)

    async def show(self, state: WorkerState) -> None:
        """Say what this worker can do now; at once where the database is there, else at the next heartbeat."""
        self._state = state
        try:
            await self.renew()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("cannot show that this worker is %s, trying again: %s", state.value, error)

    async def renew(self) -> None:
        self._beacon.show(self._state)
        before = time.monotonic()
        held = await self._store.heartbeat(
            self._model,
            slots=self._runner.slot_pool.slots,
            running=self._engine.stats().requests,
            lease_s=self._settings.lease_s,
            state=self._state,
        )
        ours = {(item.job_id, item.attempt) for item in held}
        for job_id, attempt in self._runner.claimed_before(before):
            if (job_id, attempt) not in ours:
                logger.warning("job=%s attempt=%d is no longer owned by this worker; stopping it", job_id, attempt)
                self._runner.stop(job_id, StopReason.CLAIM_LOST, attempt)
        for item in held:
            if item.status is JobStatus.CANCELLING:
                self._runner.stop(item.job_id, StopReason.CANCELLED, item.attempt)
        await self._give_up({(item.job_id, item.attempt) for item in self._runner.not_running(held)})

    async def _give_up(self, unowned: set[tuple[str, int]]) -> None:
        """Give up what is claimed in our name and does not run here, at two heartbeats in a row.

        That is a claim whose answer was lost with its connection, or a result that could not be written. The
        sweeper treats it as lost with its worker, so that it is tried again, but not for ever.
        """
        for job_id, attempt in unowned & self._terminator:
            logger.warning("job=%s attempt=%d is claimed but does not run; giving it up", job_id, attempt)
            await self._store.release_claim(job_id, attempt)
        self._terminator = unowned
