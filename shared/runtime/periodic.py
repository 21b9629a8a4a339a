"""Runs a step periodically, through outages of the database and of Redis."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable

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
) -> None:
    """Await `step` every `interval_s` seconds until cancelled.

    Args:
        step: the work of one round.
        name: names the step in the warning about a failed round.
        interval_s: seconds between the end of one round and the start of the next.
        jitter: the fraction by which each wait varies, so that processes do not run in lockstep.
        immediately: start with a round instead of a wait.
        tolerates: whether an error is an outage: it is logged, and the next round tries again. Others propagate.
    """

    async def wait() -> None:
        await asyncio.sleep(interval_s * random.uniform(1 - jitter, 1 + jitter))

    if not immediately:
        await wait()
    while True:
        try:
            await step()
        except Exception as error:
            if not tolerates(error):
                raise
            logger.warning("%s failed, retrying: %s", name, error)
        await wait()
