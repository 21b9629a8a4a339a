"""A job's events as the native stream: the log's own bytes in SSE frames."""

from __future__ import annotations

from collections.abc import AsyncIterator

import orjson

from api.jobs.service import JobService
from shared.job import Job, JobStatus


async def native_events(jobs: JobService, job: Job, after: int) -> AsyncIterator[bytes]:
    """`job.queued` while it waits (without an id: it is not in the log), then the log after the cursor."""
    if job.status is JobStatus.QUEUED and after == 0:
        position, eta_s = await jobs.waiting(job)
        yield b"event: job.queued\ndata: %s\n\n" % orjson.dumps({"position": position, "eta_s": eta_s})
    async for event in jobs.follow(job.id, after):
        yield b"id: %d\nevent: job.%s\ndata: %s\n\n" % (event.seq, event.type.value.encode(), event.data)
