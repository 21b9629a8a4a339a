"""The Celery pool of a worker: one thread for each of the engine's slots.

Celery prefetches by its concurrency setting. Here that is a small look-ahead, and the pool has its own number of
threads: a worker runs as many jobs as its engine has slots and reserves almost none beyond them, so the backlog stays
on the queue, where any worker can take it. The threads only wait; the work runs on one event loop.

Batch jobs have as many threads of their own: urgent jobs start even if batch jobs fill the engine, and the runner
preempts batch jobs for them. Batch messages are fetched only while slots are free (`workers.consumer.transport`).

The pool also starts the engine before the consumer starts, so that a worker never takes a job that it cannot run yet
and ends if its engine cannot start. It stops the engine after the last job.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from celery.concurrency.base import BasePool, apply_target

from shared.domain.job import JobStatus
from shared.domain.priorities import is_batch
from workers.consumer.loop_thread import LoopThread

# Threads are started on demand; the number of slots may grow while the worker runs.
MAX_THREADS = 4096


class _Applied:
    """The handle that Celery keeps of a job in the pool."""

    def __init__(self, future: Future[None]) -> None:
        self._future = future

    def terminate(self, signal: Any) -> None:
        """Does nothing: `EnginePool.terminate_job` cancels the job."""


class _Lane:
    """Threads for jobs, of which at most `limit()` run at the same time."""

    def __init__(self, limit: Callable[[], int], name: str) -> None:
        self._limit = limit
        self._running = 0
        self._changed = threading.Condition()
        self._executor = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=name)

    def submit(self, run: Callable[..., None], *args: Any) -> Future[None]:
        """Run a function once fewer than `limit()` others run."""
        return self._executor.submit(self._run, run, *args)

    def resized(self) -> None:
        """Check the limit again."""
        with self._changed:
            self._changed.notify_all()

    def shutdown(self) -> None:
        """Wait for those that run, and drop the others that have no thread."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _run(self, run: Callable[..., None], *args: Any) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._running < self._limit())
            self._running += 1
        try:
            run(*args)
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify()


class EnginePool(BasePool):  # type: ignore[misc]
    """As many threads as the engine has slots for urgent jobs, and as many for batch jobs."""

    body_can_be_buffer = True
    signal_safe = False

    _urgent: _Lane
    _batch: _Lane

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._loop_thread: LoopThread = self.app.loop_thread
        self._slot_pool = self._loop_thread.runtime.slot_pool
        # Celery terminates jobs by process id; these are made up, one for each job.
        self._pids = itertools.count(1)
        self._jobs: dict[int, str] = {}
        self._lock = threading.Lock()

    def on_start(self) -> None:
        self._loop_thread.start()
        self._urgent = _Lane(lambda: self._slot_pool.slots, "job")
        self._batch = _Lane(lambda: self._slot_pool.slots, "batch-job")
        self._slot_pool.on_resize = self._resized

    def on_stop(self) -> None:
        self._loop_thread.drain()
        for lane in (self._urgent, self._batch):
            lane.shutdown()
        self._loop_thread.stop()

    on_terminate = on_stop

    def on_apply(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        callback: Callable[..., Any] | None = None,
        accept_callback: Callable[..., Any] | None = None,
        **_: Any,
    ) -> _Applied:
        # The arguments of Celery's target: (task name, task id, request, ...).
        job_id, request = args[1], args[2]
        priority = request["delivery_info"]["priority"] or 0
        batch = is_batch(priority)
        # If a thread is free, the job starts now: the claim need not wait for the thread to be scheduled.
        started = self._loop_thread.submit(job_id, priority) if self._slot_pool.acquire(batch=batch) else None
        lane = self._batch if batch else self._urgent
        return _Applied(
            lane.submit(self._apply, job_id, priority, started, target, args, kwargs, callback, accept_callback)
        )

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Cancel a job. Flower's Terminate button and `revoke(terminate=True)` call this."""
        with self._lock:
            job_id = self._jobs.get(pid)
        if job_id is not None:
            self._loop_thread.cancel(job_id)

    def _resized(self) -> None:
        for lane in (self._urgent, self._batch):
            lane.resized()

    def _apply(
        self,
        job_id: str,
        priority: int,
        started: Future[JobStatus | None] | None,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        callback: Callable[..., Any] | None,
        accept_callback: Callable[..., Any] | None,
    ) -> None:
        pid = next(self._pids)
        with self._lock:
            self._jobs[pid] = job_id
        try:
            self._loop_thread.bind(started or self._loop_thread.submit(job_id, priority))
            apply_target(target, args, kwargs, callback, self._accepting(accept_callback), getpid=lambda: pid)
        finally:
            with self._lock:
                del self._jobs[pid]
            self._slot_pool.release(batch=is_batch(priority))
            self._loop_thread.runtime.consumer.poll()

    def _accepting(self, accept: Callable[..., Any] | None) -> Callable[..., Any] | None:
        """A callback for a started job: Celery's own, which acknowledges the message, and a poll for the next one."""

        def accepted(*args: Any) -> None:
            if accept is not None:
                accept(*args)
            self._loop_thread.runtime.consumer.poll()

        return accepted

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update({"max-concurrency": self._slot_pool.slots, "processes": sorted(self._jobs)})
        return info

    @property
    def num_processes(self) -> int:
        """The look-ahead, from which Celery computes its prefetch count."""
        return int(self.limit)
