"""Characters whose surrogate pair is cut between two events."""

from __future__ import annotations

from typing import Any

import pytest

from workers.engines.upstream.cut_characters import CutEvent
from workers.engines.upstream.sse import EventReader


def choice(index: int, **delta: str) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": delta}]}


@pytest.mark.parametrize(
    ("first", "second", "joined", "rest"),
    [
        (choice(0, content="a\ud83d"), choice(0, content="\ude00b"), choice(0, content="a😀"), choice(0, content="b")),
        (choice(0, content="\ud83d"), choice(1, content="\ude00"), choice(0, content="\ufffd"), None),
        (choice(0, content="\ud83d"), choice(0, reasoning="\ude00"), choice(0, content="\ufffd"), None),
        ({"type": "a", "delta": "\ud83d"}, {"type": "b", "delta": "\ude00"}, {"type": "a", "delta": "\ufffd"}, None),
        ({"output_index": 0, "delta": "\ud83d"}, None, {"output_index": 0, "delta": "\ufffd"}, None),
        ({"a": ["\ud83d", "\ud83d"]}, {"a": ["\ude00", "x"]}, {"a": ["😀", "\ufffd"]}, {"a": ["", "x"]}),
    ],
)
def test_the_rest_comes_in_the_same_text_of_the_next_event(first: Any, second: Any, joined: Any, rest: Any) -> None:
    cut = CutEvent.of(first)
    assert cut is not None
    assert cut.completed(second) == joined
    assert rest is None or second == rest


@pytest.mark.parametrize("value", [choice(0, content="a"), choice(0, content="\ude00"), {}, [], "\ud83d", None])
def test_events_that_are_not_cut(value: Any) -> None:
    assert CutEvent.of(value) is None


@pytest.mark.parametrize("last", [b"data: [DONE]\n\n", b'data: {"choices":[]}\n\n', b"event: error\ndata: x\n\n", b""])
def test_an_event_without_a_rest_is_yielded_before_the_next(last: bytes) -> None:
    reader = EventReader()
    first = rb'data: {"choices":[{"index":0,"delta":{"content":"\ud83d"}}]}'
    assert list(reader.read(first + b"\n\n: ping\n\n")) == []
    values = [*reader.read(last), *reader.end()]
    assert values[0] == choice(0, content="\ufffd")
    assert len(values) == (2 if last else 1)
