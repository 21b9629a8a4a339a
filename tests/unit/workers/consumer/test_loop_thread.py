"""Calls from Celery's threads reach the runtime on its own loop, and find their results there."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import cast

import pytest

from shared.domain.job import JobStatus
from workers.consumer.loop_thread import LoopThread
from workers.runtime import WorkerRuntime

WITHIN_S = 20


class FakeRuntime:
    """Records its calls and the threads that they run on; a job ends when the test says how."""

    model_name = "m"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.error: Exception | None = None
        self.grace_ended = threading.Event()
        self._ends: dict[str, asyncio.Future[JobStatus | None]] = {}

    def _record(self, call: str) -> None:
        self.calls.append(call)
        self.threads.add(threading.current_thread().name)

    async def start(self) -> None:
        self._record("start")
        if self.error is not None:
            raise self.error

    async def run(self, job_id: str, priority: int) -> JobStatus | None:
        assert priority == 3
        self._record(f"run {job_id}")
        self._ends[job_id] = asyncio.get_running_loop().create_future()
        return await self._ends[job_id]

    async def cancel(self, job_id: str) -> None:
        self._record(f"cancel {job_id}")
        self._ends[job_id].set_result(JobStatus.CANCELLED)

    async def drain(self) -> None:
        self._record("drain")

    def end_grace(self) -> None:
        self._record("end_grace")
        self.grace_ended.set()

    async def stop(self) -> None:
        self._record("stop")


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime()


@pytest.fixture
def loop_thread(runtime: FakeRuntime) -> Iterator[LoopThread]:
    switch_interval = sys.getswitchinterval()
    loop_thread = LoopThread(cast("WorkerRuntime", runtime))
    yield loop_thread
    loop_thread.stop()
    sys.setswitchinterval(switch_interval)


def test_all_calls_run_on_the_loops_thread(loop_thread: LoopThread, runtime: FakeRuntime) -> None:
    loop_thread.start()
    job = loop_thread.submit("job_1", 3)
    loop_thread.cancel("job_1")
    assert job.result(WITHIN_S) is JobStatus.CANCELLED
    loop_thread.end_grace()
    assert runtime.grace_ended.wait(WITHIN_S)
    loop_thread.drain()
    loop_thread.stop()
    assert runtime.calls == ["start", "run job_1", "cancel job_1", "end_grace", "drain", "stop"]
    assert runtime.threads == {"engine-loop"}


def test_each_thread_waits_for_its_own_job(loop_thread: LoopThread, runtime: FakeRuntime) -> None:
    loop_thread.start()
    both_bound = threading.Barrier(3)

    def task(job_id: str) -> JobStatus | None:
        loop_thread.bind(loop_thread.submit(job_id, 3))
        both_bound.wait(WITHIN_S)
        return loop_thread.wait()

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(task, "job_1"), threads.submit(task, "job_2")
        both_bound.wait(WITHIN_S)
        loop_thread.cancel("job_2")
        assert second.result(WITHIN_S) is JobStatus.CANCELLED
        assert not first.done()
        loop_thread.cancel("job_1")
        assert first.result(WITHIN_S) is JobStatus.CANCELLED


def test_an_engine_that_does_not_start_is_an_error(loop_thread: LoopThread, runtime: FakeRuntime) -> None:
    runtime.error = RuntimeError("no GPU")
    with pytest.raises(RuntimeError, match="no GPU"):
        loop_thread.start()


def test_a_loop_that_was_not_started_needs_no_drain(loop_thread: LoopThread, runtime: FakeRuntime) -> None:
    loop_thread.drain()
    loop_thread.stop()
    assert runtime.calls == []
