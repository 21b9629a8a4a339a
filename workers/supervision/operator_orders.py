"""What operators have ordered: pause the model's queue, or drain this worker. Each heartbeat reads it from the rows."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from shared.domain.job import WorkerState
from shared.postgres.claim_store import HeartbeatReply
from workers.execution.runner import PauseReason, Runner
from workers.supervision.heartbeat import Heartbeat

logger = logging.getLogger(__name__)


class OperatorOrders:
    """Follows the orders. Running jobs continue in any case."""

    def __init__(self, runner: Runner, heartbeat: Heartbeat, on_drained: Callable[[], None]) -> None:
        """`on_drained` is called once the worker is to be drained and no job runs here; it must stop the process."""
        self._runner = runner
        self._heartbeat = heartbeat
        self._on_drained = on_drained
        self._paused = False
        self._drain = asyncio.Event()

    def apply(self, reply: HeartbeatReply) -> None:
        """Follow the orders that the reply to a heartbeat contains."""
        if reply.paused != self._paused:
            self._paused = reply.paused
            if reply.paused:
                logger.warning("the model's queue was paused; jobs wait")
                self._runner.pause(PauseReason.QUEUE_PAUSED)
            else:
                logger.warning("the model's queue was resumed")
                self._runner.resume(PauseReason.QUEUE_PAUSED)
        if reply.drain and not self._drain.is_set():
            logger.warning("this worker is drained: it finishes its jobs and stops")
            self._runner.pause(PauseReason.DRAIN)
            self._drain.set()

    async def run(self) -> None:
        """Wait for a drain, and for the end of the running jobs then."""
        await self._drain.wait()
        await self._heartbeat.set_state(WorkerState.DRAINING)
        await self._runner.until_idle()
        logger.warning("this worker is drained and stops")
        self._on_drained()
        await asyncio.Event().wait()  # until the process ends
