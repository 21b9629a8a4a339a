"""Reports queue positions to the readers of queued jobs.

One query per second serves all readers of the process; without readers there is none. A reader receives at most one
position per second. Readers are served in small groups, so that thousands of them do not delay other requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import orjson

from api.jobs.queue_estimates import FRESH_S, QueueEstimates
from api.streaming.hub import StreamHub
from api.streaming.reader import QueuedReader
from shared.domain.events import Event, EventType
from shared.runtime.outages import is_database_outage
from shared.runtime.periodic import run_periodically

GROUP = 50
GROUP_PAUSE_S = 0.005


def position_data(position: int | None, eta_s: float | None, *, paused: bool) -> bytes:
    """The data of a `job.queued` event. `paused`: an operator has paused the queue, so that the job waits for that."""
    data: dict[str, object] = {"position": position, "eta_s": eta_s}
    return orjson.dumps({**data, "paused": True} if paused else data)


class QueuePositions:
    """Reports changed positions to this process's readers."""

    def __init__(self, hub: StreamHub, estimates: QueueEstimates) -> None:
        self._hub = hub
        self._estimates = estimates

    async def run(self) -> None:
        """Report positions until cancelled."""
        await run_periodically(self.report, "queue position update", interval_s=FRESH_S, tolerates=is_database_outage)

    async def report(self) -> int:
        """Report the positions that have changed, and those in queues that were paused or resumed. Returns their
        number."""
        readers = self._hub.queued_readers()
        if not readers:
            return 0
        orders = await self._estimates.orders(sorted({queued.model for _, queued in readers}))
        absent, reported = [], 0
        for job_id, queued in readers:
            order = orders.by_model[queued.model]
            position = order.position(queued.priority, job_id, known_queued=queued.position is not None)
            if position is None:
                if queued.position is not None:
                    absent.append((job_id, queued))
                continue
            is_known = (position, order.paused) == (queued.position, queued.paused)
            if is_known or queued.event_at > orders.read_at:
                continue
            not_before = order.not_before.get(job_id)
            eta_s = await self._estimates.wait_s(queued.model, queued.priority, position, not_before)
            if queued.event_at > orders.read_at:  # it was started meanwhile
                continue
            queued.position, queued.paused = position, order.paused
            data = position_data(position, eta_s, paused=order.paused)
            self._hub.report_position(job_id, queued, Event(0, EventType.QUEUED, data))
            reported += 1
            if reported % GROUP == 0:
                await asyncio.sleep(GROUP_PAUSE_S)
        if absent:
            await self._follow(absent)
        return reported

    async def _follow(self, absent: Sequence[tuple[str, QueuedReader]]) -> None:
        """Let readers wait in the queue that their job has moved to. Most such jobs were only claimed."""
        models = await self._estimates.queued_at([job_id for job_id, _ in absent])
        for job_id, queued in absent:
            model = models.get(job_id, queued.model)
            if model != queued.model:
                queued.model, queued.position = model, None
