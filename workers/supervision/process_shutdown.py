"""Stops a worker process that is faulty."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable

from celery.worker import state as celery_state

logger = logging.getLogger(__name__)

EXIT_FAULT = 75  # EX_TEMPFAIL of sysexits.h
FORCE_AFTER_S = 10.0


class ProcessShutdown:
    """Stops this process: through Celery, or by force if Celery is stuck."""

    def __init__(self, release: Callable[[], Awaitable[None]]) -> None:
        """`release` gives up the worker's jobs and its lease."""
        self._release = release
        self._forcing: asyncio.Task[None] | None = None

    def begin(self, exit_code: int = EXIT_FAULT) -> None:
        """Ask Celery to stop, and release the jobs meanwhile. Runs on the event loop; a second call does nothing.

        With the default exit code, the process's supervisor starts another.
        """
        if self._forcing is None:
            celery_state.should_stop = exit_code
            self._forcing = asyncio.create_task(self._force(exit_code), name="process-shutdown")

    async def _force(self, exit_code: int) -> None:
        try:
            await self._release()
        except Exception:
            # The lease expires, and other workers take over the jobs. This process must end in any case.
            logger.exception("cannot release the jobs of this worker; ending the process")
        await asyncio.sleep(FORCE_AFTER_S)
        logger.critical("Celery does not stop; ending the process")
        os._exit(exit_code)
