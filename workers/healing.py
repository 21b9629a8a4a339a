"""Finds jobs whose message was lost: a worker with room asks the rows.

A message can be lost with Redis, or with a worker that died with it in hand. Two signs, and no threshold to
guess: the queue is empty while rows wait, or a row waits that is older than one already served.
"""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis

from shared import queue
from shared.job import JOB_ID_PREFIX
from shared.job_store import JobStore
from shared.outage import is_outage
from shared.queue import HintSender
from workers.runner import Runner

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# A hint travels in milliseconds; a row younger than this may still have its own on the way.
ON_THE_WAY_S = 2.0
OVERTAKEN_S = 10


class Healer:
    """Sends hints again for jobs of this worker's model."""

    def __init__(self, runner: Runner, store: JobStore, redis: Redis, hints: HintSender, model: str) -> None:
        self._runner = runner
        self._store = store
        self._redis = redis
        self._hints = hints
        self._model = model

    async def run(self) -> None:
        """Look for ever; cancel to stop."""
        while True:
            await asyncio.sleep(INTERVAL_S)
            try:
                await self.heal()
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot look for lost messages, trying again: %s", error)

    async def heal(self) -> int:
        """Send hints for jobs that have none. Returns how many."""
        room = self._runner.slots - self._runner.in_hand
        if room <= 0 or not self._runner.taking:
            return 0
        if await queue.depth(self._redis, self._model) == 0:
            lost = await self._store.waiting(self._model, limit=room, older_than_s=ON_THE_WAY_S)
        elif (served := self._runner.last_claimed) is not None:
            lost = await self._store.overtaken(
                self._model, served.priority, earlier(served.id, OVERTAKEN_S), limit=room
            )
        else:
            lost = []
        for hint in lost:
            self._hints.put(hint)
        if lost:
            logger.warning("model=%s %d waiting jobs had no message; sent again", self._model, len(lost))
        return len(lost)


def earlier(job_id: str, seconds: int) -> str:
    """The id that a job would have had so many seconds earlier: a UUIDv7 begins with 48 bits of milliseconds."""
    milliseconds = int(job_id.removeprefix(JOB_ID_PREFIX)[:12], 16) - seconds * 1000
    return f"{JOB_ID_PREFIX}{milliseconds:012x}"
