"""Tells readers of jobs that wait when their place in the queue has changed: all of an API process together.

One query a second for all of them, whatever they are; none while nobody follows a job. A reader is told its place at
most once a second, and in small groups, so that thousands of them do not hold up other requests.
"""

from __future__ import annotations

import asyncio
import time

import orjson

from api.jobs.queue_estimates import FRESH_S, QueueEstimates
from api.streaming.hub import StreamHub
from shared.domain.events import Event, EventType
from shared.runtime.outages import is_database_outage
from shared.runtime.periodic import run_periodically

GROUP = 50
GROUP_PAUSE_S = 0.005


def place_data(position: int | None, eta_s: float | None) -> bytes:
    """What `job.queued` says."""
    return orjson.dumps({"position": position, "eta_s": eta_s})


class QueuePositions:
    """Watches the queues that readers of this process wait in."""

    def __init__(self, streams: StreamHub, backlog: QueueEstimates) -> None:
        self._streams = streams
        self._queue_estimates = backlog

    async def run(self) -> None:
        """Report positions until cancelled."""
        await run_periodically(self.tell, "queue position update", interval_s=FRESH_S, tolerates=is_database_outage)

    async def tell(self) -> int:
        """Tell those whose place has changed. Returns how many."""
        readers = self._streams.queued_readers()
        if not readers:
            return 0
        asked = time.monotonic()
        orders = await self._queue_estimates.orders(sorted({queued.model for _, queued in readers}))
        told = 0
        for job_id, queued in readers:
            place = orders[queued.model].place(queued.priority, job_id, surely_waits=queued.told is not None)
            if place is None or place == queued.told or queued.heard > asked:
                continue
            eta_s = await self._queue_estimates.wait_s(queued.model, queued.priority, place)
            queued.told = place
            self._streams.tell(job_id, queued, Event(0, EventType.QUEUED, place_data(place, eta_s)))
            told += 1
            if told % GROUP == 0:
                await asyncio.sleep(GROUP_PAUSE_S)
        return told
