"""Runs the parts of a process as tasks that must live as long as the process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from shared.runtime.aio import cancel_and_wait

logger = logging.getLogger(__name__)


class Supervisor:
    """Runs named parts as tasks. A part that ends without being cancelled is a fault that must stop the process."""

    def __init__(self, on_failure: Callable[[], None]) -> None:
        """`on_failure` is called on the event loop after a part has ended; it must stop the process."""
        self._on_failure = on_failure
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, name: str, part: Coroutine[Any, Any, None]) -> None:
        """Run a part until `stop`."""
        task = asyncio.create_task(part, name=name)
        task.add_done_callback(self._on_done)
        self._tasks.append(task)

    async def stop(self) -> None:
        """Cancel all parts and wait until they have ended."""
        await cancel_and_wait(*self._tasks)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled():
            logger.critical("%s ended unexpectedly; this process stops", task.get_name(), exc_info=task.exception())
            self._on_failure()
