"""Results are kept as they come, and are read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.tune.rows import recorded
from tune.results import Store, agreement, key_of, perplexity, weights_key
from tune.workload import FULL, QUICK, long_prefix, question, windows


def test_results_are_read_back_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "tune" / "results.jsonl"
    store = Store(file)
    for row in recorded():
        store.add(row)
    assert Store(file).rows == {row.key: row for row in recorded()}


def test_a_line_that_was_cut_off_is_ignored_and_a_later_one_counts(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    first, second, *_ = recorded()
    store = Store(file)
    store.add(first)
    store.add(replace(first, problem="later"))
    store.add(second)
    file.write_text(file.read_text()[:-20])
    rows = Store(file).rows
    assert list(rows) == [first.key]
    assert rows[first.key].problem == "later"


def test_what_follows_a_line_that_was_cut_off_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    first, second, third, *_ = recorded()
    Store(file).add(first)
    Store(file).add(second)
    file.write_text(file.read_text()[:-20])
    Store(file).add(third)
    assert list(Store(file).rows) == [first.key, third.key]


def test_the_key_depends_on_all_that_the_figures_depend_on() -> None:
    keys = {
        key_of({"dtype": "float32"}, "w", {"CPU": "a"}, FULL),
        key_of({"dtype": "bfloat16"}, "w", {"CPU": "a"}, FULL),
        key_of({"dtype": "float32"}, "v", {"CPU": "a"}, FULL),
        key_of({"dtype": "float32"}, "w", {"CPU": "b"}, FULL),
        key_of({"dtype": "float32"}, "w", {"CPU": "a"}, QUICK),
    }
    assert len(keys) == 5
    assert key_of({"dtype": "float32"}, "w", {"CPU": "a"}, FULL) in keys


def test_the_key_of_weights_changes_with_their_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"1")
    before = weights_key(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"12")
    assert weights_key(str(tmp_path)) != before
    assert weights_key("org/model") == "org/model"


def test_agreement_counts_the_tokens_before_the_first_difference() -> None:
    reference = [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert agreement(reference, reference) == 1
    assert agreement([[1, 2, 9, 4], [5, 6, 7, 8]], reference) == 6 / 8
    assert agreement([[1], [9, 6, 7, 8]], reference) == 1 / 8
    assert agreement([], reference) is None


def test_perplexity_is_the_exponential_of_the_mean_loss() -> None:
    assert perplexity([math.log(0.5), math.log(0.125)]) == pytest.approx(4)


def test_the_text_is_cut_at_paragraphs() -> None:
    pieces = windows(100)
    assert len(pieces) == FULL.windows
    assert all(500 < len(piece) <= 1800 for piece in pieces[:-1])
    assert "\n".join(pieces) == "\n".join(windows(1000))
    assert len(long_prefix(1000)) == 4000


def test_streams_have_different_questions() -> None:
    assert len({question(number) for number in range(max(FULL.tokens))}) == max(FULL.tokens)
