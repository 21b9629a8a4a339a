"""A job's events as the native stream: the log's own bytes in SSE frames."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson

from api.jobs.service import JobService
from shared.job import Job, JobStatus


async def native_events(jobs: JobService, job: Job, after: int) -> AsyncIterator[bytes]:
    """`job.queued` while it waits (without an id: it is not in the log), then the log after the cursor.

    Returns once the first frame is known, so that a database that is away is an answer, not a broken stream.
    """
    first = b""
    if job.status is JobStatus.QUEUED and after == 0:
        position, eta_s = await jobs.backlog.waiting(job)
        first = b"event: job.queued\ndata: %s\n\n" % orjson.dumps({"position": position, "eta_s": eta_s})

    async def frames() -> AsyncIterator[bytes]:
        if first:
            yield first
        async for events in jobs.follow(job.id, after):
            yield b"".join(
                [b"id: %d\nevent: job.%b\ndata: %b\n\n" % (event.seq, event.name, event.data) for event in events]
            )

    return frames()
