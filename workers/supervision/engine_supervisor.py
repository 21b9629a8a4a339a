"""Restarts the engine when it dies: requeues its jobs at once, and retries the start with back-off."""

from __future__ import annotations

import asyncio
import logging
import time

from shared.domain.job import WorkerState
from shared.runtime.aio import wait_for_event
from shared.telemetry.metrics import Metrics
from workers.engines.base import ManagedEngine
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.execution.warm_up import WarmUp
from workers.supervision.consumer_control import ConsumerControl
from workers.supervision.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

POLL_S = 0.5
BACK_OFF_S = 1.0
# An engine that has run for this long has recovered: the back-off starts from its minimum again.
RECOVERED_S = 60.0
# The longest message of an error that is reported.
MAX_REASON = 300


def start_failure(error: Exception) -> str:
    """Why an engine failed to start, for operators."""
    return f"The engine failed to start: {type(error).__name__}: {str(error)[:MAX_REASON]}"


class EngineSupervisor:
    """Supervises one engine. While it is down, the worker accepts no messages and is not ready."""

    def __init__(
        self,
        engine: ManagedEngine,
        engine_death: asyncio.Event,
        runner: Runner,
        log_writer: LogWriter,
        heartbeat: Heartbeat,
        consumer: ConsumerControl,
        metrics: Metrics,
        model: str,
        *,
        back_off_max_s: float,
        warm_up: WarmUp | None = None,
    ) -> None:
        """`engine_death` is set by jobs that find the engine dead; the engine is polled as well.

        `warm_up` fills the prompt cache of an engine that was restarted.
        """
        self._restarts = metrics.engine_restarts.labels(metrics.model_label(model))
        self._engine = engine
        self._engine_death = engine_death
        self._runner = runner
        self._log_writer = log_writer
        self._heartbeat = heartbeat
        self._consumer = consumer
        self._back_off_max_s = back_off_max_s
        self._warm_up = warm_up
        self._delay_s = BACK_OFF_S

    async def run(self) -> None:
        """Supervise until cancelled."""
        started = time.monotonic()
        while True:
            await wait_for_event(self._engine_death, POLL_S)
            self._engine_death.clear()
            if self._engine.dead:
                if time.monotonic() - started > RECOVERED_S:
                    self._delay_s = BACK_OFF_S
                await self._restart()
                started = time.monotonic()

    async def _restart(self) -> None:
        self._restarts.inc()
        logger.error("the engine has died; requeuing %d jobs", self._runner.running)
        self._runner.pause()
        self._consumer.pause()
        await self._heartbeat.set_state(WorkerState.RESTARTING, "The engine has died.")
        await self._runner.requeue_all()
        await self._log_writer.drain(5)
        while True:
            await self._engine.stop()
            logger.warning("restarting the engine in %.0f s", self._delay_s)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, self._back_off_max_s)
            try:
                await self._engine.start()
            except Exception as error:
                # The cause may be temporary, such as a GPU that is still in use or a full disk.
                logger.exception("the engine failed to start")
                await self._heartbeat.set_state(WorkerState.RESTARTING, start_failure(error))
                continue
            if self._warm_up is not None and self._warm_up.needed:
                await self._heartbeat.set_state(WorkerState.WARMING)
                await self._warm_up.run()
            if not self._engine.dead:
                break
            await self._heartbeat.set_state(WorkerState.RESTARTING)
        self._runner.resume()
        await self._heartbeat.set_state(WorkerState.READY)
        self._consumer.resume()
        logger.warning("the engine is running again")
