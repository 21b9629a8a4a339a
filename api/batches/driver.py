"""Runs the steps of batches. Any API process can claim a batch that is due and run its next step."""

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
from shared.domain.errors import Unavailable, UnreadableRow
from shared.runtime.aio import cancel_and_wait, wait_for_event
from shared.runtime.outages import is_outage

logger = logging.getLogger(__name__)

# Steps that one process runs concurrently, so that reading a long file does not delay other batches.
MAX_CONCURRENT_STEPS = 4
# Delay before a failed step is retried: after an outage, and after an unexpected error.
OUTAGE_RETRY_S, ERROR_RETRY_S = 2.0, 30.0


class BatchDriver:
    """Claims due batches and runs their steps."""

    def __init__(self, store: BatchStore, steps: BatchSteps, *, poll_s: float, lease_s: float) -> None:
        self._store = store
        self._steps = steps
        self._poll_s = poll_s
        self._lease_s = lease_s
        self._name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self._wake = asyncio.Event()
        self._running_steps: set[asyncio.Task[None]] = set()

    def wake(self) -> None:
        """Check for due batches now: one has been created or cancelled."""
        self._wake.set()

    async def run(self) -> None:
        """Run steps until cancelled. Another process retries the steps that the cancel interrupts."""
        try:
            while True:
                self._wake.clear()
                try:
                    await self._claim_due()
                except Exception as error:
                    if not (is_outage(error) or isinstance(error, Unavailable)):
                        raise
                    logger.warning("cannot check for batches, retrying: %s", error)
                await wait_for_event(self._wake, self._poll_s * random.uniform(0.8, 1.2))
        finally:
            await cancel_and_wait(*self._running_steps)

    async def _claim_due(self) -> None:
        while len(self._running_steps) < MAX_CONCURRENT_STEPS:
            try:
                batch = await self._store.claim(self._name, self._lease_s)
            except UnreadableRow as error:
                # Its lease leaves the batch out for a while.
                logger.error("batch=%s cannot be read: %s", error.item_id, error.reason)
                continue
            if batch is None:
                return
            task = asyncio.create_task(self._run_step(batch), name=batch.id)
            self._running_steps.add(task)
            task.add_done_callback(self._on_step_done)

    def _on_step_done(self, task: asyncio.Task[None]) -> None:
        self._running_steps.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.warning("batch=%s step abandoned until its lease expires: %s", task.get_name(), error)
        self.wake()

    async def _run_step(self, batch: Batch) -> None:
        """Run a step, and schedule the next."""
        try:
            step_follows = await self._with_lease(batch, self._steps.take(batch))
        except Exception as error:
            if is_outage(error) or isinstance(error, Unavailable):
                logger.warning("batch=%s step failed during an outage, retrying: %s", batch.id, error)
                wait_s = OUTAGE_RETRY_S
            else:
                logger.exception("batch=%s step failed", batch.id)
                wait_s = ERROR_RETRY_S
        else:
            wait_s = 0.0 if step_follows else self._poll_s
        await self._store.reschedule(batch.id, self._name, wait_s)

    async def _with_lease(self, batch: Batch, step: Coroutine[Any, Any, bool]) -> bool:
        """Run a step while renewing the lease; cancel the step if the lease is lost."""
        running = asyncio.create_task(step)
        renewing = asyncio.create_task(self._renew_lease(batch))
        try:
            await asyncio.wait((running, renewing), return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                return running.result()
            renewing.result()
            return False
        finally:
            await cancel_and_wait(running, renewing)

    async def _renew_lease(self, batch: Batch) -> None:
        """Renew the lease until it is lost."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            if not await self._store.reschedule(batch.id, self._name, self._lease_s):
                logger.warning("batch=%s lease taken over by another process", batch.id)
                return
