"""Finds jobs whose message was lost: each worker asks the rows.

A message can be lost with Redis, or with a worker that died with it in hand. The signs, with no threshold to
guess: the queue is empty while rows wait; one of its priority's lists is, while rows of those priorities wait; or
a row waits that is older than one already served.
"""

from __future__ import annotations

import logging
import time

from redis.asyncio import Redis

from shared.domain.job import JOB_ID_PREFIX
from shared.domain.priorities import BANDS, BATCH_PRIORITIES, URGENT_PRIORITIES, Hint, to_front
from shared.postgres.recovery_store import RecoveryStore
from shared.redis import job_queue as queue
from shared.redis.job_queue import HintSender
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import RESENT, model_label
from workers.execution.runner import Runner

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# A hint travels in milliseconds; a row younger than this may still have its own on the way.
ON_THE_WAY_S = 2.0
OVERTAKEN_S = 10
# What may be in some worker's hands already is sent again this rarely, and so many at a time.
AGAIN_S = 30.0
AT_ONCE = 50


class Redelivery:
    """Sends hints again for jobs of this worker's model."""

    def __init__(self, runner: Runner, store: RecoveryStore, redis: Redis, hints: HintSender, model: str) -> None:
        self._runner = runner
        self._store = store
        self._redis = redis
        self._hints = hints
        self._model = model
        self._sent: dict[str, float] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self.heal, "redelivery check", interval_s=INTERVAL_S)

    async def heal(self) -> int:
        """Send hints for jobs that have none. Returns how many."""
        if not self._runner.accepting:
            return 0
        depths = await queue.depths(self._redis, self._model)
        if any(depths.values()):
            lost = self._not_lately(await self._passed_over(depths))
        else:
            slot_pool, lost = self._runner.slot_pool, []
            for room, priorities in (
                (slot_pool.urgent_room, URGENT_PRIORITIES),
                (slot_pool.batch_room, BATCH_PRIORITIES),
            ):
                if room > 0:
                    lost += await self._store.waiting(
                        self._model, limit=room, older_than_s=ON_THE_WAY_S, priorities=priorities
                    )
        for hint in lost:
            self._hints.put(hint)
        if lost:
            RESENT.labels(model_label(self._model)).inc(len(lost))
            logger.warning("model=%s %d waiting jobs had no message; sent again", self._model, len(lost))
        return len(lost)

    async def _passed_over(self, depths: dict[int, int]) -> list[Hint]:
        """Rows without a message in a queue that is not empty. Those that were overtaken go first."""
        found: list[Hint] = []
        for step, messages in depths.items():
            if not messages:
                found += await self._store.waiting(
                    self._model, limit=AT_ONCE, older_than_s=ON_THE_WAY_S, priorities=BANDS[step]
                )
        for priority, served in list(self._runner.last_claimed.items()):
            before = earlier(served, OVERTAKEN_S)
            found += map(to_front, await self._store.queued_before(self._model, priority, before, limit=AT_ONCE))
        return found

    def _not_lately(self, hints: list[Hint]) -> list[Hint]:
        now = time.monotonic()
        self._sent = {job_id: sent for job_id, sent in self._sent.items() if now - sent < AGAIN_S}
        fresh = {hint.job_id: hint for hint in hints if hint.job_id not in self._sent}
        self._sent |= dict.fromkeys(fresh, now)
        return list(fresh.values())


def earlier(job_id: str, seconds: int) -> str:
    """The id that a job would have had so many seconds earlier: a UUIDv7 begins with 48 bits of milliseconds."""
    milliseconds = int(job_id.removeprefix(JOB_ID_PREFIX)[:12], 16) - seconds * 1000
    return f"{JOB_ID_PREFIX}{milliseconds:012x}"
