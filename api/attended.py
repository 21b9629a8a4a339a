"""Jobs whose client waits for the answer, whichever face it asks: when it leaves, its job is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator

from fastapi import Request
from sse_starlette.sse import AppStatus

from api.jobs.service import JobService
from shared.errors import HeadraceError
from shared.job import Job

logger = logging.getLogger(__name__)


async def owned(events: AsyncIterator[bytes], jobs: JobService, job: Job) -> AsyncIterator[bytes]:
    """A stream that owns its job: a client that leaves cancels it."""
    whole_stream = False
    try:
        async for frame in events:
            yield frame
        whole_stream = True
    finally:
        if not whole_stream and not AppStatus.should_exit:  # this process stops: its client has not left
            await asyncio.shield(_abandon(jobs, job))


async def while_connected(request: Request, jobs: JobService, job: Job, *, keeps: bool) -> Job | None:
    """The job once it has ended; None where the client has left before. Its job is cancelled then, unless kept."""
    end = asyncio.create_task(jobs.finished(job.id, job.key_id))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((end, gone), return_when=asyncio.FIRST_COMPLETED)
        if end.done():
            return end.result()
        if not keeps:
            await _abandon(jobs, job)
        return None
    finally:
        for task in (end, gone):
            task.cancel()
        await asyncio.gather(end, gone, return_exceptions=True)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _abandon(jobs: JobService, job: Job) -> None:
    logger.info("job=%s its client has left; cancelling it", job.id)
    try:
        await jobs.cancel(job.id, job.key_id)
    except (HeadraceError, OSError) as error:
        logger.warning("job=%s cannot be cancelled, it runs to its end: %s", job.id, error)
