"""OpenAI's stream is read the same however the network cuts it, and whoever wrote it."""

from __future__ import annotations

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.events import Delta, delta_event
from shared.domain.job import Usage
from shared.domain.transcript import Transcript
from workers.engines.openai.stream import Reply, told
from workers.engines.upstream.backoff import BACK_OFF_S, LONGEST_S, asked_wait_s, wait_s

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
def test_wherever_the_network_cuts_it(cuts: list[int]) -> None:
    reply, deltas = Reply(1), []
    edges = [0, *sorted(cuts), len(STREAM)]
    for start, end in itertools.pairwise(edges):
        deltas += reply.feed(STREAM[start:end])
    assert "".join(delta.text for delta in deltas) == "".join(TEXTS)
    assert sum(delta.tokens for delta in deltas) == len(TEXTS)
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert (reply.finished, reply.done, reply.usage, reply.failure) == (True, True, Usage(7, 0, 9), None)


def test_one_read_is_one_delta() -> None:
    assert Reply(1).feed(STREAM) == [Delta(0, "".join(TEXTS), (), "length", len(TEXTS))]


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
        b'{"choices": [{"index": 0, "delta": {"content": ["x"]}}]}',
        b'{"choices": [{"index": 0, "delta": "x"}]}',
        b'{"usage": {"total_tokens": 7}}',
        b'{"usage": 7}',
    ],
)
def test_strange_things_fail_the_request_and_keep_the_text(payload: bytes) -> None:
    reply = Reply(1)
    deltas = reply.feed(frame({"delta": {"content": "kept"}}) + b"data: " + payload + b"\n\n")
    assert [delta.text for delta in deltas] == ["kept"]
    assert reply.done
    assert reply.failure is not None
    assert "not OpenAI's stream" in reply.failure.message


def test_a_line_that_does_not_end() -> None:
    reply = Reply(1)
    while not reply.done:
        reply.feed(b"x" * 100_000)
    assert reply.failure is not None


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
def test_messages_of_errors(body: bytes, message: str) -> None:
    assert told(body) == message


def test_how_long_it_waits() -> None:
    assert wait_s(0, LONGEST_S + 1) is None
    assert (wait_s(0, 0.0) or 0) >= BACK_OFF_S[0] / 2, "a server that asks for no wait is not hammered"
    for failures, longest in enumerate([0.5, 1, 2, 4, 8, 8]):
        wait = wait_s(failures, None)
        assert wait is not None
        assert longest / 2 <= wait <= longest
    asked = wait_s(0, 10)
    assert asked is not None
    assert 10 <= asked <= 12.5


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-3", 0),
        ("nan", None),
        ("", None),
        ("soon", None),
        ("Sun, 06 Nov 1994 08:49:37 GMT", 0),
    ],
)
def test_retry_after(value: str, seconds: float | None) -> None:
    assert asked_wait_s({"Retry-After": value}) == seconds


def test_a_log_keeps_how_many_tokens_there_were() -> None:
    told_ids, counted = Delta(0, "a", (5, 6)), Delta(0, "b", (), "stop", 3)
    events = [delta_event(1, told_ids), delta_event(2, counted)]
    assert [event.delta() for event in events] == [told_ids, counted]
    assert Transcript.of(events, 1).tokens == 5
    assert counted.merged(counted).tokens == 6
