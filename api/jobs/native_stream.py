"""The native event stream: SSE frames with the unchanged bytes of the log's events."""

from __future__ import annotations

from collections.abc import AsyncIterator

from api.jobs.queue_positions import position_data
from api.jobs.service import JobService
from api.streaming.reader import QueuedReader
from shared.domain.job import Job, JobStatus

_POSITION = b"event: job.queued\ndata: %b\n\n"
_KEEPALIVE = b"event: job.keepalive\ndata: {}\n\n"


async def native_stream(jobs: JobService, job: Job, after: int) -> AsyncIterator[bytes]:
    """Stream the log after a cursor and, while the job is queued, `job.queued` at each change of its position.

    Positions and keepalives have no id, because they are not in the log. Positions are also sent if the job is queued
    again after the loss of its worker.

    Returns once the first frame is known, so that a database outage results in an error response, not a broken stream.
    """
    first, position = b"", None
    if job.status is JobStatus.QUEUED and after == 0:
        position, eta_s = await jobs.queue_estimates.waiting(job)
        first = _POSITION % position_data(position, eta_s)
    queued = QueuedReader(job.model, job.priority, position)

    async def frames() -> AsyncIterator[bytes]:
        if first:
            yield first
        with jobs.traces.streaming(job, after) as trace:
            async for events in jobs.follow(job.id, after, queued):
                if not events:
                    yield _KEEPALIVE
                    continue
                if not events[0].seq:
                    yield _POSITION % events[0].data
                    continue
                trace.delivered(len(events))
                yield b"".join(
                    [b"id: %d\nevent: job.%b\ndata: %b\n\n" % (event.seq, event.name, event.data) for event in events]
                )

    return frames()
