"""The interval between flushes depends on the number of logs, and on how long flushes take."""

from __future__ import annotations

import pytest

from workers.engines.flush_interval import MAX_INTERVAL_S, MAX_LOADED_INTERVAL_S, FlushInterval


@pytest.mark.parametrize(("logs", "seconds"), [(0, 0.0), (1, 0.002), (4, 0.008), (10, 0.02), (500, 0.02)])
def test_it_grows_with_the_number_of_logs_up_to_a_maximum(logs: int, seconds: float) -> None:
    interval = FlushInterval()
    for _ in range(20):
        interval.record(0.001)
    assert interval.seconds(logs) == pytest.approx(seconds)


def test_the_maximum_grows_while_flushes_take_long() -> None:
    interval = FlushInterval()
    for _ in range(50):
        interval.record(0.008)
    assert MAX_INTERVAL_S < interval.seconds(64) < MAX_LOADED_INTERVAL_S
    for _ in range(50):
        interval.record(1.0)
    assert interval.seconds(64) == MAX_LOADED_INTERVAL_S
    assert interval.seconds(1) == pytest.approx(0.002), "a lone stream is delayed no longer"
    for _ in range(50):
        interval.record(0.001)
    assert interval.seconds(64) == MAX_INTERVAL_S


def test_one_slow_flush_does_not_change_it() -> None:
    interval = FlushInterval()
    interval.record(0.001)
    interval.record(0.02)
    assert interval.seconds(64) == MAX_INTERVAL_S
