"""Events of text, and lines that a proxy wrapped twice."""

from __future__ import annotations

import pytest

from workers.engines.upstream.sse import MAX_EVENT_BYTES, EventReader, EventTooLarge, TextEvent, TextEventReader

STREAM = (
    '\ufeff: a comment\n\nevent: output\nid: 1:0\ndata: {"looks": "like JSON"}\n\n'
    "event: output\nid: 1:1\ndata:  two spaces\ndata: and a line\n\n"
    "event: output\ndata:\ndata\n\n"
    "event: output\nid: 1:2\ndata: 😀ü\nretry: 5\nunknown: field\n\n"
    "data: no type\n\nevent: done\ndata: {}\n\nevent: output\ndata: not complete\n"
)
EVENTS = [
    TextEvent("output", '{"looks": "like JSON"}', "1:0"),
    TextEvent("output", " two spaces\nand a line", "1:1"),
    TextEvent("output", "\n", "1:1"),
    TextEvent("output", "😀ü", "1:2"),
    TextEvent("", "no type", "1:2"),
    TextEvent("done", "{}", "1:2"),
]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 7, 10_000])
def test_events_do_not_depend_on_reads_and_line_ends(newline: str, size: int) -> None:
    data = STREAM.replace("\n", newline).encode()
    reader = TextEventReader()
    events = [event for start in range(0, len(data), size) for event in reader.read(data[start : start + size])]
    assert events == EVENTS


@pytest.mark.parametrize("line", [b"data: " + b"x" * 1000 + b"\n", b"x" * 1000])
def test_an_event_that_never_ends_is_refused(line: bytes) -> None:
    reader = TextEventReader()
    data = line * (MAX_EVENT_BYTES // 1000 + 1)
    with pytest.raises(EventTooLarge):
        list(reader.read(data))


def test_a_line_that_was_wrapped_twice_does_not_take_the_start_of_the_next_read() -> None:
    reader = EventReader()
    reads = [b'data: data: {"a":1}\n\ndata: {"b"', b":2}\n\n"]
    assert [value for data in reads for value in reader.read(data)] == [{"a": 1}, {"b": 2}]
