"""The parser of Anthropic's event stream: split reads, blocks and their order, stop reasons, usage, malformed data.

The streams follow https://platform.claude.com/docs/en/build-with-claude/streaming.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.domain.events import CallDelta, Delta
from shared.domain.job import Choice, ToolCall, Usage
from tests.support.transcripts import choices_of
from workers.engines.anthropic.stream import StreamParser
from workers.engines.anthropic.token_count import CountParser
from workers.engines.upstream.errors import ErrorBody
from workers.engines.upstream.usage import MAX_COUNT

TEXTS = ["Müh", "le", " 🌊", "\n\nevent: message_stop\n", "水車"]


def frame(kind: str, end: str = "\n\n", **fields: Any) -> bytes:
    return f"event: {kind}\n".encode() + b"data: " + orjson.dumps({"type": kind, **fields}) + end.encode()


def start(**usage: Any) -> bytes:
    message = {"id": "msg_1", "type": "message", "role": "assistant", "content": [], "model": "claude", "usage": usage}
    return frame("message_start", message=message)


def block(index: int, content: dict[str, Any], *deltas: dict[str, Any], stop: bool = True) -> bytes:
    frames = [frame("content_block_start", index=index, content_block=content)]
    frames += [frame("content_block_delta", index=index, delta=delta) for delta in deltas]
    if stop:
        frames.append(frame("content_block_stop", index=index))
    return b"".join(frames)


def text_block(index: int, *texts: str) -> bytes:
    return block(index, {"type": "text", "text": ""}, *({"type": "text_delta", "text": text} for text in texts))


def thinking_block(index: int, *texts: str) -> bytes:
    deltas = [{"type": "thinking_delta", "thinking": text} for text in texts]
    signature = {"type": "signature_delta", "signature": "EqQBCgIYAhIM"}
    return block(index, {"type": "thinking", "thinking": "", "signature": ""}, *deltas, signature)


def tool_block(index: int, call_id: str, name: str, *fragments: str, **more: Any) -> bytes:
    deltas = [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments]
    return block(index, {"type": "tool_use", "id": call_id, "name": name, "input": {}}, *deltas, **more)


def end(reason: str | None = "end_turn", sequence: str | None = None, **usage: Any) -> bytes:
    delta = {"stop_reason": reason, "stop_sequence": sequence}
    return frame("message_delta", delta=delta, usage=usage) + frame("message_stop")


STREAM = (
    start(input_tokens=7, cache_read_input_tokens=20, cache_creation_input_tokens=10, output_tokens=1)
    + frame("ping")
    + text_block(0, *TEXTS)
    + end("max_tokens", output_tokens=9)
)


def parsed(stream: bytes) -> tuple[Choice, StreamParser]:
    parser = StreamParser()
    deltas = [*parser.feed(stream), *parser.end()]
    return choices_of(deltas)[0], parser


def test_the_tokens_that_are_cached_for_an_hour_and_the_service_tier() -> None:
    created = {"ephemeral_5m_input_tokens": 6, "ephemeral_1h_input_tokens": 4}
    counts = {"input_tokens": 7, "cache_creation_input_tokens": 10, "cache_creation": created}
    for tier, expected in (("priority", "priority"), ("standard", None)):
        _, parser = parsed(start(**counts, service_tier=tier) + text_block(0, "x") + end(output_tokens=9))
        assert parser.usage == Usage(17, 0, 9, 0, 10, 4, expected)


@given(st.lists(st.integers(0, len(STREAM))))
def test_reads_may_end_anywhere(cuts: list[int]) -> None:
    parser = StreamParser()
    deltas: list[Delta] = []
    for first, last in itertools.pairwise([0, *sorted(cuts), len(STREAM)]):
        deltas += parser.feed(STREAM[first:last])
    assert "".join(delta.text for delta in deltas) == "".join(TEXTS)
    assert sum(delta.tokens for delta in deltas) == len(TEXTS)
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]
    assert (parser.finished, parser.done, parser.failure) == (True, True, None)


def test_a_character_that_is_cut_between_two_events() -> None:
    def half(text: bytes) -> bytes:
        delta = rb'{"type":"text_delta","text":"%b"}' % text
        return rb'data: {"type":"content_block_delta","index":0,"delta":%b}' % delta + b"\n\n"

    stream = start() + block(0, {"type": "text", "text": ""}, stop=False) + half(rb"a\ud83d") + half(rb"\ude00b")
    for at in range(len(stream)):
        parser = StreamParser()
        deltas = [*parser.feed(stream[:at]), *parser.feed(stream[at:]), *parser.feed(end())]
        assert "".join(delta.text for delta in deltas) == "a😀b"


def test_one_read_becomes_one_delta() -> None:
    assert list(StreamParser().feed(STREAM)) == [Delta(0, "".join(TEXTS), (), "length", len(TEXTS))]


def test_usage_adds_the_cached_parts_of_the_prompt() -> None:
    _, parser = parsed(STREAM)
    assert parser.usage is not None
    assert (parser.usage.prompt_tokens, parser.usage.cached_tokens, parser.usage.completion_tokens) == (37, 20, 9)


def test_the_last_usage_counts_but_not_its_zeros() -> None:
    stream = start(input_tokens=7, output_tokens=1) + text_block(0, "x")
    stream += frame("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 5, "input_tokens": 0})
    stream += frame("message_delta", delta={}, usage={"output_tokens": 6, "cache_read_input_tokens": 3})
    _, parser = parsed(stream + frame("message_stop"))
    assert parser.usage is not None
    assert (parser.usage.prompt_tokens, parser.usage.cached_tokens, parser.usage.completion_tokens) == (10, 3, 6)


@pytest.mark.parametrize(
    ("reported", "counted"), [(7, 7), (-1, 0), (1 << 31, MAX_COUNT), (1 << 70, MAX_COUNT), ("x", None)]
)
def test_the_count_of_a_prompt_is_bounded(reported: Any, counted: int | None) -> None:
    parser = CountParser()
    list(parser.feed(b'{"input_tokens":%b}' % json.dumps(reported).encode()))
    assert len(list(parser.end())) == (counted is not None)
    assert parser.usage == (None if counted is None else Usage(counted))


def test_the_parts_of_a_cache_creation_are_bounded() -> None:
    created = dict.fromkeys(("ephemeral_5m_input_tokens", "ephemeral_1h_input_tokens", "x"), MAX_COUNT)
    _, parser = parsed(start(cache_creation=created) + text_block(0, "x") + end(output_tokens=9))
    assert parser.usage == Usage(MAX_COUNT, 0, 9, 0, MAX_COUNT, MAX_COUNT)


@pytest.mark.parametrize("usage", [None, 7, {"input_tokens": -1}, {"input_tokens": "many"}, {"output_tokens": 1 << 40}])
def test_a_usage_that_lies_does_not_cost_the_answer(usage: Any) -> None:
    stream = frame("message_start", message={"usage": usage}) + text_block(0, "kept")
    choice, parser = parsed(stream + frame("message_delta", delta={"stop_reason": "end_turn"}, usage=usage))
    assert (choice.text, choice.finish_reason, parser.usage) == ("kept", "stop", None)


@pytest.mark.parametrize(
    ("reason", "sequence", "finish_reason"),
    [
        ("end_turn", None, "stop"),
        ("stop_sequence", "END", "stop"),
        ("max_tokens", None, "length"),
        ("model_context_window_exceeded", None, "length"),
        ("pause_turn", None, "stop"),
        ("refusal", None, "content_filter"),
        ("a_new_reason", None, "stop"),
        ("length", None, "length"),
        ("content_filter", None, "content_filter"),
    ],
)
def test_stop_reasons(reason: str, sequence: str | None, finish_reason: str) -> None:
    choice, _ = parsed(start() + text_block(0, "x") + end(reason, sequence))
    assert (choice.finish_reason, choice.stop_reason) == (finish_reason, sequence)


@pytest.mark.parametrize(("reason", "finish_reason"), [("max_tokens", "length"), ("refusal", "content_filter")])
def test_a_tool_call_that_was_cut_before_its_arguments_gets_none(reason: str, finish_reason: str) -> None:
    choice, _ = parsed(start() + tool_block(0, "toolu_1", "f", stop=False) + end(reason))
    assert choice.tool_calls == (ToolCall("toolu_1", "f", ""),)
    assert choice.finish_reason == finish_reason


@pytest.mark.parametrize(("reason", "status"), [("network_error", 502), ("cancelled", None)])
def test_reasons_of_interrupted_answers(reason: str, status: int | None) -> None:
    choice, parser = parsed(start() + text_block(0, "x") + end(reason))
    assert (choice.text, choice.finish_reason, parser.finished) == ("x", None, False)
    assert parser.failure == ErrorBody(f"it ended the answer with the reason {reason}", status=status)


def test_a_refusal_without_content_ends_the_answer() -> None:
    choice, parser = parsed(start(input_tokens=1) + end("refusal", output_tokens=1))
    assert (choice.text, choice.finish_reason, parser.failure) == ("", "content_filter", None)


def test_tool_calls() -> None:
    stream = start() + text_block(0, "I call.")
    stream += tool_block(1, "toolu_1", "weather", "", '{"city"', ': "Paris"}') + tool_block(2, "toolu_2", "now")
    choice, _ = parsed(stream + end("tool_use"))
    assert choice.text == "I call."
    assert choice.tool_calls == (ToolCall("toolu_1", "weather", '{"city": "Paris"}'), ToolCall("toolu_2", "now", "{}"))
    assert choice.finish_reason == "tool_calls"


def test_a_calls_fragments_are_emitted_at_once() -> None:
    parser = StreamParser()
    (delta,) = parser.feed(tool_block(0, "toolu_1", "weather", '{"ci', stop=False))
    assert delta.tool_calls == (CallDelta(0, "toolu_1", "weather", '{"ci'),)


def test_arguments_that_come_with_the_start_of_a_call() -> None:
    content = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}}
    choice, _ = parsed(start() + block(0, content) + end("tool_use"))
    assert choice.tool_calls == (ToolCall("toolu_1", "weather", '{"city":"Rome"}'),)


@pytest.mark.parametrize(
    ("given", "fragments", "arguments"),
    [
        ({}, ["nu", "ll"], "{}"),
        ("null", [], "{}"),
        ('{"a": 1}', [], '{"a": 1}'),
        ({}, ['"{\\"a\\"', ': 1}"'], '{"a": 1}'),
        ({}, [" ", '{"a": ', '"null"}'], ' {"a": "null"}'),
        ({}, ['"text"'], '"text"'),
    ],
)
def test_arguments_that_are_null_or_encoded_twice(given: Any, fragments: list[str], arguments: str) -> None:
    deltas = [{"type": "input_json_delta", "partial_json": fragment} for fragment in fragments]
    stream = start() + block(0, {"type": "tool_use", "id": "t", "name": "f", "input": given}, *deltas)
    choice, _ = parsed(stream + end("tool_use"))
    assert choice.tool_calls == (ToolCall("t", "f", arguments),)


def test_a_call_that_is_cut_at_the_limit_is_not_completed() -> None:
    choice, _ = parsed(start() + tool_block(0, "toolu_1", "weather", '{"ci', stop=False) + end("max_tokens"))
    assert (choice.tool_calls[0].arguments, choice.finish_reason) == ('{"ci', "length")
    choice, _ = parsed(start() + tool_block(0, "toolu_1", "weather", stop=False) + end("max_tokens"))
    assert choice.tool_calls[0].arguments == ""
    choice, _ = parsed(start() + tool_block(0, "toolu_1", "weather", '"{', stop=False) + end("max_tokens"))
    assert choice.tool_calls[0].arguments == '"{'


def test_calls_without_a_unique_id_get_one() -> None:
    choice, _ = parsed(start() + tool_block(0, "t", "a") + tool_block(1, "t", "b") + tool_block(2, "", "c") + end())
    ids = [call.id for call in choice.tool_calls]
    assert ids[0] == "t"
    assert len(set(ids)) == 3
    assert all(ids)
    assert choice.finish_reason == "tool_calls"


def test_a_repeated_start_begins_no_second_call() -> None:
    content = {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {}}
    stream = start() + frame("content_block_start", index=0, content_block=content)
    choice, _ = parsed(stream + tool_block(0, "toolu_1", "weather", "{}") + end("tool_use"))
    assert choice.tool_calls == (ToolCall("toolu_1", "weather", "{}"),)


def test_thinking_is_kept_apart() -> None:
    choice, _ = parsed(start() + thinking_block(0, "Let ", "me think.") + text_block(1, "Done.") + end())
    assert (choice.reasoning, choice.text) == ("Let me think.", "Done.")


def test_a_delta_does_not_change_the_order_of_blocks() -> None:
    stream = thinking_block(0, "one") + text_block(1, "two") + thinking_block(2, "three") + tool_block(3, "t", "four")
    deltas = list(StreamParser().feed(stream))
    assert [(delta.reasoning, delta.text, len(delta.tool_calls)) for delta in deltas] == [
        ("one", "", 0),
        ("", "two", 0),
        ("three", "", 0),
        ("", "", 1),
    ]


def test_thinking_and_encrypted_thinking_are_kept_with_their_signatures() -> None:
    redacted = block(1, {"type": "redacted_thinking", "data": "EmwKAhgB"})
    stream = start() + thinking_block(0, "Let ", "me.") + redacted + thinking_block(2) + text_block(3, "x") + end()
    choice, _ = parsed(stream)
    assert [(part.origin, part.kind, part.data) for part in choice.opaque] == [
        ("anthropic", "thinking", {"thinking": "Let me.", "signature": "EqQBCgIYAhIM"}),
        ("anthropic", "redacted_thinking", {"data": "EmwKAhgB"}),
        ("anthropic", "thinking", {"thinking": "", "signature": "EqQBCgIYAhIM"}),
    ]


def signature(index: int, *pieces: str) -> bytes:
    deltas = ({"type": "signature_delta", "signature": piece} for piece in pieces)
    return b"".join(frame("content_block_delta", index=index, delta=delta) for delta in deltas)


THINKING = block(0, {"type": "thinking", "thinking": "", "signature": ""}, {"type": "thinking_delta", "thinking": "x"})
OPEN = THINKING.removesuffix(frame("content_block_stop", index=0))


@pytest.mark.parametrize(
    "stream",
    [
        OPEN + signature(0, "AB", "CD") + frame("content_block_stop", index=0) + text_block(1, "y"),
        OPEN + signature(0, "AB", "ABCD") + frame("content_block_stop", index=0) + text_block(1, "y"),
        THINKING + signature(0, "AB", "CD") + text_block(1, "y"),
        THINKING + text_block(1, "y") + signature(0, "ABCD"),
        OPEN + signature(0, "ABCD") + text_block(0, "y"),
        OPEN
        + signature(0, "ABCD")
        + frame("content_block_start", index=0, content_block={"type": "text", "text": "y"}),
    ],
)
def test_signatures_in_pieces_after_their_block_and_without_its_end(stream: bytes) -> None:
    choice, _ = parsed(start() + stream + end())
    assert (choice.reasoning, choice.text) == ("x", "y")
    assert [part.data for part in choice.opaque] == [{"thinking": "x", "signature": "ABCD"}]


def test_a_call_whose_end_was_lost_is_completed() -> None:
    stream = tool_block(0, "t", "f", stop=False) + tool_block(0, "u", "g", "{}")
    choice, _ = parsed(start() + stream + end("tool_use"))
    assert choice.tool_calls == (ToolCall("t", "f", "{}"), ToolCall("u", "g", "{}"))


def test_deltas_of_another_kind_than_their_block() -> None:
    thought = {"type": "thinking_delta", "thinking": "hm"}
    stream = block(0, {"type": "text", "text": ""}, thought, {"type": "text_delta", "text": "x"})
    stream += block(1, {"type": "output_text", "text": ""}, {"type": "text_delta", "text": "y"})
    choice, _ = parsed(start() + stream + end())
    assert (choice.reasoning, choice.text) == ("hm", "xy")


def test_members_that_are_null() -> None:
    stream = frame("message_start", message=None) + frame("content_block_start", index=None, content_block=None)
    stream += frame("content_block_delta", index=None, delta=None)
    stream += frame("content_block_start", index=None, content_block={"type": "text", "text": "x"})
    choice, parser = parsed(stream + frame("message_delta", delta=None) + end())
    assert (choice.text, choice.finish_reason, parser.failure) == ("x", "stop", None)


def test_events_whose_type_is_only_their_name() -> None:
    stream = start() + text_block(0, "x") + end()
    untyped = b"\n".join(
        line.replace(b'{"type":"%b"' % name, b'{"x":0') if line.startswith(b"data:") else line
        for line in stream.split(b"\n")
        for name in [orjson.loads(line[6:])["type"].encode() if line.startswith(b"data:") else b""]
    )
    assert untyped.count(b'"type"') < stream.count(b'"type"')
    choice, _ = parsed(untyped)
    assert (choice.text, choice.finish_reason) == ("x", "stop")


def test_usage_as_text() -> None:
    _, parser = parsed(
        start(input_tokens="7", cache_read_input_tokens=2.0) + text_block(0, "x") + end(output_tokens="9")
    )
    assert parser.usage is not None
    assert (parser.usage.prompt_tokens, parser.usage.completion_tokens) == (9, 9)


def test_thinking_without_a_signature_has_no_part() -> None:
    choice, _ = parsed(start() + block(0, {"type": "thinking", "thinking": "Hm."}) + text_block(1, "x") + end())
    assert (choice.reasoning, choice.opaque) == ("Hm.", ())


def test_blocks_and_deltas_of_server_tools_and_unknown_kinds_are_skipped() -> None:
    stream = start()
    stream += block(
        0,
        {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {}},
        {"type": "input_json_delta", "partial_json": '{"query": "x"}'},
    )
    stream += block(1, {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": [{"text": "found"}]})
    stream += block(2, {"type": "a_new_block", "text": "hidden"}, {"type": "text_delta", "text": "hidden"})
    citation = {"type": "citations_delta", "citation": {"cited_text": "hidden"}}
    stream += block(
        3, {"type": "text", "text": "Vi"}, citation, {"type": "text_delta", "text": "sible"}, {"type": "new"}
    )
    choice, parser = parsed(stream + frame("a_new_event", text="hidden") + frame("vendor.thing") + end())
    assert (choice.text, choice.tool_calls, choice.finish_reason) == ("Visible", (), "stop")
    assert parser.failure is None


def test_an_error_event_ends_the_answer() -> None:
    error = {"type": "overloaded_error", "message": "Overloaded"}
    stream = start() + block(0, {"type": "text", "text": "kept"}, stop=False)
    choice, parser = parsed(stream + frame("error", error=error, request_id="req_011C"))
    assert choice.text == "kept"
    assert (parser.done, parser.finished) == (True, False)
    assert parser.failure == ErrorBody("Overloaded", None, 529, "req_011C")


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("invalid_request_error", 400),
        ("authentication_error", 401),
        ("billing_error", 402),
        ("permission_error", 403),
        ("not_found_error", 404),
        ("request_too_large", 413),
        ("rate_limit_error", 429),
        ("api_error", 500),
        ("timeout_error", 504),
        ("overloaded_error", 529),
        ("a_new_error", None),
    ],
)
def test_error_types_stand_for_a_status(kind: str, status: int | None) -> None:
    _, parser = parsed(frame("error", error={"type": kind, "message": "m"}))
    assert isinstance(parser.failure, ErrorBody)
    assert parser.failure.status == status


def test_a_message_that_was_not_streamed() -> None:
    message = {
        "type": "message",
        "content": [
            {"type": "thinking", "thinking": "Hm.", "signature": "s"},
            {"type": "text", "text": "Hi"},
            {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Rome"}},
        ],
        "stop_reason": "tool_use",
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    choice, parser = parsed(orjson.dumps(message))
    assert (choice.reasoning, choice.text, choice.finish_reason) == ("Hm.", "Hi", "tool_calls")
    assert choice.tool_calls == (ToolCall("toolu_1", "weather", '{"city":"Rome"}'),)
    assert parser.usage is not None
    assert parser.usage.completion_tokens == 4


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"[]",
        b"7",
        b'{"type": "content_block_delta", "index": 0}',
        b'{"type": "content_block_delta", "index": [], "delta": {}}',
        b'{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": 7}}',
        b'{"type": "content_block_start", "index": 0, "content_block": 7}',
        b'{"type": "message_start"}',
        b'{"type": "message_delta", "delta": []}',
        b"<html>",
    ],
)
def test_malformed_events_fail_the_request_and_keep_the_text(payload: bytes) -> None:
    stream = block(0, {"type": "text", "text": "kept"}, stop=False)
    choice, parser = parsed(stream + b"data: " + payload + b"\n\n")
    assert choice.text == "kept"
    assert parser.done
    assert parser.failure is not None
    assert "not Anthropic's stream" in parser.failure.message


def test_an_answer_without_its_last_event_is_complete_if_its_reason_is_known() -> None:
    stream = start() + text_block(0, "x") + frame("message_delta", delta={"stop_reason": "end_turn"})
    parser = StreamParser()
    assert [delta.finish_reason for delta in parser.feed(stream)] == [None]
    assert (parser.done, parser.finished) == (False, True)
    assert [delta.finish_reason for delta in parser.end()] == ["stop"]
    assert list(parser.end()) == []


def test_an_answer_without_a_reason_is_not_complete() -> None:
    choice, parser = parsed(start() + text_block(0, "x"))
    assert (choice.finish_reason, parser.done, parser.finished) == (None, False, False)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(text_block(0, "x"), "stop"), (tool_block(0, "t", "f", "{}"), "tool_calls"), (thinking_block(0, "x"), "stop")],
)
@pytest.mark.parametrize("last", [end(None), frame("message_stop"), b"data: [DONE]\n\n"])
def test_a_message_that_stops_without_a_reason_is_complete(content: bytes, reason: str, last: bytes) -> None:
    choice, parser = parsed(start() + content + last)
    assert (choice.finish_reason, parser.finished, parser.failure) == (reason, True, None)


@pytest.mark.parametrize("content", [b"", text_block(0), tool_block(0, "t", "f", '{"ci', stop=False)])
def test_a_message_that_stops_without_a_reason_and_without_output_or_in_a_call_is_not(content: bytes) -> None:
    choice, parser = parsed(start() + content + frame("message_stop"))
    assert (choice.finish_reason, parser.done, parser.finished) == (None, True, False)


def test_a_reason_that_follows_the_stop() -> None:
    parser = StreamParser()
    first = list(parser.feed(start() + text_block(0, "x") + frame("message_stop")))
    assert (parser.done, parser.finished) == (False, True)
    delta = {"stop_reason": "max_tokens", "stop_sequence": None}
    rest = list(parser.feed(frame("message_delta", delta=delta, usage={"output_tokens": 5})))
    assert [delta.finish_reason for delta in (*first, *rest)] == [None, "length"]
    assert parser.done
    assert parser.usage is not None


def test_tool_use_without_a_call() -> None:
    choice, _ = parsed(start() + text_block(0, "x") + end("tool_use"))
    assert choice.finish_reason == "stop"
