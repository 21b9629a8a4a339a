"""Ids: UUIDv7 in hex, in the order in which one process made them."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared import ids
from shared.batch import new_batch_id
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


def test_ids_of_one_process_sort_in_the_order_they_were_made() -> None:
    made = [new_job_id() for _ in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


def test_ids_made_in_one_millisecond_are_ordered_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """More ids than the counter holds: the timestamp runs ahead of the system clock."""
    now = time.time_ns()
    monkeypatch.setattr(ids.time, "time_ns", lambda: now)
    made = [new_job_id() for _ in range(10_000)]
    assert made == sorted(made)
    parsed = [uuid.UUID(job_id.removeprefix("job_")) for job_id in made]
    assert {(item.version, item.variant) for item in parsed} == {(7, uuid.RFC_4122)}
    assert len({item.int >> 80 for item in parsed}) > 1


def test_a_clock_that_steps_back_does_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_job_id()
    earlier = time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(ids.time, "time_ns", lambda: earlier)
    assert new_job_id() > before


def test_threads_never_make_the_same_timestamp_and_counter() -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: [new_job_id()[4:24] for _ in range(2000)], range(8)))
    assert len({prefix for part in made for prefix in part}) == 8 * 2000
    assert all(part == sorted(part) for part in made)


def test_batches_made_in_one_millisecond_have_different_files(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(ids.time, "time_ns", lambda: now)
    files = [file for _ in range(1000) for file in result_file_ids(new_batch_id())]
    assert len(set(files)) == 2000
    assert all(is_file_id(file) for file in files)


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
    ids=lambda text: text.replace(text[4:36], "") if len(text) > 36 else text,  # the same in each process
)
def test_what_is_no_id(text: str) -> None:
    assert not is_job_id(text)
