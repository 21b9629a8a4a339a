"""Ids: UUIDv7 in hex, in the order in which one process created them."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from api.batches.batch import new_batch_id, result_file_ids
from api.files.store import is_file_id
from shared.domain.ids import number_of
from shared.domain.job import is_job_id, new_job_id


def test_ids_are_unique_and_sort_by_time() -> None:
    first = new_job_id()
    ids = [new_job_id() for _ in range(1000)]
    assert len(set(ids)) == 1000
    assert all(job_id[:16] >= first[:16] for job_id in ids)
    parsed = uuid.UUID(first.removeprefix("job_"))
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert all(is_job_id(job_id) for job_id in ids)


def test_ids_of_one_process_sort_in_the_order_of_creation() -> None:
    ids = [new_job_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)


def test_ids_of_one_millisecond_are_ordered_and_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are more ids than counter values: the timestamp runs ahead of the system clock."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    ids = [new_job_id() for _ in range(10_000)]
    assert ids == sorted(ids)
    parsed = [uuid.UUID(job_id.removeprefix("job_")) for job_id in ids]
    assert {(item.version, item.variant) for item in parsed} == {(7, uuid.RFC_4122)}
    assert len({item.int >> 80 for item in parsed}) > 1


def test_a_clock_that_steps_back_a_little_does_not_change_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    before = new_job_id()
    earlier = time.time_ns() - 900 * 10**6
    monkeypatch.setattr(time, "time_ns", lambda: earlier)
    assert new_job_id() > before


def test_a_clock_that_steps_back_far_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that stay an hour ahead of those of other processes would break the order of the queue for an hour."""
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now + 3600 * 10**9)
    ahead = new_job_id()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    back = [new_job_id() for _ in range(1000)]
    assert back == sorted(back)
    assert int(back[0][4:16], 16) == now // 10**6
    assert back[-1] < ahead


def test_threads_never_get_the_same_timestamp_and_counter() -> None:
    with ThreadPoolExecutor(8) as pool:
        by_thread = list(pool.map(lambda _: [new_job_id()[4:24] for _ in range(2000)], range(8)))
    assert len({prefix for prefixes in by_thread for prefix in prefixes}) == 8 * 2000
    assert all(prefixes == sorted(prefixes) for prefixes in by_thread)


def test_batches_of_one_millisecond_have_different_files(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time_ns()
    monkeypatch.setattr(time, "time_ns", lambda: now)
    files = [file for _ in range(1000) for file in result_file_ids(new_batch_id())]
    assert len(set(files)) == 2000
    assert all(is_file_id(file) for file in files)


def test_a_region_is_the_last_part_of_an_id_and_keeps_the_order() -> None:
    ids = [new_job_id(region) for region in ("", "eu", "", "us2")]
    assert all(is_job_id(job_id) for job_id in ids)
    assert [job_id[36:] for job_id in ids] == ["", "_eu", "", "_us2"]
    assert [job_id[:16] for job_id in ids] == sorted(job_id[:16] for job_id in ids)


@pytest.mark.parametrize("region", ["", "_eu"])
def test_result_files_have_the_region_of_their_batch(region: str) -> None:
    output, errors = result_file_ids(f"batch_{'0' * 31}7{region}")
    assert (output, errors) == (f"file-{'0' * 31}0{region}", f"file-{'0' * 31}1{region}")
    assert is_file_id(output)


@pytest.mark.parametrize(
    "text",
    ["", "job_", "job_" + "0" * 31, "job_" + "0" * 33, "JOB_" + "0" * 32, "job_" + "g" * 32, f"{new_job_id()}\n"]
    + [f"{new_job_id()}_{code}" for code in ("", "EU", "1", "eu_", "e-u", "e" * 17)],
    ids=lambda text: text.replace(text[4:36], "") if len(text) > 36 else text,  # the same in each process
)
def test_other_texts_are_not_ids(text: str) -> None:
    assert not is_job_id(text)


def test_ids_of_numbered_rows() -> None:
    assert number_of("key_", "key_12") == 12
    assert number_of("key_", f"key_{'9' * 18}") == 10**18 - 1
    for text in ("12", "key_", "key_-1", "key_1\n", "key_1 ", "job_12", f"key_1{'0' * 18}", "key_\u0661"):
        assert number_of("key_", text) is None
