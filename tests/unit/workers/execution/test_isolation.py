"""Suspects have their turn one after the other, and other jobs have theirs."""

from __future__ import annotations

import asyncio
import time

import pytest

from workers.execution import isolation as module
from workers.execution.isolation import Isolation


class Clock:
    """The monotonic clock, moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return clock


def empty() -> bool:
    return True


def busy() -> bool:
    return False


async def settle() -> None:
    """Let all tasks run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_the_gate_is_closed_during_a_turn() -> None:
    isolation = Isolation()
    assert await isolation.open()
    assert await isolation.take_turn("a", empty)
    entering = asyncio.create_task(isolation.open())
    await settle()
    assert isolation.closed
    assert not entering.done()
    isolation.end_turn("a")
    assert await entering
    isolation.end_turn("a")  # a second end has no effect
    assert not isolation.closed


async def test_suspects_follow_each_other_without_opening_the_gate() -> None:
    isolation = Isolation()
    await isolation.take_turn("a", empty)
    second = asyncio.create_task(isolation.take_turn("b", busy))
    third = asyncio.create_task(isolation.take_turn("c", busy))
    entering = asyncio.create_task(isolation.open())
    await settle()
    isolation.end_turn("a")
    assert isolation.closed
    assert await second
    assert isolation.turns == 2
    assert not third.done()
    isolation.end_turn("b")
    assert await third
    assert not entering.done()
    isolation.end_turn("c")
    assert await entering


async def test_the_gate_opens_between_long_series(clock: Clock) -> None:
    isolation = Isolation()
    await isolation.take_turn("a", empty)
    second = asyncio.create_task(isolation.take_turn("b", busy))
    await settle()
    clock.now += module.SERIES_S + 5
    isolation.end_turn("a")
    await settle()
    assert not isolation.closed, "other jobs have waited for a whole series"
    assert not second.done()
    clock.now += module.SERIES_S + 5
    isolation.changed()
    assert await second, "the gate was open for as long as it had been closed"
    assert isolation.closed


async def test_an_empty_engine_takes_the_next_suspect_at_once(clock: Clock) -> None:
    isolation = Isolation()
    await isolation.take_turn("a", empty)
    clock.now += module.SERIES_S + 5
    isolation.end_turn("a")
    assert await asyncio.wait_for(isolation.take_turn("b", empty), 1)


async def test_a_stop_ends_all_waits() -> None:
    isolation = Isolation()
    await isolation.take_turn("a", empty)
    waits = [asyncio.create_task(wait) for wait in (isolation.open(), isolation.take_turn("b", empty))]
    await settle()
    isolation.stop()
    assert await asyncio.gather(*waits) == [False, False]
    assert not await isolation.take_turn("c", empty)
    isolation.end_turn("a")
    isolation.resume()
    assert await isolation.open()
    assert await isolation.take_turn("d", empty)


async def test_a_wait_ends_with_its_time() -> None:
    isolation = Isolation()
    before = time.monotonic()
    assert not await isolation.until(busy, 0.01)
    assert time.monotonic() - before >= 0.01
