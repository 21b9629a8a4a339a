"""Events are read as they were sent, however the connection has cut them into pieces."""

from __future__ import annotations

import pytest

from cli.sse import ServerEvent, parse_events

STREAM = (
    ": comment\n\n"
    'event: job.queued\ndata: {"position": 3}\n\n'
    'id: 7\nevent: job.delta\ndata: {"text": "a\u2028\x85é"}\r\n\r\n'
    'id: 8\nevent: job.completed\ndata: {"usage":\ndata: {}}\n\n'
    "id: 9\nevent: job.delta\ndata: {"
).encode()


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_events_are_complete_whatever_the_chunks(size: int) -> None:
    # The parser must not take other line separators, which JSON may contain, for the end of a line.
    chunks = [STREAM[start : start + size] for start in range(0, len(STREAM), size)]
    assert list(parse_events(chunks)) == [
        ServerEvent(None, "job.queued", {"position": 3}),
        ServerEvent(7, "job.delta", {"text": "a\u2028\x85é"}),
        ServerEvent(8, "job.completed", {"usage": {}}),
    ]


def test_terminal_events() -> None:
    names = ["job.queued", "job.delta", "job.failed", "job.expired", "job.incomplete"]
    assert [ServerEvent(1, name, {}).terminal for name in names] == [False, False, True, True, True]
