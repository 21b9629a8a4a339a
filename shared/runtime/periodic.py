"""Runs a step periodically, through outages of the database and of Redis."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

from shared.runtime.aio import wait_for_event
from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)


async def run_periodically(
    step: Callable[[], Awaitable[object]],
    name: str,
    *,
    interval_s: float,
    jitter: float = 0.0,
    immediately: bool = False,
    tolerates: Callable[[BaseException], bool] = is_outage,
    hurry: asyncio.Event | None = None,
) -> None:
    """Await `step` every `interval_s` seconds until cancelled.

    Args:
        step: the work of one round.
        name: names the step in the warning about a failed round.
        interval_s: seconds between the end of one round and the start of the next.
        jitter: the fraction by which each wait varies, so that processes do not run in lockstep.
        immediately: start with a round instead of a wait.
        tolerates: whether an error is an outage: it is logged, and the next round tries again. Others propagate.
        hurry: starts the next round at once when it is set, and is cleared.
    """

    async def wait() -> None:
        pause_s = interval_s * random.uniform(1 - jitter, 1 + jitter)
        if hurry is None:
            await asyncio.sleep(pause_s)
        else:
            await wait_for_event(hurry, pause_s)
            hurry.clear()

    if not immediately:
        await wait()
    while True:
        await run_tolerantly(step, name, tolerates=tolerates)
        await wait()


async def run_tolerantly(
    step: Callable[[], Awaitable[object]], name: str, *, tolerates: Callable[[BaseException], bool] = is_outage
) -> None:
    """Await `step` once. An error that is an outage is logged with `name`, because the step runs again later.

    Raises:
        Exception: an error of the step that `tolerates` does not accept.
    """
    try:
        await step()
    except Exception as error:
        if not tolerates(error):
            raise
        logger.warning("%s failed, retrying: %s", name, error)
