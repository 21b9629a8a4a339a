"""The end of JSON in parts, and the tool calls that are told apart by it."""

from __future__ import annotations

import itertools
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.engines.upstream import call_arguments
from workers.engines.upstream.call_arguments import ArgumentReader
from workers.engines.upstream.chat import tool_calls
from workers.engines.upstream.chat.json_end import JsonEnd
from workers.engines.upstream.chat.tool_calls import ToolCalls

VALUES = st.recursive(
    st.none() | st.booleans() | st.text('"\\{}[] x\n', max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\{}[] ', max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(VALUES, max_size=3) | st.dictionaries(st.text(max_size=3), VALUES, max_size=3) | st.text('"\\{} x'),
    st.lists(st.integers(0, 200)),
    st.text(" \n\t", max_size=3),
)
@example({"a": '"}'}, [7], " ")
def test_a_value_ends_with_its_last_character(value: Any, cuts: list[int], space: str) -> None:
    text = orjson.dumps(value).decode()
    end = JsonEnd()
    for start, stop in itertools.pairwise([0, *sorted(cut for cut in cuts if cut < len(text)), len(text) - 1]):
        end.read(text[start:stop])
    assert not end.reached
    end.read(text[-1])
    end.read(space)
    assert (end.reached, end.passed) == (True, False)
    end.read(space + "x")
    assert end.passed


class ReadCharacters:
    """Counts the characters that are parsed or compared as JSON."""

    JSONDecodeError = orjson.JSONDecodeError
    dumps = staticmethod(orjson.dumps)

    def __init__(self) -> None:
        self.count = 0

    def loads(self, text: str) -> Any:
        self.count += len(text)
        return orjson.loads(text)


@pytest.mark.parametrize(
    ("first", "rest", "index"),
    [
        # Ends of objects and strings by turns, in a valid beginning of JSON.
        ('{"a": ["', ['"', ',"x}'], 0),
        ('{"a": ["', ['",  "x}', '",  "]'], 0),
        ('{"a": [{}', [",{}", ',""', ",[]"], 0),
        # The same after JSON that is damaged.
        ('{"a": x', ["}", '"'], 0),
        # Complete arguments with something after them.
        ('{"a": 1}', [" ", '"'], 0),
        # Another call while the first one is open.
        ('{"a": {"b": "' + "x" * 20_000 + '"}', ["1", "2"], 1),
        ('["' + "x" * 20_000 + '"] ', ["1"], 1),
    ],
)
def test_the_time_for_fragments_does_not_grow_with_those_before(
    monkeypatch: pytest.MonkeyPatch, first: str, rest: list[str], index: int
) -> None:
    read = ReadCharacters()
    monkeypatch.setattr(tool_calls, "orjson", read)
    monkeypatch.setattr(call_arguments, "orjson", read)
    calls = ToolCalls(["f"])
    calls.add([{"index": 0, "id": "a", "function": {"name": "f", "arguments": first}}])
    if index:
        calls.add([{"index": 1, "id": "b", "function": {"name": "f", "arguments": ""}}])
    size = len(first)
    for text in itertools.islice(itertools.cycle(rest), 1000):
        size += len(text)
        calls.add([{"index": index, "function": {"arguments": text}}])
    calls.close()
    assert read.count <= 4 * size


def test_white_space_after_null_is_not_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    original = call_arguments.may_be_encoded

    def counted(beginning: str) -> bool:
        lengths.append(len(beginning))
        return original(beginning)

    monkeypatch.setattr(tool_calls, "may_be_encoded", counted)
    monkeypatch.setattr(call_arguments, "may_be_encoded", counted)
    calls, reader = ToolCalls(["f"]), ArgumentReader()
    calls.add([{"index": 0, "id": "a", "function": {"name": "f"}}])
    for text in ["nu", *[" "] * 1000]:
        calls.add([{"index": 0, "function": {"arguments": text}}])
        reader.add(text)
    assert sum(lengths) < 10
    assert [delta.arguments for delta in calls.close()] == ["nu" + " " * 1000]
    assert reader.end() == "nu" + " " * 1000
