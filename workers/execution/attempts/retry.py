"""Waits for the database and Redis on behalf of a running job."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)

T = TypeVar("T")
RETRY_S = (0.1, 2.0)


async def retry(call: Callable[[], Awaitable[T]], what: str) -> T:
    """Await `call` until the database and Redis are available; the job's output waits in memory meanwhile."""
    delay = RETRY_S[0]
    while True:
        try:
            return await call()
        except Exception as error:
            if not is_outage(error):
                raise
            logger.warning("cannot read or write a job's %s, retrying: %s", what, error)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_S[1])
