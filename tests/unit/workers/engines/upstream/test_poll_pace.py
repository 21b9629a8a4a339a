"""The pace of polls: short intervals with progress, and a rate that all runs of an engine share."""

from __future__ import annotations

import itertools

import pytest

from workers.engines.upstream import polling
from workers.engines.upstream.polling import PollPace, PollRate


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "monotonic", lambda: 100.0)


def intervals(pace: PollPace, count: int) -> list[float]:
    """The intervals between `count` polls that are scheduled at the same moment, in seconds."""
    delays = [pace.delay_s() for _ in range(count)]
    return [round(later - earlier, 6) for earlier, later in itertools.pairwise(delays)]


def test_intervals_grow_without_progress() -> None:
    pace = PollPace(1, 3)
    assert intervals(pace, 5) == [1.5, 2.25, 3, 3]
    pace.progressed()
    assert intervals(pace, 2) == [1.5]


def test_many_runs_share_a_rate() -> None:
    rate = PollRate(10)
    paces = [PollPace(0.1, 5, rate) for _ in range(20)]
    assert rate.interval_s == 2
    assert intervals(paces[0], 3) == [2, 2]
    del paces[1:]
    assert rate.interval_s == 0.1
