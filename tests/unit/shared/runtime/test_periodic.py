"""A periodic step waits between rounds, survives outages and stops on a fault or a cancel."""

from __future__ import annotations

import asyncio
import logging

import pytest
from redis.exceptions import ConnectionError as RedisGone

from shared.runtime.periodic import run_periodically


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds of each wait so far; no wait takes time."""
    waits: list[float] = []
    sleep = asyncio.sleep

    async def record(seconds: float) -> None:
        waits.append(seconds)
        await sleep(0)

    monkeypatch.setattr(asyncio, "sleep", record)
    return waits


class Steps:
    """A step that takes one outcome of a list each round, and is a fault once they are used up."""

    def __init__(self, *outcomes: Exception | None) -> None:
        self._outcomes = list(outcomes)
        self.rounds = 0

    async def __call__(self) -> None:
        self.rounds += 1
        outcome = self._outcomes.pop(0) if self._outcomes else ZeroDivisionError("used up")
        if outcome is not None:
            raise outcome


async def test_each_round_waits_first(waits: list[float]) -> None:
    steps = Steps(None, None)
    with pytest.raises(ZeroDivisionError):
        await run_periodically(steps, "step", interval_s=7)
    assert steps.rounds == 3
    assert waits == [7, 7, 7]


async def test_the_first_round_can_start_immediately(waits: list[float]) -> None:
    steps = Steps(None)
    with pytest.raises(ZeroDivisionError):
        await run_periodically(steps, "step", interval_s=7, immediately=True)
    assert steps.rounds == 2
    assert waits == [7]


async def test_jitter_varies_each_wait_within_its_bounds(waits: list[float]) -> None:
    with pytest.raises(ZeroDivisionError):
        await run_periodically(Steps(*[None] * 50), "step", interval_s=10, jitter=0.2)
    assert all(8 <= wait <= 12 for wait in waits)
    assert len(set(waits)) > 1


async def test_an_outage_is_logged_and_the_next_round_tries_again(
    waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    steps = Steps(RedisGone("refused"), None)
    with caplog.at_level(logging.WARNING), pytest.raises(ZeroDivisionError):
        await run_periodically(steps, "sweep", interval_s=1)
    assert [record.getMessage() for record in caplog.records] == ["sweep failed, retrying: refused"]
    assert steps.rounds == 3
    assert len(waits) == 3, "a failed round is followed by a wait"


@pytest.mark.usefixtures("waits")
async def test_the_caller_decides_which_errors_are_outages() -> None:
    with pytest.raises(RedisGone):
        await run_periodically(Steps(RedisGone("refused")), "step", interval_s=1, tolerates=lambda _: False)
    steps = Steps(KeyError("x"), None)
    with pytest.raises(ZeroDivisionError):
        await run_periodically(steps, "step", interval_s=1, tolerates=lambda error: isinstance(error, KeyError))
    assert steps.rounds == 3


async def test_a_cancel_stops_it_during_a_round() -> None:
    entered = asyncio.Event()

    async def hangs() -> None:
        entered.set()
        await asyncio.Event().wait()

    running = asyncio.create_task(run_periodically(hangs, "step", interval_s=0, tolerates=lambda _: True))
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
