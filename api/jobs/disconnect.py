"""Jobs whose client waits for the answer, whichever face it asks: when it leaves, its job is cancelled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterable, Sequence

from fastapi import Request
from sse_starlette.sse import AppStatus

from api.jobs.service import JobService
from api.streaming.errors import CutShort
from shared.domain.errors import HeadraceError
from shared.domain.job import Job
from shared.runtime.aio import cancel_and_wait

logger = logging.getLogger(__name__)


async def cancel_on_disconnect(
    events: AsyncIterator[bytes], jobs: JobService, submitted: Sequence[Job], *, keeps: bool
) -> AsyncIterator[bytes]:
    """A stream whose jobs end with it, unless kept: where its client leaves, or where it is `CutShort`."""
    left = submitted
    try:
        async for frame in events:
            yield frame
        left = ()
    except CutShort as cut:
        left = cut.left
    finally:
        if left and not keeps and not AppStatus.should_exit:  # this process stops: its client has not left
            await asyncio.shield(abandon(jobs, left))


async def while_connected(request: Request, jobs: JobService, job: Job, *, keeps: bool) -> Job | None:
    """The job once it has ended; None where the client has left before. Its job is cancelled then, unless kept."""
    ended = await all_while_connected(request, jobs, [job], keeps=keeps)
    return None if ended is None else ended[0]


async def all_while_connected(
    request: Request, jobs: JobService, submitted: Sequence[Job], *, keeps: bool
) -> list[Job] | None:
    """Jobs of one call once all have ended; None where the client has left before. Then they are cancelled, unless
    kept."""
    ended = asyncio.gather(*(jobs.finished(job.id, job.owner.project_id) for job in submitted))
    gone = asyncio.create_task(_disconnected(request))
    try:
        await asyncio.wait((ended, gone), return_when=asyncio.FIRST_COMPLETED)
        if ended.done():
            return ended.result()
        if not keeps:
            await abandon(jobs, submitted)
        return None
    finally:
        await cancel_and_wait(ended, gone)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def abandon(jobs: JobService, submitted: Iterable[Job]) -> None:
    """Cancel jobs that nobody waits for any more."""
    for job in submitted:
        logger.info("job=%s nobody waits for it any more; cancelling it", job.id)
        try:
            await jobs.cancel(job.id, job.owner.project_id)
        except (HeadraceError, OSError) as error:
            logger.warning("job=%s cannot be cancelled, it runs to its end: %s", job.id, error)
