"""Reading, parsing and validating the lines of a batch."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as some
import pytest
from hypothesis import given

from api.batches.batch import Position
from api.batches.jsonl_reader import Line, read_lines
from api.batches.request_line import LineRejected, content_of, parse
from api.batches.validation import MAX_ERRORS, validate
from api.http.members import MAX_HEADER_BYTES, MAX_NAMES, header_value
from shared.config.models.loader import Registry, load_registry
from tests.support.members import member_reader
from tests.support.stack import write_models

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
LIMIT = 10_000
MEMBERS = member_reader()


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return load_registry(write_models(tmp_path / "models.yaml", [{"name": "sim", "engine": "simulated"}]))


async def chunks_of(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


async def all_lines(pieces: Sequence[bytes], start: Position | None = None, limit: int = LIMIT) -> list[Line]:
    return [line async for line in read_lines(chunks_of(pieces), start or Position(), limit)]


def request(custom_id: Any = "a", **changes: Any) -> dict[str, Any]:
    body = {"model": "sim", "messages": [{"role": "user", "content": "the mill"}], "max_tokens": 4}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changes}


def jsonl(*lines: Any) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


# Reading


@given(some.lists(some.binary(max_size=20)))
async def test_chunk_boundaries_do_not_affect_the_lines(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    expected = content.split(b"\n")
    if expected[-1] == b"":
        expected.pop()
    lines = await all_lines(pieces)
    assert [line.data for line in lines] == expected
    assert [line.number for line in lines] == list(range(1, len(expected) + 1))


@given(some.lists(some.sampled_from([b"one", b"", b"\r", b"two two", "🌊".encode()]), min_size=1))
async def test_reading_resumes_at_any_line(texts: list[bytes]) -> None:
    content = b"\n".join(texts)
    lines = await all_lines([content])
    for position, line in enumerate(lines):
        assert await all_lines([content[line.next.offset :]], line.next) == lines[position + 1 :]


async def test_a_long_line_is_reported_without_its_data() -> None:
    lines = await all_lines([b"x" * 6, b"x" * 6 + b"\nok\n" + b"y" * 11], limit=10)
    assert [(line.number, line.data) for line in lines] == [(1, None), (2, b"ok"), (3, None)]
    assert lines[1].next == Position(3, 16)


# Parsing


def test_a_chat_request_becomes_a_job_with_the_lowest_priority() -> None:
    body = {**request()["body"], "priority": 0, "metadata": {"a": "b"}}
    parsed = parse(Line(7, jsonl(request("x\u0000🌊", body=body)), Position(8)), CHAT, MEMBERS)
    assert parsed.custom_id == "x\u0000🌊"
    assert (parsed.job.line, parsed.job.model, parsed.job.metadata) == (7, "sim", {"a": "b"})
    assert parsed.job.request.priority == 9
    assert parsed.job.request.sampling.max_tokens == 4


def test_a_completion_has_its_endpoints_defaults() -> None:
    line = request(url=COMPLETIONS, body={"model": "sim", "prompt": "the mill"})
    assert parse(Line(1, jsonl(line), Position(2)), COMPLETIONS, MEMBERS).job.request.sampling.max_tokens == 16


def without(name: str) -> dict[str, Any]:
    line = request()
    del line[name]
    return line


@pytest.mark.parametrize(
    ("line", "code", "param"),
    [
        (b"{", "invalid_json_line", None),
        (b'{"custom_id": NaN}', "invalid_json_line", None),
        (b"\xff\xfe", "invalid_json_line", None),
        (b"[" * 5000, "invalid_json_line", None),
        (b'{"a": ' * 200 + b"1" + b"}" * 200, "invalid_json_line", None),
        (b"{" + b",".join(b'"%d": 1' % number for number in range(5000)) + b"}", "invalid_json_line", None),
        (b"[]", "invalid_json_line", None),
        (b"null", "invalid_json_line", None),
        (without("custom_id"), "missing_required_parameter", "custom_id"),
        (without("method"), "missing_required_parameter", "method"),
        (without("url"), "missing_required_parameter", "url"),
        (without("body"), "missing_required_parameter", "body"),
        (request(""), "invalid_custom_id", "custom_id"),
        (request("x" * 513), "invalid_custom_id", "custom_id"),
        (request(7), "invalid_custom_id", "custom_id"),
        (request(method="GET"), "invalid_method", "method"),
        (request(url="/v1/embeddings"), "invalid_url", "url"),
        (request(url=COMPLETIONS), "invalid_url", "url"),
        (request(body=[]), "invalid_request", "body"),
        (request(body={"model": "sim"}), "invalid_request", "body.messages"),
        (request(body={**request()["body"], "temperature": 9}), "invalid_request", "body.temperature"),
        (request(body={**request()["body"], "audio": {"voice": "a"}}), "invalid_request", "body.audio"),
        (request(body={**request()["body"], "stream": True}), "invalid_request", "body.stream"),
        (request(body={**request()["body"], "n": 2, "temperature": 0}), "invalid_request", "body.n"),
        (request(body={**request()["body"], "model": "gpt"}), "model_not_found", "body.model"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_invalid_lines_are_rejected(registry: Registry, line: Any, code: str, param: str | None) -> None:
    data = line if isinstance(line, bytes) else json.dumps(line).encode()
    with pytest.raises(LineRejected) as rejected:
        parse(Line(12, data, Position(13)), CHAT, MEMBERS, registry)
    error = rejected.value.error
    assert (error.code, error.line, error.param) == (code, 12, param)
    assert error.message


LARGE = b" " * 40_000


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (b'{"a": [' + b"{}," * 200_000 + b"{}]}", "invalid_json_line"),
        (LARGE + b"\xff", "invalid_json_line"),
        (b"\xff\xfe" + LARGE.decode().encode("utf-16-le"), "invalid_json_line"),
        (LARGE + b"[" * 5000, "invalid_json_line"),
        (LARGE + b'{"custom_id": "\\ud800", "method": "POST", "url": "/x", "body": {}}', "invalid_custom_id"),
    ],
    ids=["objects", "not-utf-8", "utf-16", "depth", "surrogate"],
)
def test_invalid_large_lines_are_rejected(line: bytes, code: str) -> None:
    """They are parsed in another way than small ones, in pieces."""
    with pytest.raises(LineRejected) as rejected:
        parse(Line(12, line, Position(13)), CHAT, MEMBERS)
    assert rejected.value.error.code == code
    assert rejected.value.is_utf8 == (b"\xff" not in line)


def test_a_result_line_names_at_most_as_many_ignored_members_as_the_header() -> None:
    for length in (2, 60):
        outer, inner = ({f"{name}{number}".ljust(length, "n"): 1 for number in range(15)} for name in "ab")
        line = json.dumps({**request(), **outer, "body": {**request()["body"], **inner}}).encode()
        ignored = content_of(Line(1, line, Position(2)), CHAT, MEMBERS).ignored
        assert 15 <= len(ignored) <= MAX_NAMES
        assert len(header_value(ignored)) <= MAX_HEADER_BYTES


@pytest.mark.parametrize(
    ("url", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "x"}], "context": {"strategy": "sliding_window"}}),
        (RESPONSES, {"input": "x", "truncation": "auto"}),
    ],
)
def test_a_line_says_how_its_conversation_is_shortened(url: str, fields: dict[str, Any]) -> None:
    body = {"custom_id": "a", "method": "POST", "url": url, "body": {"model": "m", **fields}}
    line = Line(1, json.dumps(body).encode(), Position())
    context = parse(line, url, MEMBERS).job.options.context
    assert context is not None
    assert context.strategy == "sliding_window"


def test_a_line_without_data_is_rejected_as_too_long() -> None:
    with pytest.raises(LineRejected, match="exceeds the maximum size"):
        parse(Line(1, None, Position(2)), CHAT, MEMBERS)


async def check(registry: Registry, data: bytes) -> tuple[int, list[tuple[str, int | None]]]:
    validation = await validate(read_lines(chunks_of([data]), Position(), LIMIT), CHAT, MEMBERS, registry)
    return validation.requests, [(error.code, error.line) for error in validation.errors]


async def test_blank_lines_are_skipped_but_numbered(registry: Registry) -> None:
    data = jsonl(request("a"), b"", b"  \r", request("b"), b"oops") + b"\n"
    assert await check(registry, data) == (3, [])
    assert await check(registry, data + jsonl(request("a"))) == (
        4,
        [("invalid_json_line", 5), ("duplicate_custom_id", 7)],
    )


@pytest.mark.parametrize("lines", [[request(7)], [b"oops"], [request(url=COMPLETIONS)]], ids=["id", "JSON", "url"])
async def test_invalid_lines_fail_the_file_only_if_no_line_is_valid(registry: Registry, lines: list[Any]) -> None:
    assert await check(registry, jsonl(*lines, request("good"))) == (2, [])
    requests, errors = await check(registry, jsonl(*lines))
    assert (requests, len(errors)) == (1, 1)


async def test_an_invalid_line_can_duplicate_a_custom_id(registry: Registry) -> None:
    bad = request("a", body={**request()["body"], "temperature": 9})
    _, errors = await check(registry, jsonl(request("a"), request("b"), bad))
    assert errors == [("duplicate_custom_id", 3), ("invalid_request", 3)]


async def test_a_file_that_is_not_utf8_is_rejected(registry: Registry) -> None:
    assert await check(registry, jsonl(request("a"), b"\xff\xfe", request("b"))) == (3, [("invalid_json_line", 2)])
    _, errors = await check(registry, json.dumps(request("a")).encode("utf-16"))
    assert errors == [("invalid_json_line", 1)]


async def test_a_byte_order_mark_is_skipped(registry: Registry) -> None:
    data = BOM_UTF8 + jsonl(request("a"), request("b"))
    assert await check(registry, data) == (2, [])
    assert await check(registry, BOM_UTF8 + json.dumps(request("a")).encode()) == (1, [])
    assert await check(registry, BOM_UTF8 + b"\n") == (0, [("empty_file", None)])
    lines = await all_lines([data[:2], data[2:]])
    assert lines[0].next == Position(2, data.index(b"\n") + 1), "the mark counts as bytes"


def test_ignored_members_of_a_line_are_named() -> None:
    line = Line(1, json.dumps(request(priority=1, body={**request()["body"], "store": True})).encode(), Position(2))
    assert content_of(line, CHAT, MEMBERS).ignored == ("priority", "store")
    assert parse(line, CHAT, MEMBERS).custom_id == "a"
    with pytest.raises(LineRejected) as rejected:
        parse(line, CHAT, member_reader(refuse_unknown=True))
    assert (rejected.value.error.code, rejected.value.error.param) == ("unknown_parameter", "priority")


async def test_custom_ids_must_be_unique(registry: Registry) -> None:
    assert await check(registry, jsonl(request("a"), request("b"), request("a"))) == (3, [("duplicate_custom_id", 3)])


@pytest.mark.parametrize("data", [b"\n", b"\n \n\r\n"])
async def test_a_file_without_requests_is_rejected(registry: Registry, data: bytes) -> None:
    assert await check(registry, data) == (0, [("empty_file", None)])


async def test_the_number_of_reported_errors_is_limited(registry: Registry) -> None:
    _, errors = await check(registry, b"oops\n" * 1000)
    assert errors == [("invalid_json_line", line) for line in range(1, MAX_ERRORS + 1)]


# Responses


def response(**body: Any) -> dict[str, Any]:
    body = {"model": "sim", "input": "the mill", **body}
    return {"custom_id": "a", "method": "POST", "url": RESPONSES, "body": body}


async def test_a_response_line_becomes_the_same_job_as_a_single_call(registry: Registry) -> None:
    (line,) = await all_lines([jsonl(response(instructions="Be brief.", max_output_tokens=5, metadata={"a": "b"}))])
    job = parse(line, RESPONSES, MEMBERS, registry).job
    assert job.request.messages is not None
    assert [(item.role, item.content) for item in job.request.messages] == [
        ("system", "Be brief."),
        ("user", "the mill"),
    ]
    assert (job.request.sampling.max_tokens, job.request.priority, job.metadata) == (5, 9, {"a": "b"})


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"stream": True}, "body.stream"),
        ({"background": True}, "body.background"),
        ({"previous_response_id": "resp_a"}, "body.previous_response_id"),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "1"}]}, "body.input"),
        ({"model": "gpt"}, "body.model"),
        ({"max_output_tokens": 0}, "body.max_output_tokens"),
    ],
    ids=str,
)
async def test_unsupported_response_lines_are_rejected(registry: Registry, body: dict[str, Any], param: str) -> None:
    (line,) = await all_lines([jsonl(response(**body))])
    with pytest.raises(LineRejected) as rejected:
        parse(line, RESPONSES, MEMBERS, registry)
    assert (rejected.value.error.line, rejected.value.error.param) == (1, param)
