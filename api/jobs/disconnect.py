"""Cancels the jobs of a synchronous call if its client disconnects before the result."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Sequence

from fastapi import Request
from sse_starlette.sse import AppStatus

from api.jobs.service import JobService
from api.streaming.errors import StreamAborted
from shared.domain.errors import HeadraceError
from shared.domain.job import Job
from shared.runtime.aio import cancel_and_wait, map_limited

logger = logging.getLogger(__name__)

# The jobs of one call that use database connections at the same time. A call has up to 1,024 jobs: all at once would
# keep the pool's connections from other requests, and wait for each other until the pool times out.
JOBS_AT_ONCE = 8


async def cancel_on_disconnect(
    frames: AsyncIterator[bytes], jobs: JobService, submitted: Sequence[Job], *, keep: Callable[[], bool]
) -> AsyncIterator[bytes]:
    """Yield the frames. If the client disconnects or the stream aborts, cancel the unfinished jobs, unless `keep()`."""
    unfinished = submitted
    try:
        async for frame in frames:
            yield frame
        unfinished = ()
    except StreamAborted as aborted:
        unfinished = aborted.unfinished
    finally:
        # A stream that the shutdown of this process closes has not been abandoned by its client.
        if unfinished and not keep() and not AppStatus.should_exit:
            await asyncio.shield(cancel_abandoned(jobs, unfinished))


async def while_connected(
    request: Request, jobs: JobService, submitted: Sequence[Job], *, keep: Callable[[], bool]
) -> list[Job] | None:
    """Wait for the jobs to end, and return them. If the client disconnects first, cancel them, unless `keep()`.

    Returns None if the client has disconnected.
    """
    # All have to end, so the order does not matter. A job that has ended meanwhile is read when its turn comes.
    ended = asyncio.create_task(map_limited(jobs.ended, submitted, JOBS_AT_ONCE))
    disconnected = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((ended, disconnected), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        if not keep():
            await cancel_abandoned(jobs, submitted)
        return None
    finally:
        await cancel_and_wait(ended, disconnected)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def cancel_abandoned(jobs: JobService, submitted: Iterable[Job]) -> None:
    """Cancel jobs whose client has disconnected."""
    # The newest first: if they are identical, all of them follow the oldest, and each that is cancelled would have to
    # hand over to the next one.
    for job in reversed([*submitted]):
        logger.info("job=%s client disconnected; cancelling", job.id)
        try:
            await jobs.cancel(job.id, job.owner.project_id)
        except (HeadraceError, OSError) as error:
            logger.warning("job=%s cannot cancel; the job runs to completion: %s", job.id, error)
