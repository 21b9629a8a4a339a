"""The picture of a timeline: its shapes stay within it, and say what happened."""

from __future__ import annotations

import pytest

from api.console.data.timeline import job_timeline
from api.console.jobs.job.picture import NARROW, WIDE, Layout, Picture, draw
from shared.domain.job import Attempt, AttemptOutcome, JobStatus, JobSummary
from shared.redis.log_flushes import Flush
from tests.unit.api.console.data.test_timeline import at, attempt, flush, job


def drawn(found: JobSummary, *flushes: Flush, now: float = 20, layout: Layout = WIDE) -> Picture:
    return draw(found, job_timeline(found, flushes), at(now), layout)


def texts(picture: Picture) -> list[str]:
    return [label.text for label in picture.labels]


LOST = attempt(1, 0.5, 7, AttemptOutcome.WORKER_LOST)
CONTINUED = attempt(2, 7.2, 9, AttemptOutcome.COMPLETED)
FAILOVER = job(JobStatus.COMPLETED, LOST, CONTINUED, end=9, first=1)
FAILOVER_FLUSHES = [flush(1 + step / 10, 1) for step in range(10)] + [flush(7.5 + step / 10, 2) for step in range(15)]


@pytest.mark.parametrize("layout", [WIDE, NARROW])
@pytest.mark.parametrize(
    ("found", "flushes"),
    [
        (job(JobStatus.QUEUED), []),
        (job(JobStatus.EXPIRED, end=0), []),
        (job(JobStatus.IN_PROGRESS, attempt(1, 0.001)), []),
        (job(JobStatus.COMPLETED, attempt(1, 0.001, 5000, AttemptOutcome.COMPLETED), end=5000, first=0.1), []),
        (FAILOVER, FAILOVER_FLUSHES),
        (
            job(JobStatus.FAILED, *(attempt(n, n, n + 0.9, AttemptOutcome.ENGINE_LOST) for n in range(1, 30)), end=31),
            [],
        ),
    ],
)
def test_shapes_stay_within_the_picture(found: JobSummary, flushes: list[Flush], layout: Layout) -> None:
    picture = drawn(found, *flushes, layout=layout)
    for bar in picture.bars:
        assert layout.labels <= bar.x
        assert bar.x + bar.width <= layout.width - layout.right + 0.1
        assert 0 <= bar.y <= bar.y + bar.height <= picture.height
        assert bar.width > 0
    for label in picture.labels:
        assert 0 <= label.x <= layout.width
        assert 0 <= label.y <= picture.height


def test_a_failover_is_a_gap_between_two_attempts() -> None:
    picture = drawn(FAILOVER, *FAILOVER_FLUSHES)
    (gap,) = [bar for bar in picture.bars if bar.kind == "lost"]
    assert gap.title == "w1 lost at 1.9 s; continued after 5.3 s"
    assert gap.title in texts(picture)
    assert "continued at token 21" in texts(picture)
    rows = {bar.kind: bar.y for bar in picture.bars if bar.kind in ("queue", "lost", "generate")}
    assert rows["queue"] < rows["lost"] < rows["generate"]
    assert "5.3 s without a worker after a loss; 2 attempts" in picture.summary


def test_many_flushes_are_drawn_together() -> None:
    flushes = [flush(1 + step / 1000) for step in range(8000)]
    picture = drawn(job(JobStatus.COMPLETED, attempt(1, 0.1, 9, AttemptOutcome.COMPLETED), end=9, first=1), *flushes)
    assert 100 < sum(bar.kind == "flush" for bar in picture.bars) <= WIDE.plot / 4


def test_the_last_attempts_are_drawn() -> None:
    attempts: list[Attempt] = [attempt(n, n, n + 0.9, AttemptOutcome.ENGINE_LOST) for n in range(1, 30)]
    names = texts(drawn(job(JobStatus.FAILED, *attempts, end=31)))
    assert "Attempt 29" in names
    assert "Attempt 1" not in names


@pytest.mark.parametrize(
    ("seconds", "ticks"),
    [
        (0.05, ["0 s", "10 ms"]),
        (9.1, ["0 s", "1 s", "9 s"]),
        (0.9, ["0 s", "0.1 s"]),
        (600, ["0 s", "1 min", "10 min"]),
        (90_000, ["0 s", "6 h"]),
    ],
)
def test_ticks_are_round_numbers(seconds: float, ticks: list[str]) -> None:
    names = texts(drawn(job(JobStatus.CANCELLED, end=seconds)))
    assert [tick for tick in ticks if tick not in names] == []
    assert len(names) < 20
