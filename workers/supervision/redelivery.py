"""Resends lost messages of queued jobs. Each worker does this for its own model and the adapters of it.

A message can be lost with Redis, or with a worker that had fetched it. A job's message counts as lost if the queue, or
the list of the job's priority, is empty although the job is queued, or if a younger job of the same priority has been
claimed, whose message arrived when the job had already been due. None of these needs a timeout to be tuned. Messages
that an upstream's limit or circuit breaker holds back are not lost: they are on the queue, or at a worker.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection

from redis.asyncio import Redis

from shared.domain.job import JOB_ID_PREFIX
from shared.domain.priorities import BANDS, BATCH_PRIORITIES, URGENT_PRIORITIES, Hint, to_front
from shared.postgres.recovery_store import RecoveryStore
from shared.redis import job_queue as queue
from shared.redis.job_queue import HintSender
from shared.runtime.periodic import run_periodically
from shared.telemetry.metrics import Metrics
from workers.execution.runner import Runner

logger = logging.getLogger(__name__)

INTERVAL_S = 1.0
# Messages arrive within milliseconds; that of a row younger than this may still be in transit.
IN_TRANSIT_S = 2.0
# A queued job counts as passed over if it is this many seconds older than a claimed one, and had been due for as long
# when the message of that one arrived.
PASSED_OVER_S = 10
# While the queue is not empty, a worker may already have fetched a job's message. So no job is resent more often than
# this, and no more than this many jobs are resent at a time.
RESEND_INTERVAL_S = 30.0
RESEND_LIMIT = 50
ALL_PRIORITIES = range(URGENT_PRIORITIES[0], BATCH_PRIORITIES[-1] + 1)


class Redelivery:
    """Resends lost messages of the jobs on one model's queue."""

    def __init__(
        self,
        runner: Runner,
        store: RecoveryStore,
        redis: Redis,
        hints: HintSender,
        metrics: Metrics,
        model: str,
        adapters: Collection[str] = (),
    ) -> None:
        self._runner = runner
        self._store = store
        self._redis = redis
        self._hints = hints
        self._metrics = metrics
        self._model = model
        self._models = (model, *adapters)
        self._sent: dict[str, float] = {}

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self.resend_lost, "redelivery check", interval_s=INTERVAL_S)

    async def resend_lost(self) -> int:
        """Resend all messages that are lost. Returns their number."""
        if not self._runner.accepting:
            return 0
        in_transit_s = IN_TRANSIT_S + self._runner.longest_hold_s
        depths = await queue.depths(self._redis, self._model)
        if any(depths.values()):
            lost = self._not_recently_sent(await self._lost_in_queue(depths, in_transit_s))
        elif self._runner.holding:
            return 0  # messages wait here for the upstream; those of others could not be run either
        else:
            lost = await self._lost_in_empty_queue(in_transit_s)
        for hint in lost:
            self._hints.put(hint)
        if lost:
            self._metrics.hints_resent.labels(self._metrics.model_label(self._model)).inc(len(lost))
            logger.warning("model=%s the messages of %d queued jobs were lost; sent again", self._model, len(lost))
        return len(lost)

    async def _lost_in_empty_queue(self, in_transit_s: float) -> list[Hint]:
        """Hints for jobs whose message is lost because the queue is empty, as many as there is room for."""
        slot_pool, store, lost = self._runner.slot_pool, self._store, []
        rooms = [(slot_pool.urgent_room, URGENT_PRIORITIES), (slot_pool.batch_room, BATCH_PRIORITIES)]
        rooms = [(room, priorities) for room, priorities in rooms if room > 0]
        # One query, instead of one for each kind of jobs, is all that an idle worker needs.
        if len(rooms) > 1 and not await store.waiting(
            self._models, limit=1, older_than_s=in_transit_s, priorities=ALL_PRIORITIES
        ):
            return []
        for room, priorities in rooms:
            limit = room + len(self._runner.waiting)
            found = await store.waiting(self._models, limit=limit, older_than_s=in_transit_s, priorities=priorities)
            lost += self._not_here(found)[:room]
        return lost

    async def _lost_in_queue(self, depths: dict[int, int], in_transit_s: float) -> list[Hint]:
        """Hints for jobs whose message is lost although the queue is not empty; those passed over go to its front."""
        found: list[Hint] = []
        limit = RESEND_LIMIT + len(self._runner.waiting)
        for step, messages in depths.items():
            if not messages:
                found += await self._store.waiting(
                    self._models, limit=limit, older_than_s=in_transit_s, priorities=BANDS[step]
                )
        margin_s = PASSED_OVER_S + self._runner.longest_hold_s
        for priority, (claimed, arrived_at) in list(self._runner.last_claimed.items()):
            passed_over = await self._store.queued_before(
                self._models,
                priority,
                id_before(claimed, margin_s),
                due_for_s=time.monotonic() - arrived_at + margin_s,
                limit=limit,
            )
            found += map(to_front, passed_over)
        return self._not_here(found)

    def _not_here(self, hints: list[Hint]) -> list[Hint]:
        """Without jobs whose messages wait at this worker."""
        return [hint for hint in hints if hint.job_id not in self._runner.waiting]

    def _not_recently_sent(self, hints: list[Hint]) -> list[Hint]:
        now = time.monotonic()
        self._sent = {job_id: sent for job_id, sent in self._sent.items() if now - sent < RESEND_INTERVAL_S}
        fresh = {hint.job_id: hint for hint in hints if hint.job_id not in self._sent}
        self._sent |= dict.fromkeys(fresh, now)
        return list(fresh.values())


def id_before(job_id: str, seconds: float) -> str:
    """The first id of the time `seconds` before a job's submission: a UUIDv7 starts with 48 bits of milliseconds."""
    milliseconds = int(job_id.removeprefix(JOB_ID_PREFIX)[:12], 16) - round(seconds * 1000)
    return f"{JOB_ID_PREFIX}{milliseconds:012x}"
