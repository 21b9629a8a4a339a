"""Job ids: UUIDv7 in hex, so that they sort as they were made."""

from __future__ import annotations

import uuid

import pytest

from shared.file_store import is_file_id, result_file_ids
from shared.job import is_job_id, new_job_id


def test_ids_are_unique_and_sort_by_time() -> None:
    first = new_job_id()
    made = [new_job_id() for _ in range(1000)]
    assert len(set(made)) == 1000
    assert all(job_id[:16] >= first[:16] for job_id in made)
    parsed = uuid.UUID(first.removeprefix("job_"))
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert all(is_job_id(job_id) for job_id in made)


def test_a_region_ends_an_id_and_leaves_the_order() -> None:
    made = [new_job_id(region) for region in ("", "eu", "", "us2")]
    assert all(is_job_id(job_id) for job_id in made)
    assert [job_id[36:] for job_id in made] == ["", "_eu", "", "_us2"]
    assert [job_id[:16] for job_id in made] == sorted(job_id[:16] for job_id in made)


@pytest.mark.parametrize("ending", ["", "_eu"])
def test_a_batchs_results_are_in_its_region(ending: str) -> None:
    output, errors = result_file_ids(f"batch_{'0' * 31}7{ending}")
    assert (output, errors) == (f"file-{'0' * 31}0{ending}", f"file-{'0' * 31}1{ending}")
    assert is_file_id(output)


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job_" + "0" * 31, "job_" + "0" * 33, "JOB_" + "0" * 32, "job_" + "g" * 32, f"{new_job_id()}\n"]
    + [f"{new_job_id()}_{code}" for code in ("", "EU", "1", "eu_", "e-u", "e" * 17)],
)
def test_what_is_no_id(text: str) -> None:
    assert not is_job_id(text)
