"""Renews the worker's lease from a thread of its own, so that an event loop that is busy for long does not lose it.

A loop that does not answer at all is stuck: after `stall_s` seconds its lease is no longer renewed, and other workers
take over its jobs. One that is still stuck after `STALLS` times as long does not come back, and the process ends, so
that its supervisor starts a new one. The start of an engine, which may block the loop for minutes, is no such case:
the worker has no jobs then, and its lease shows operators that it is loading. C code that holds the interpreter's lock
for longer than the lease stops this thread too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable

from shared.postgres.claim_store import ClaimStore
from shared.postgres.engine import connect
from shared.runtime.outages import is_outage
from workers.settings import WorkerSettings

logger = logging.getLogger(__name__)

JOIN_S = 5.0
# A suspended machine or a loop in swap comes back, and keeps its engine; this many stalls later, that is unlikely.
STALLS = 10
EXIT_CODE = 70


class LeaseKeeper:
    """Extends a lease that has begun, for as long as the worker's event loop answers or its engine starts.

    It changes only the time at which the lease expires: the heartbeat writes the rest, and a lease that was ended stays
    ended.
    """

    def __init__(
        self, settings: WorkerSettings, worker: str, *, starting: Callable[[], bool], on_failure: Callable[[], None]
    ) -> None:
        """`starting` returns whether the engine is being started, and is called in the thread.

        `on_failure` is called on the event loop if the thread fails; it must stop the process.
        """
        self._settings = settings
        self._worker = worker
        self._starting = starting
        self._on_failure = on_failure
        # Called in the thread with each renewal.
        self.beat: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=self._run, name="lease-keeper", daemon=True)
        # The watched loop, its thread, and since when it has not answered; None if it has.
        self._watched: asyncio.AbstractEventLoop | None = None
        self._watched_thread = 0
        self._silent_since: float | None = None
        self._stalled = False
        # The thread's own loop and task, once it runs.
        self._running = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Watch the running event loop, and renew the lease until `stop`."""
        self._watched = asyncio.get_running_loop()
        self._watched_thread = threading.get_ident()
        self._thread.start()
        self._running.wait()

    async def stop(self) -> None:
        """Stop renewing the lease, and wait until the thread has ended."""
        if self._loop is not None and self._task is not None and self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the thread has just ended
                self._loop.call_soon_threadsafe(self._task.cancel)
            await asyncio.to_thread(self._thread.join, JOIN_S)

    # In the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except asyncio.CancelledError:
            return
        except Exception:
            logger.critical("the lease keeper ended unexpectedly; this process stops", exc_info=True)
            assert self._watched is not None
            self._watched.call_soon_threadsafe(self._on_failure)

    async def _keep(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._running.set()
        database = connect(self._settings.database_url, pool_size=1)
        store = ClaimStore(database, self._worker)
        try:
            while True:
                await asyncio.sleep(self._settings.heartbeat_s)
                if not self._answers():
                    continue
                self.beat()
                try:
                    await store.renew_lease(self._settings.lease_s)
                except Exception as error:
                    if not is_outage(error):
                        raise
                    logger.warning("lease renewal failed, retrying: %s", error)
        finally:
            await database.dispose()

    def _answers(self) -> bool:
        """Whether the watched loop has answered within `stall_s` seconds, or need not answer.

        Asks it again if it has answered.
        """
        assert self._watched is not None
        if self._starting():
            self._silent_since = None  # what it did not answer meanwhile does not count afterwards
            return True
        since = self._silent_since  # the watched loop may reset it at any time
        if since is None:
            self._silent_since = time.monotonic()
            self._watched.call_soon_threadsafe(self._answer)
            return True
        silent_s = time.monotonic() - since
        if silent_s <= self._settings.stall_s:
            return True
        if not self._stalled:
            self._stalled = True
            logger.critical(
                "the event loop has not answered for %.0f s; the lease is no longer renewed, and other workers take"
                " over the jobs. It is here:\n%s",
                silent_s,
                self._place(),
            )
        if silent_s > STALLS * self._settings.stall_s:
            logger.critical(
                "the event loop has not answered for %.0f s; this process ends. It is here:\n%s",
                silent_s,
                self._place(),
            )
            logging.shutdown()
            os._exit(EXIT_CODE)  # any other way to end needs the loop
        return False

    def _place(self) -> str:
        """The stack of the watched loop's thread."""
        frame = sys._current_frames().get(self._watched_thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(its thread has ended)"

    # On the watched loop

    def _answer(self) -> None:
        self._silent_since = None
        if self._stalled:
            self._stalled = False
            logger.warning("the event loop answers again")
