"""A sweeper recovers the jobs of dead workers only after the length of a lease without failed or slow sweeps."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from redis.exceptions import ConnectionError as RedisGone

from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.sweeper import Sweeper
from shared.recovery.terminator import JobTerminator
from tests.support.metrics import api_metrics

LEASE_S = 5.0


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


class RecordingSweeper(Sweeper):
    """Records whether each sweep recovers jobs. A sweep takes `duration_s` and raises `error` if that is set."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(
            cast("RecoveryStore", None),
            cast("JobTerminator", None),
            lambda _: None,
            api_metrics(),
            interval_s=1,
            lease_s=LEASE_S,
            max_attempts=3,
        )
        self.clock = clock
        self.recovers: list[bool] = []
        self.duration_s = 0.0
        self.error: Exception | None = None

    async def sweep(self, *, recover: bool = True) -> int:
        self.recovers.append(recover)
        self.clock.now += self.duration_s
        if self.error is not None:
            raise self.error
        return 0

    async def rounds(self, count: int) -> list[bool]:
        """Sweep once a second. Returns for each sweep whether it recovered jobs."""
        self.recovers.clear()
        for _ in range(count):
            self.clock.now += 1
            await self._sweep_steadily()
        return self.recovers


async def test_a_new_sweeper_recovers_nothing_for_the_length_of_a_lease(clock: Clock) -> None:
    assert await RecordingSweeper(clock).rounds(6) == [False] * 4 + [True] * 2


async def test_a_failed_sweep_restarts_the_wait(clock: Clock) -> None:
    sweeper = RecordingSweeper(clock)
    await sweeper.rounds(5)
    sweeper.error = RedisGone("refused")
    with pytest.raises(RedisGone):
        await sweeper.rounds(1)
    sweeper.error = None
    assert await sweeper.rounds(6) == [False] * 4 + [True] * 2


async def test_a_slow_sweep_restarts_the_wait(clock: Clock) -> None:
    sweeper = RecordingSweeper(clock)
    await sweeper.rounds(5)
    sweeper.duration_s = LEASE_S / 2
    assert await sweeper.rounds(1) == [True], "half a lease is not slow"
    sweeper.duration_s += 0.5
    assert await sweeper.rounds(1) == [True]
    sweeper.duration_s = 0
    assert await sweeper.rounds(6) == [False] * 4 + [True] * 2


class _Idle:
    """A store in which there is nothing to do. Records the names of the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[list[object]]]:
        async def call(*_arguments: object, **_options: object) -> list[object]:
            self.calls.append(name)
            return []

        return call


async def test_old_rows_are_deleted_once_a_minute(clock: Clock) -> None:
    """Not in each sweep, which may follow every two seconds."""
    store = _Idle()
    terminator = cast("JobTerminator", None)
    sweeper = Sweeper(
        cast("RecoveryStore", store), terminator, print, api_metrics(), interval_s=2, lease_s=6, max_attempts=3
    )
    for _ in range(61):
        await sweeper.sweep(recover=False)
        clock.now += 2
    assert Counter(store.calls) == {
        "has_work": 61, "delete_idempotency_keys": 3, "delete_dead_workers": 3, "abandon_cancellations": 3,
    }, "one query in each sweep is enough to find that there is nothing to do"  # fmt: skip
