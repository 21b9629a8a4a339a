"""Notices a worker that has room while messages wait on its queue: its consumer is stuck, and it must end.

Celery's consumers have stopped after reconnects in several versions; nothing fails then, the queue just grows.
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
    """Calls `on_stuck` once messages have waited for 10 s, room being there, without one being taken."""

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
            waiting = self.untaken(await queue.depths(self._redis, self._model)) if self._runner.accepting else 0
        except Exception:
            self._waiting_since = None  # nobody knows whether messages wait
            raise
        if self.stuck(waiting, time.monotonic()):
            logger.critical(
                "model=%s %d messages wait and none is taken, though there is room: ending this worker",
                self._model,
                waiting,
            )
            self._waiting_since = None
            self._on_stuck()

    def untaken(self, depths: dict[int, int]) -> int:
        """Messages that wait though there is room for their kind."""
        slot_pool = self._runner.slot_pool
        return sum(
            messages
            for priority, messages in depths.items()
            if (slot_pool.batch_room if is_batch(priority) else slot_pool.urgent_room) > 0
        )

    def stuck(self, waiting: int, now: float) -> bool:
        """Whether messages wait for too long, room being there, as seen at a moment of the monotonic clock."""
        if waiting == 0 or not self._runner.accepting:
            self._waiting_since = None
        elif self._waiting_since is None or self._runner.last_message > self._waiting_since:
            self._waiting_since = now
        return self._waiting_since is not None and now - self._waiting_since > STUCK_S

    def stalled_s(self) -> float:
        """How long messages have waited by now, room being there."""
        since = self._waiting_since
        return 0.0 if since is None else time.monotonic() - since
