"""A supervised part runs until it is stopped; one that ends by itself is reported."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shared.runtime.supervisor import Supervisor


class Failures:
    """Counts the calls of `on_failure`, and signals the first."""

    def __init__(self) -> None:
        self.count = 0
        self.first = asyncio.Event()

    def __call__(self) -> None:
        self.count += 1
        self.first.set()


async def runs(started: asyncio.Event) -> None:
    started.set()
    await asyncio.Event().wait()


async def returns() -> None:
    pass


async def raises() -> None:
    raise ZeroDivisionError("a fault")


async def test_stop_ends_all_parts_and_reports_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    failures, started = Failures(), (asyncio.Event(), asyncio.Event())
    supervisor = Supervisor(failures)
    for number, event in enumerate(started):
        supervisor.start(f"part-{number}", runs(event))
        await event.wait()
    parts = [task for task in asyncio.all_tasks() if task.get_name().startswith("part-")]
    assert len(parts) == 2
    await supervisor.stop()
    assert all(task.cancelled() for task in parts)
    assert failures.count == 0
    assert caplog.records == []


@pytest.mark.parametrize(("part", "error"), [(returns, type(None)), (raises, ZeroDivisionError)])
async def test_a_part_that_ends_is_logged_and_reported(
    part: Callable[[], Coroutine[Any, Any, None]], error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    failures, started = Failures(), asyncio.Event()
    supervisor = Supervisor(failures)
    supervisor.start("other", runs(started))
    supervisor.start("sweeper", part())
    await failures.first.wait()
    (record,) = caplog.records
    assert record.levelno == logging.CRITICAL
    assert record.getMessage() == "sweeper ended unexpectedly; this process stops"
    raised = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
    assert isinstance(raised, error)
    await supervisor.stop()
    assert failures.count == 1, "the other part was stopped, which is no failure"


async def test_stop_waits_until_a_part_has_ended() -> None:
    started, cancelled, release = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def ends_slowly() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
            await release.wait()

    supervisor = Supervisor(Failures())
    supervisor.start("slow", ends_slowly())
    await started.wait()
    stopping = asyncio.create_task(supervisor.stop())
    await cancelled.wait()
    assert not stopping.done()
    release.set()
    await stopping


async def test_a_part_that_fails_while_it_is_stopped_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    started = asyncio.Event()

    async def fails_on_its_way_out() -> None:
        try:
            await runs(started)
        finally:
            raise ZeroDivisionError("on its way out")

    failures = Failures()
    supervisor = Supervisor(failures)
    supervisor.start("part", fails_on_its_way_out())
    await started.wait()
    await supervisor.stop()
    assert failures.count == 1
    assert "part ended unexpectedly" in caplog.text
