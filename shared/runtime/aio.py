"""Waiting for events and ending tasks, so that no cancel is lost.

On Python 3.11 `asyncio.wait_for` returns normally, as if nobody had cancelled, where what it waits for is done in the
same turn of the loop (python/cpython#86296). So nothing here waits with it (the linter says so), and what others do is
reckoned with: redis-py writes inside of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

# Long enough for what a task does on its way out; a cancel that was lost is rare.
AGAIN_S = 5.0


async def wait_for_event(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event, for so long at most; whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


async def cancel_and_wait(*tasks: asyncio.Future[Any], again_s: float = AGAIN_S) -> None:
    """Cancel tasks until they have ended, and wait for that; what they return or raise is not told.

    One that has not ended after `again_s` seconds is cancelled again. Who is cancelled while it waits here waits on,
    and hears of it afterwards: tasks are never left behind.
    """
    clock = asyncio.get_running_loop().time
    cancelled: asyncio.CancelledError | None = None
    while running := [task for task in tasks if not task.done()]:
        for task in running:
            task.cancel()
        again_at = clock() + again_s
        while (running := [task for task in running if not task.done()]) and (left_s := again_at - clock()) > 0:
            try:
                await asyncio.wait(running, timeout=left_s)
            except asyncio.CancelledError as error:
                cancelled = error
    for task in tasks:
        if not task.cancelled():
            task.exception()  # otherwise the loop reports that nobody has seen it
    if cancelled is not None:
        raise cancelled
