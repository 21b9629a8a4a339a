"""The parser of OpenAI's event stream: split reads, other servers' variants, malformed data."""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.domain.events import CallDelta, Delta, delta_event, merge_deltas
from shared.domain.job import Usage
from tests.support.transcripts import choices_of, transcript_of
from workers.engines.upstream.chat.stream import StreamParser
from workers.engines.upstream.error_body import parse_error
from workers.engines.upstream.usage import MAX_COUNT

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


@pytest.mark.parametrize(
    ("reported", "usage"),
    [
        ({"completion_tokens_details": {"reasoning_tokens": 4}}, Usage(7, 0, 9, 4)),
        ({"output_tokens_details": {"reasoning_tokens": 4}}, Usage(7, 0, 9, 4)),
        ({"completion_tokens_details": {"reasoning_tokens": 99}}, Usage(7, 0, 9, 9)),
        ({"completion_tokens_details": [], "reasoning_tokens": 2}, Usage(7, 0, 9, 2)),
        ({"completion_tokens_details": {"reasoning_tokens": -1}}, Usage(7, 0, 9)),
        ({"prompt_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 2}}, Usage(7, 3, 9, 0, 2)),
        ({"cache_read_input_tokens": 3, "cache_creation_input_tokens": 6}, Usage(7, 3, 9, 0, 4)),
    ],
)
def test_reasoning_and_cached_tokens_of_the_usage(reported: dict[str, Any], usage: Usage) -> None:
    """Neither is ever larger than the count that it is a part of."""
    parser = StreamParser(1)
    list(parser.feed(frame({"delta": {"content": "x"}, "finish_reason": "stop"})))
    list(parser.feed(frame({"delta": {}}, usage={"prompt_tokens": 7, "completion_tokens": 9, **reported})))
    assert parser.usage == usage


@pytest.mark.parametrize("reported", [MAX_COUNT, MAX_COUNT + 1, (1 << 31) - 1])
def test_counts_that_no_column_can_hold_the_sum_of_do_not_count(reported: int) -> None:
    parser = StreamParser(1)
    list(parser.feed(frame({"delta": {"content": "x"}, "finish_reason": "stop"})))
    list(parser.feed(frame({"delta": {}}, usage={"prompt_tokens": reported, "completion_tokens": reported})))
    assert parser.usage == (Usage(MAX_COUNT, 0, MAX_COUNT) if reported == MAX_COUNT else None)
    assert 2 * MAX_COUNT < 1 << 31


@pytest.mark.parametrize(
    ("reported", "tier"),
    [
        ("flex", "flex"),
        ("priority", "priority"),
        ("default", None),
        ("auto", None),
        ("on_demand", None),
        (None, None),
        ("\0", None),
        (1, None),
    ],
)
def test_the_service_tier_is_that_of_the_answer(reported: Any, tier: str | None) -> None:
    parser = StreamParser(1)
    list(parser.feed(frame({"delta": {"content": "x"}, "finish_reason": "stop"})))
    usage = {"prompt_tokens": 7, "completion_tokens": 9}
    list(parser.feed(frame({"delta": {}}, usage=usage, service_tier=reported)))
    assert parser.usage == Usage(7, 0, 9, service_tier=tier)


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
        (b'{"error": "n\\u0000o\\u001b[1m"}', "n o [1m"),
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


def test_choices_without_an_index_are_told_apart_by_their_position() -> None:
    parser = StreamParser(2)
    both = [{"delta": {"content": "a"}}, {"delta": {"content": "b"}}]
    data = b"data: " + orjson.dumps({"choices": both}) + b"\n\n"
    assert [(delta.index, delta.text) for delta in parser.feed(data)] == [(0, "a"), (1, "b")]
    ends = [(delta.index, delta.finish_reason) for delta in parser.feed(b"data: [DONE]\n\n")]
    assert ends == [(0, "stop"), (1, "stop")]


def test_tool_calls_of_two_choices() -> None:
    parser = StreamParser(2)
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    chunks: list[Any] = [{"index": index, "delta": {"tool_calls": [call]}} for index in (0, 1)]
    ends: list[Any] = [{"index": index, "delta": {}, "finish_reason": "tool_calls"} for index in (1, 0)]
    lines = [b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n" for choice in (*chunks, *ends)]
    deltas = list(parser.feed(b"".join([*lines, b"data: [DONE]\n\n"])))
    assert [(delta.index, delta.tool_calls) for delta in deltas] == [
        (index, (CallDelta(0, "a", "f", "{}"),)) for index in (0, 1)
    ]


def test_many_logprobs_become_several_deltas() -> None:
    entry = {"token": "x", "logprob": -1.0}
    choice = {"message": {"content": "x" * 150}, "logprobs": {"content": [entry] * 150}, "finish_reason": "stop"}
    deltas = list(StreamParser(1).feed(frame(choice) + b"data: [DONE]\n\n"))
    assert [len(delta.logprobs) for delta in deltas] == [64, 64, 22]
    assert [delta.text for delta in deltas] == ["x" * 150, "", ""]
    assert [delta.finish_reason for delta in deltas] == [None, None, "stop"]
    assert sum(delta.tokens for delta in deltas) == 150


def test_a_named_tool_ends_with_stop_as_at_openai() -> None:
    call = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}}
    data = (
        frame({"delta": {"tool_calls": [call]}}) + frame({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n"
    )
    assert [delta.finish_reason for delta in StreamParser(1, named_tool=True).feed(data)] == ["stop"]


MEMBERS = [
    "index",
    "delta",
    "content",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
    "finish_reason",
    "logprobs",
    "usage",
    "error",
    "choices",
    "message",
    "text",
    "reasoning",
    "prompt_tokens",
    "type",
    "token",
    "detail",
    "code",
]
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats()
    | st.sampled_from(["", "x", "{}", "0", "stop", "safety"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(MEMBERS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None)
@given(st.lists(VALUES, max_size=3), st.binary(max_size=8), st.sampled_from([b"", b"event: error\n"]))
def test_nothing_that_an_upstream_sends_is_a_bug(values: list[Any], noise: bytes, kind: bytes) -> None:
    """Whatever comes, there is an answer or a failure; deltas have the types that the log can encode."""
    parser = StreamParser(1)
    for value in (*values, {"choices": values}, {"choices": [{"index": 0, "delta": value} for value in values]}):
        data = kind + b"data: " + json.dumps(value).encode() + b"\n\n" + noise
        for delta in (*parser.feed(data), *parser.end()):
            reason = delta_event(1, delta).delta().finish_reason
            assert reason in (None, "stop", "length", "tool_calls", "content_filter")
        assert parser.usage is None or parser.usage.completion_tokens >= 0


@pytest.mark.parametrize(
    ("start", "end"),
    [('{"error":' * 900 + "1", "}" * 900), ('{"choices":[{"delta":{"content":' + "[" * 900, "]" * 900 + "}}]}")],
)
def test_deep_nesting(start: str, end: str) -> None:
    text = start + end
    parser = StreamParser(1)
    assert not list(parser.feed(b"data: " + text.encode() + b"\n\n"))
    assert parse_error(text.encode()).message is not None


@pytest.mark.parametrize(
    "content",
    [
        [{"delta": {"content": None, "refusal": "I will not."}}],
        [{"delta": {"content": "", "refusal": "I will "}}, {"delta": {"refusal": "not."}}],
        [{"message": {"content": None, "refusal": "I will not."}}],
        [{"delta": {"content": [{"type": "refusal", "refusal": "I will not."}]}}],
    ],
)
def test_a_refusal_is_marked(content: list[dict[str, object]]) -> None:
    parser = StreamParser(1)
    body = b"".join(map(frame, content)) + frame({"delta": {}, "finish_reason": "stop"}) + b"data: [DONE]\n\n"
    deltas = list(parser.feed(body))
    (choice,) = choices_of(deltas)
    assert (choice.text, choice.refused, choice.finish_reason) == ("I will not.", True, "stop")
    assert delta_event(1, merge_deltas(deltas)).delta().refused, "another attempt reads it from the log"
    assert choice.of(choice.stored()) == choice


def test_another_answer_is_not_marked() -> None:
    deltas = list(StreamParser(1).feed(frame({"delta": {"content": "Hi", "refusal": None}, "finish_reason": "stop"})))
    (choice,) = choices_of(deltas)
    assert (choice.text, choice.refused) == ("Hi", False)
    assert b"refused" not in delta_event(1, merge_deltas(deltas)).data
    assert "refused" not in choice.stored()
