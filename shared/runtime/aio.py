"""Waiting for events and cancelling tasks without losing a cancellation.

On Python 3.11 `asyncio.wait_for` swallows a cancellation that arrives in the iteration of the loop in which the awaited
future completes (python/cpython#86296). This code base does not use it (the linter forbids it), but libraries do:
redis-py writes inside of it. So a cancelled task may have to be cancelled again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

# Longer than a task's clean-up takes; a lost cancellation is rare.
AGAIN_S = 5.0
# Enough for what has been received to be handled.
LATE_S = 0.05


async def wait_for_event(event: asyncio.Event, within_s: float) -> bool:
    """Wait for an event for at most `within_s` seconds. Returns whether it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await event.wait()
    return event.is_set()


@contextlib.asynccontextmanager
async def timeout_of_others(seconds: float) -> AsyncIterator[None]:
    """As `asyncio.timeout`, for answers of another process: what has arrived while this process did not run still
    counts.

    After a stall of the event loop, timeouts expire before the loop has handled what was received meanwhile. So the
    answer has another `LATE_S` seconds from when the loop runs again.

    Raises:
        TimeoutError: there was no answer.
    """
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as timeout:
        timer = loop.call_later(seconds, lambda: timeout.reschedule(loop.time() + LATE_S))
        try:
            yield
        finally:
            timer.cancel()


async def map_limited(function: Callable[[T], Awaitable[R]], items: Iterable[T], limit: int) -> list[R]:
    """Apply a function to all items, at most `limit` at a time, and return the results in order.

    Raises the first exception, after the other calls have been cancelled.
    """
    room = asyncio.Semaphore(limit)

    async def apply(item: T) -> R:
        async with room:
            return await function(item)

    tasks = [asyncio.create_task(apply(item)) for item in items]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await cancel_and_wait(*tasks)


async def cancel_and_wait(*tasks: asyncio.Future[Any], again_s: float = AGAIN_S) -> None:
    """Cancel tasks and wait until all have ended; their results and exceptions are discarded.

    A task that has not ended after `again_s` seconds is cancelled again. If the caller is cancelled, the wait
    continues and `CancelledError` is raised at its end: no task is left running.
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
            task.exception()  # retrieved, so that the loop does not report it
    if cancelled is not None:
        raise cancelled
