"""The decision whether something grows under a steady load."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from soak.drift import MIB, Bounds, database_growth, drifts, growth
from soak.sample import Sample, Usage

BOUNDS = Bounds(database=10_000)


def samples(
    memory: Callable[[int], float] = lambda _: 100.0,
    files: Callable[[int], int] = lambda _: 40,
    per_job: int = 5_000,
    count: int = 60,
) -> list[Sample]:
    """One each second: the memory of `api` in MiB and its files at each of them, 10 jobs a second."""
    return [
        Sample(second, 10 * second, 10 * second * per_job, {"api": Usage(round(memory(second) * MIB), files(second))})
        for second in range(count)
    ]


def test_a_steady_run_passes() -> None:
    assert drifts(samples(), BOUNDS) == []


def test_growth_during_the_warm_up_is_accepted() -> None:
    assert (
        drifts(samples(memory=lambda second: min(second, 15) * 20, files=lambda second: min(second, 15)), BOUNDS) == []
    )


def test_peaks_are_accepted() -> None:
    assert drifts(samples(memory=lambda second: 400 if second % 7 == 0 else 100), BOUNDS) == []


def test_growing_memory_is_found() -> None:
    (found,) = drifts(samples(memory=lambda second: 100 + second), BOUNDS)
    assert found.startswith("The memory of api grew by 28.0 MiB")


def test_of_a_large_part_a_share_may_grow() -> None:
    assert drifts(samples(memory=lambda second: 1000 + second), BOUNDS) == []
    assert drifts(samples(memory=lambda second: 1000 + 5 * second), BOUNDS) != []


def test_growing_files_are_found() -> None:
    (found,) = drifts(samples(files=lambda second: 10 + second), BOUNDS)
    assert found == "The open files of api grew by 28, from 34; 10 are accepted."


def test_a_growing_database_is_found() -> None:
    assert database_growth(samples(per_job=12_000)) == pytest.approx(12_000)
    (found,) = drifts(samples(per_job=12_000), BOUNDS)
    assert found == "The database grew by 12000 bytes a job; 10000 are accepted."


def test_a_run_without_jobs_fails() -> None:
    idle = [Sample(sample.seconds, 0, 0, sample.parts) for sample in samples()]
    assert drifts(idle, BOUNDS) == ["No job ended after the warm-up."]


@pytest.mark.parametrize("count", [0, 1, 5])
def test_a_run_that_is_too_short_fails(count: int) -> None:
    assert "are needed" in drifts(samples(count=count), BOUNDS)[0]


def test_growth_of_no_samples_is_empty() -> None:
    assert growth([]) == {}
