"""Detects a stuck consumer: messages stay on the queue although the worker has free slots.

In several versions of Celery, consumers have stopped after a reconnect. Nothing fails then; the queue only grows.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from redis.asyncio import Redis

from shared.domain.priorities import is_batch
from shared.redis import job_queue as queue
from shared.runtime.outages import is_redis_outage
from shared.runtime.periodic import run_periodically
from workers.execution.runner import Runner

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
STUCK_S = 10.0


class Watchdog:
    """Calls `on_stuck` if messages wait for more than `STUCK_S` seconds, slots are free and none is consumed."""

    def __init__(self, runner: Runner, redis: Redis, model: str, on_stuck: Callable[[], None]) -> None:
        self._runner = runner
        self._redis = redis
        self._model = model
        self._on_stuck = on_stuck
        self._waiting_since: float | None = None

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self._check, "watchdog check", interval_s=INTERVAL_S, tolerates=is_redis_outage)

    async def _check(self) -> None:
        try:
            waiting = self.consumable(await queue.depths(self._redis, self._model)) if self._runner.accepting else 0
        except Exception:
            self._waiting_since = None  # it is unknown whether messages wait
            raise
        if self.stuck(waiting, time.monotonic()):
            logger.critical(
                "model=%s %d messages are waiting and none is consumed although slots are free; stopping this worker",
                self._model,
                waiting,
            )
            self._waiting_since = None
            self._on_stuck()

    def consumable(self, depths: dict[int, int]) -> int:
        """The number of waiting messages for which slots are free and which no limit of an upstream holds back."""
        slot_pool = self._runner.slot_pool
        if self._runner.holding:
            return 0
        return sum(
            messages
            for priority, messages in depths.items()
            if (slot_pool.batch_room if is_batch(priority) else slot_pool.urgent_room) > 0
        )

    def stuck(self, waiting: int, now: float) -> bool:
        """Whether the consumer is stuck, given the consumable messages at a moment of the monotonic clock."""
        if waiting == 0 or not self._runner.accepting:
            self._waiting_since = None
        elif self._waiting_since is None or self._runner.last_message > self._waiting_since:
            self._waiting_since = now
        return self._waiting_since is not None and now - self._waiting_since > STUCK_S

    def stalled_s(self) -> float:
        """For how many seconds messages have waited although slots are free."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since
