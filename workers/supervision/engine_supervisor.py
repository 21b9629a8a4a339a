"""Keeps the engine alive: where it dies, its jobs go back at once, and it is started again, with back-off."""

from __future__ import annotations

import asyncio
import logging
import time

from shared.domain.job import WorkerState
from shared.runtime.aio import wait_for_event
from shared.telemetry.metrics import ENGINE_RESTARTS, model_label
from workers.engines.base import Engine
from workers.execution.log_writer import LogWriter
from workers.execution.runner import Runner
from workers.supervision.consumer_control import ConsumerControl
from workers.supervision.heartbeat import Heartbeat

logger = logging.getLogger(__name__)

POLL_S = 0.5
BACK_OFF_S = 1.0
# An engine that lives for so long has recovered: its next death starts the back-off anew.
RECOVERED_S = 60.0


class EngineSupervisor:
    """Watches one engine. While it is down the worker takes no messages and is not ready."""

    def __init__(
        self,
        engine: Engine,
        engine_death: asyncio.Event,
        runner: Runner,
        log_writer: LogWriter,
        heartbeat: Heartbeat,
        consumer: ConsumerControl,
        model: str,
        *,
        back_off_max_s: float,
    ) -> None:
        self._model = model_label(model)
        self._engine = engine
        self._engine_death = engine_death
        self._runner = runner
        self._log_writer = log_writer
        self._heartbeat = heartbeat
        self._consumer = consumer
        self._back_off_max_s = back_off_max_s
        self._delay_s = BACK_OFF_S

    async def run(self) -> None:
        """Watch for ever; cancel to stop."""
        started = time.monotonic()
        while True:
            await wait_for_event(self._engine_death, POLL_S)
            self._engine_death.clear()
            if self._engine.dead:
                if time.monotonic() - started > RECOVERED_S:
                    self._delay_s = BACK_OFF_S
                await self._replace()
                started = time.monotonic()

    async def _replace(self) -> None:
        ENGINE_RESTARTS.labels(self._model).inc()
        logger.error("the engine has died; %d jobs go back to the queue", self._runner.running)
        self._runner.pause()
        self._consumer.pause()
        await self._heartbeat.show(WorkerState.RESTARTING)
        await self._runner.requeue_all()
        await self._log_writer.drain(5)
        while True:
            await self._engine.stop()
            logger.warning("starting the engine again in %.0f s", self._delay_s)
            await asyncio.sleep(self._delay_s)
            self._delay_s = min(2 * self._delay_s, self._back_off_max_s)
            try:
                await self._engine.start()
                break
            except Exception:
                # Whatever keeps it from starting, a GPU that is still taken or a full disk, may pass.
                logger.exception("the engine did not start")
        self._runner.resume()
        await self._heartbeat.show(WorkerState.READY)
        self._consumer.resume()
        logger.warning("the engine is back")
