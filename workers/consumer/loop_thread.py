"""The event loop of a worker in its own thread, and the calls into it from Celery's threads."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop
from celery.worker import state as celery_state

from shared.domain.job import JobStatus
from workers.runtime import WorkerRuntime

logger = logging.getLogger(__name__)

T = TypeVar("T")
POLL_S = 0.1
# How long a thread that computes may keep the others waiting. Celery's threads and the event loop alternate several
# times for each job: at Python's default of 5 ms a busy loop delays its start by a tenth of a second.
SWITCH_INTERVAL_S = 0.0005


class LoopThread:
    """Runs a worker's runtime on an event loop. All methods may be called from any thread."""

    def __init__(self, runtime: WorkerRuntime) -> None:
        self.runtime = runtime
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="engine-loop", daemon=True)
        self._of_thread = threading.local()

    def start(self) -> None:
        """Start the loop and the runtime; returns when the engine can run jobs.

        SIGTERM meanwhile ends the process at once: it has no jobs yet, an engine that is loading cannot be
        interrupted, and the engine's processes die with this one. Only its registration is removed first.
        """
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._thread.start()
        starting = self._call(self.runtime.start())
        while not starting.done():
            if celery_state.should_stop is not None or celery_state.should_terminate is not None:
                logger.info("model=%s stopped while its engine was starting", self.runtime.model_name)
                asyncio.run(self.runtime.abandon())
                os._exit(0)
            time.sleep(POLL_S)
        starting.result()

    def submit(self, job_id: str, priority: int) -> Future[JobStatus | None]:
        """Run a job, for a message of this priority.

        The future has the status that it ended with, or None (see `Runner.run`).
        """
        return self._call(self.runtime.run(job_id, priority))

    def bind(self, job: Future[JobStatus | None]) -> None:
        """Bind a job to the calling thread, whose task is about to wait for it."""
        self._of_thread.job = job

    def wait(self) -> JobStatus | None:
        """Wait for the job that is bound to the calling thread."""
        job: Future[JobStatus | None] = self._of_thread.job
        return job.result()

    def cancel(self, job_id: str) -> None:
        """Cancel a job, as a client's request would."""
        self._call(self.runtime.cancel(job_id))

    def drain(self) -> None:
        """Finish or requeue all jobs; returns when that is done."""
        if self._thread.is_alive():
            self._call(self.runtime.drain()).result()

    def end_grace(self) -> None:
        """End the grace period of a drain now."""
        self._loop.call_soon_threadsafe(self.runtime.end_grace)

    def stop(self) -> None:
        """Stop the runtime and the loop."""
        if self._thread.is_alive():
            self._call(self.runtime.stop()).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _call(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)
