"""Samples are drawn again by their seed."""

from __future__ import annotations

import pytest

from api.requests.sampling import MAX_COUNT, Sample, below, read_sample, sample_number
from shared.domain.errors import InvalidRequest

IDS = [f"job_{number:032x}" for number in range(20_000)]


def drawn(fraction: float, seed: int) -> set[str]:
    limit = below(fraction)
    return {job_id for job_id in IDS if sample_number(seed, job_id) < limit}


def test_a_fraction_is_about_that_part() -> None:
    for fraction in (0.01, 0.1, 0.5):
        part = len(drawn(fraction, 7)) / len(IDS)
        assert part == pytest.approx(fraction, abs=4 * (fraction * (1 - fraction) / len(IDS)) ** 0.5)


def test_a_seed_draws_the_same_sample_and_another_seed_another_one() -> None:
    assert drawn(0.1, 7) == drawn(0.1, 7)
    assert len(drawn(0.1, 7) & drawn(0.1, 8)) < 0.2 * len(drawn(0.1, 7))


def test_a_smaller_sample_is_a_part_of_a_larger_one() -> None:
    assert drawn(0.01, 7) < drawn(0.05, 7) < drawn(0.9, 7)


@pytest.mark.parametrize(
    ("text", "sample"),
    [
        ("1", Sample(count=1)),
        (str(MAX_COUNT), Sample(count=MAX_COUNT)),
        ("0.05", Sample(fraction=0.05)),
        (".5", Sample(fraction=0.5)),
    ],
)
def test_a_sample_is_a_number_or_a_fraction(text: str, sample: Sample) -> None:
    assert read_sample(text) == sample


@pytest.mark.parametrize("text", ["", "0", "0.0", "-1", "1.0", "1.5", "10001", "1e3", "5%", "nan", "0.1.2", "٣"])
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="sample: must be") as caught:
        read_sample(text)
    assert caught.value.param == "sample"
