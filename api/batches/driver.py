"""Drives batches: every API process may, none must. Who finds one due takes its next step."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
import socket
from collections.abc import Coroutine
from typing import Any

from api.batches.batch import Batch
from api.batches.steps import BatchSteps
from api.batches.store import BatchStore
from shared.domain.errors import Unavailable
from shared.runtime.aio import cancel_and_wait, wait_for_event
from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)

# Steps that one process takes at the same time: reading a long file must not keep others' jobs from coming.
AT_ONCE = 4
# After an outage, or a fault, which should not be.
AGAIN_S, FAULT_S = 2.0, 30.0


class BatchDriver:
    """Takes steps of batches for as long as its process lives."""

    def __init__(self, store: BatchStore, steps: BatchSteps, *, poll_s: float, lease_s: float) -> None:
        self._store = store
        self._steps = steps
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._wake = asyncio.Event()
        self._steps_taken: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """A batch was made or cancelled: look now."""
        self._wake.set()

    async def run(self) -> None:
        """Drive for ever; cancel to stop. A step that is cut off by that is another process's to take."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._take_due()
                except Exception as error:
                    if not (is_outage(error) or isinstance(error, Unavailable)):
                        raise
                    logger.warning("cannot look for batches, trying again: %s", error)
                await wait_for_event(self._wake, self._poll_s * random.uniform(0.8, 1.2))
        finally:
            await cancel_and_wait(*self._steps_taken)

    async def _take_due(self) -> None:
        while len(self._steps_taken) < AT_ONCE:
            batch = await self._store.claim(self._name, self._lease_s)
            if batch is None:
                return
            task = asyncio.create_task(self._step(batch), name=batch.id)
            self._steps_taken.add(task)
            task.add_done_callback(self._stepped)

    def _stepped(self, task: asyncio.Task[None]) -> None:
        self._steps_taken.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("batch=%s is left until its lease is over: %s", task.get_name(), error)
        self.wake()

    async def _step(self, batch: Batch) -> None:
        """Take a step, and say when the next is due."""
        try:
            further = await self._with_lease(batch, self._steps.take(batch))
        except Exception as error:
            if is_outage(error) or isinstance(error, Unavailable):
                logger.warning("batch=%s goes on when everything is back: %s", batch.id, error)
                wait_s = AGAIN_S
            else:
                logger.exception("batch=%s its step failed", batch.id)
                wait_s = FAULT_S
        else:
            wait_s = 0.0 if further else self._poll_s
        await self._store.due_in(batch.id, self._name, wait_s)

    async def _with_lease(self, batch: Batch, step: Coroutine[Any, Any, bool]) -> bool:
        """Keep the batch for as long as the step takes; drop the step where another driver has the batch."""
        taking = asyncio.create_task(step)
        keeping = asyncio.create_task(self._keep(batch))
        try:
            await asyncio.wait((taking, keeping), return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                return taking.result()
            keeping.result()
            return False
        finally:
            await cancel_and_wait(taking, keeping)

    async def _keep(self, batch: Batch) -> None:
        """Renew the lease until it is lost."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not await self._store.due_in(batch.id, self._name, self._lease_s):
                logger.warning("batch=%s another driver has taken it over", batch.id)
                return
