"""The parser of OpenAI's event stream: split reads, other servers' variants, malformed data."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.events import Delta, delta_event, merge_deltas
from shared.domain.job import Usage
from tests.support.transcripts import transcript_of
from workers.engines.openai.errors import parse_error
from workers.engines.openai.stream import StreamParser

TEXTS = ["Müh", "le", " 🌊", "\n\ndata: [DONE]", " ", "水車"]


def frame(choice: dict[str, object], end: str = "\n\n", **more: object) -> bytes:
    return b"data: " + orjson.dumps({"choices": [{"index": 0, **choice}], **more}) + end.encode()


STREAM = (
    b": comment\nevent: message\n"
    + frame({"delta": {"role": "assistant", "content": ""}})
    + b"".join(frame({"delta": {"content": text}, "finish_reason": None}, "\r\n\r\n") for text in TEXTS)
    + frame({"delta": {}, "finish_reason": "length"})
    + b'data:{"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":9}}\n\ndata: [DONE]\n\n'
)


@given(st.lists(st.integers(0, len(STREAM))))
def test_reads_may_end_anywhere(cuts: list[int]) -> None:
    parser = StreamParser(1)
    deltas: list[Delta] = []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        deltas += parser.feed(STREAM[start:end])
    assert "".join(delta.text for delta in deltas) == "".join(TEXTS)
    assert sum(delta.tokens for delta in deltas) == len(TEXTS)
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert (parser.finished, parser.done, parser.usage, parser.failure) == (True, True, Usage(7, 0, 9), None)


def test_one_read_becomes_one_delta() -> None:
    assert list(StreamParser(1).feed(STREAM)) == [Delta(0, "".join(TEXTS), (), "length", len(TEXTS))]


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"[]",
        b"7",
        b'{"choices": 7}',
        b'{"choices": [7]}',
        b'{"choices": [{"index": 1, "delta": {"content": "x"}}]}',
        b'{"choices": [{"index": -1, "delta": {"content": "x"}}]}',
        b'{"choices": [{"index": [], "delta": {"content": "x"}}]}',
        b'{"choices": [{"index": 0, "delta": {"content": [7]}}]}',
        b'{"choices": [{"index": 0, "delta": "x"}]}',
    ],
)
def test_malformed_chunks_fail_the_request_and_keep_the_text(payload: bytes) -> None:
    parser = StreamParser(1)
    deltas = list(parser.feed(frame({"delta": {"content": "kept"}}) + b"data: " + payload + b"\n\n"))
    assert [delta.text for delta in deltas] == ["kept"]
    assert parser.done
    assert parser.failure is not None
    assert "not OpenAI's stream" in parser.failure.message


def test_endless_line() -> None:
    parser = StreamParser(1)
    while not parser.done:
        assert not list(parser.feed(b"x" * 100_000))
    assert parser.failure is not None


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no", "type": "x"}}', "no"),
        (b'[{"error": {"message": "no", "code": 400}}]', "no"),
        (b'{"error": "no", "error_type": "validation"}', "no"),
        (b'{"object": "error", "message": "no"}', "no"),
        (b'{"detail": "no"}', "no"),
        (b"no\n", "no"),
        (b"", ""),
        (b"\xff" * 2000, "\ufffd" * 500),
    ],
)
def test_error_messages(body: bytes, message: str) -> None:
    assert parse_error(body).message == message


def test_log_keeps_token_counts() -> None:
    with_ids, counted = Delta(0, "a", (5, 6)), Delta(0, "b", (), "stop", 3)
    events = [delta_event(1, with_ids), delta_event(2, counted)]
    assert [event.delta() for event in events] == [with_ids, counted]
    assert transcript_of(events).tokens == 5
    assert merge_deltas([counted, counted]).tokens == 6
