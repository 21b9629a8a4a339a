"""Large JSON values are parsed and encoded in small pieces, with the results and errors of `json`."""

from __future__ import annotations

import gc
import json
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.runtime import chunked_json
from shared.runtime.chunked_json import LazyList, Mapped, dump_pieces, loads
from tests.support.step_limit import MAX_STEP_MS

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
STORABLE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner),
    max_leaves=60,
)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=60)


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked_json, "WINDOW", 8)
    monkeypatch.setattr(chunked_json, "ITEMS", 2)


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n", " :\t")])
def test_parses_as_json_does(separators: tuple[str, str]) -> None:
    @given(VALUES)
    def check(value: Any) -> None:
        text = json.dumps(value, separators=separators)
        assert loads(text) == json.loads(text)

    check()


@pytest.mark.usefixtures("small_windows")
def test_rejects_what_json_rejects() -> None:
    @given(VALUES, st.integers(min_value=0), st.sampled_from(['"', ",", "]", "}", "[", "{", ":", "x", ""]))
    def check(value: Any, at: int, inserted: str) -> None:
        text = json.dumps(value)
        at %= len(text) + 1
        text = text[:at] + inserted + text[at + (not inserted) :]
        assert outcome(loads, text) == outcome(json.loads, text)

    check()


def outcome(parse: Callable[[str], Any], text: str) -> Any:
    """The value, or the error and its position."""
    try:
        return parse(text)
    except json.JSONDecodeError as error:
        return error.msg, error.pos


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "[" * 300 + "1," * 10_000])
def test_nesting_is_limited(text: str) -> None:
    with pytest.raises(RecursionError):
        loads(text)


def test_numbers_with_too_many_digits_are_rejected() -> None:
    with pytest.raises(ValueError, match="digits"):
        loads("[" + "1," * 20_000 + "9" * 5000 + "]")


@pytest.fixture
def no_garbage_collection() -> Iterator[None]:
    """A collection would go through the objects of all tests before; the processes freeze those of their start."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "text",
    [
        "[" + "{}," * 200_000 + "{}]",
        "[" + "1," * 2_000_000 + "1]",
        json.dumps([{"role": "user", "content": "a, b"}] * 90_000),
        json.dumps(["},{"] * 500_000),
        json.dumps("hello, world " * 300_000),
        "[" * 90 + '"a",' * 900_000 + '"a"' + "]" * 90,
    ],
    ids=["objects", "numbers", "messages", "strings", "text", "nested"],
)
@pytest.mark.usefixtures("no_garbage_collection")
def test_no_piece_takes_long(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = 0.0

    def timed(function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            nonlocal longest
            started = time.thread_time()
            try:
                return function(*arguments)
            finally:
                longest = max(longest, time.thread_time() - started)

        return call

    for name in ("_scan", "_string", "_items"):
        monkeypatch.setattr(chunked_json, name, timed(getattr(chunked_json, name)))
    assert loads(text) == json.loads(text)
    assert longest < MAX_STEP_MS / 1000


@pytest.mark.usefixtures("small_windows")
def test_encodes_as_orjson_does() -> None:
    @given(STORABLE)
    def check(value: Any) -> None:
        assert b"".join(dump_pieces(value)) == orjson.dumps(value)

    check()


@pytest.mark.usefixtures("small_windows")
def test_lazy_lists_have_the_same_items() -> None:
    @given(st.lists(STORABLE), st.sampled_from([(",", ":"), (", ", ": ")]))
    def check(items: list[Any], separators: tuple[str, str]) -> None:
        text = json.dumps([{"items": items, "end": 1}, {"other": items}], separators=separators)
        first, second = loads(text, lazy=("items",))
        assert isinstance(second["other"], list)
        assert list(first["items"]) == items
        assert (len(first["items"]), first["end"]) == (len(items), 1)
        assert [first["items"][at] for at in reversed(range(len(items)))] == items[::-1]
        assert first["items"][1:3] == items[1:3]
        assert json.loads(b"".join(dump_pieces(first))) == json.loads(json.dumps({"items": items, "end": 1}))

    check()


def test_a_lazy_list_does_not_hold_its_items() -> None:
    entry = [0, *(value for number in range(21) for value in (f" token{number}", -12.345678))]
    (value,) = loads(json.dumps([{"logprobs": [entry] * 10_000}]), lazy=("logprobs",))
    assert isinstance(value["logprobs"], LazyList)
    tracemalloc.start()
    for start in range(0, 10_000, 64):
        assert value["logprobs"][start : start + 64][0] == entry
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize("count", [0, 1, 64, 65, 200])
def test_mapped_items_are_encoded_a_few_at_a_time(count: int) -> None:
    alive = most = 0

    class Entry(dict[str, int]):
        def __init__(self, number: int) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            super().__init__(number=number)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    pieces = list(dump_pieces({"entries": Mapped(range(count), Entry)}))
    assert json.loads(b"".join(pieces)) == {"entries": [{"number": number} for number in range(count)]}
    assert most <= 2 * chunked_json.ITEMS
