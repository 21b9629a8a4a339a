"""Waiting for a condition or an action, with a deadline."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
# A tenth of the time waited so far, within these bounds: polling 50 times a second takes half a core from what is
# waited for.
POLL_S, MAX_POLL_S = 0.02, 0.1


async def completed(action: Coroutine[Any, Any, T], within_s: float) -> T:
    """Run an action and return its result. After the deadline, fail with the position of each task of the loop.

    For examples of Hypothesis: pytest's timeout interrupts a test once, and then Hypothesis runs the example again.
    """
    task = asyncio.ensure_future(action)
    done, _ = await asyncio.wait({task}, timeout=within_s)
    if not done:
        positions = "\n".join(f"{one.get_name()}: {' > '.join(_frames(one))}" for one in asyncio.all_tasks())
        task.cancel()
        raise AssertionError(f"not completed within {within_s} s:\n{positions}")
    return task.result()


def _frames(task: asyncio.Task[Any]) -> Iterator[str]:
    """The functions that a task is in, from the outermost one to the one that waits."""
    awaited: Any = task.get_coro()
    while awaited is not None:
        frame = next((found for kind in ("cr", "gi", "ag") if (found := getattr(awaited, f"{kind}_frame", None))), None)
        if frame is not None:
            yield f"{frame.f_code.co_qualname}:{frame.f_lineno}"
        inner = (getattr(awaited, name, None) for name in ("cr_await", "gi_yieldfrom", "ag_await"))
        awaited = next((one for one in inner if one is not None), None)


async def eventually(probe: Callable[[], Awaitable[T | None]], what: str, *, within_s: float = 20) -> T:
    """Poll `probe` and return its first true value. After the deadline, fail with a message that names `what`."""
    began = time.monotonic()
    while True:
        value = await probe()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > within_s:
            raise AssertionError(f"{what}: not within {within_s} s; last seen: {value!r}")
        await asyncio.sleep(_pause(waited))


def eventually_sync(probe: Callable[[], T | None], what: str, *, within_s: float = 20) -> T:
    """The same for a test without an event loop."""
    began = time.monotonic()
    while True:
        value = probe()
        if value:
            return value
        waited = time.monotonic() - began
        if waited > within_s:
            raise AssertionError(f"{what}: not within {within_s} s; last seen: {value!r}")
        time.sleep(_pause(waited))


def _pause(waited_s: float) -> float:
    return min(max(POLL_S, waited_s / 10), MAX_POLL_S)
