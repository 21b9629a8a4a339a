"""Opaque parts survive a round trip through each API's client, streamed or not, and reach their own provider only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from api.anthropic.events import _Stream as AnthropicStream
from api.anthropic.events import message_body
from api.anthropic.requests import generate_request
from api.anthropic.schemas import MessagesRequest
from api.jobs.native_stream import native_data
from api.jobs.schemas import JobCreate, summary_view, with_output
from api.openai.chunks import Chunks, _Encoder
from api.openai.completions import CHAT, completion_body
from api.openai.schemas import ChatCompletionRequest
from api.responses.events import ResponseEvents
from api.responses.messages import PreviousTurns, conversation
from api.responses.schemas import ResponseCreate
from shared.domain.events import CallDelta, Delta, EventType, delta_event, event, merge_deltas
from shared.domain.job import Choice, Job, JobStatus, Usage
from shared.domain.opaque import REDACTED_THINKING, THINKING, TOOL_CALL, OpaquePart
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, MessageToolCall
from shared.domain.response import StoredResponse
from shared.domain.transcript import Transcript
from tests.support.members import read
from workers.execution.log_writer import _groups

ORIGINS = ("anthropic", "openai", "gemini", "openrouter")
TEXTS = some.text("abc ä€\n", min_size=1, max_size=4)
# A turn of a provider: blocks in its order. Calls come after the text, as in every provider's turns.
BLOCKS = some.sampled_from(["thinking", "silent thinking", "redacted", "text"])
NEW = {"role": "user", "content": "go on"}
JOB = Job(
    id="job_" + "0" * 32,
    owner=Owner(1, 1),
    model="m",
    status=JobStatus.COMPLETED,
    priority=3,
    created_at=datetime.now(UTC),
    usage=Usage(1, 0, 1),
    request=GenerateRequest(messages=[Message(role="user", content="x")]),
)


class Turn:
    """A provider's turn: its blocks as a worker's log and as a job's output, and as the provider expects them back."""

    def __init__(self, origin: str, blocks: Sequence[str], calls: int, texts: Sequence[str], cuts: Sequence[int]):
        self.expected: list[Any] = []
        transcript = Transcript(1)
        deltas: list[Delta] = []
        words = iter(texts)

        def part(kind: str, call_id: str | None = None) -> tuple[OpaquePart, ...]:
            data = {"type": kind, "signature": f"sig{len(self.expected)}"}
            self.expected.append(data)
            return (OpaquePart(origin, kind, data, call_id),)

        for block in blocks:
            word = next(words)
            match block:
                case "thinking":
                    deltas += [Delta(0, reasoning=word), Delta(0, opaque=part(THINKING))]
                case "silent thinking":
                    deltas.append(Delta(0, opaque=part(THINKING)))
                case "redacted":
                    deltas.append(Delta(0, opaque=part(REDACTED_THINKING)))
                case "text":
                    self.expected.append(word)
                    deltas.append(Delta(0, word))
        for number in range(calls):
            name = f"call_{number}"
            self.expected.append(name)
            deltas.append(Delta(0, tool_calls=(CallDelta(number, name, "f"),)))
            if number % 2:
                deltas.append(Delta(0, opaque=part(TOOL_CALL, name)))
            deltas.append(Delta(0, tool_calls=(CallDelta(number, arguments="{}"),)))
        deltas.append(Delta(0, finish_reason="tool_calls" if calls else "stop"))
        for delta in deltas:
            if delta.opaque:
                delta.opaque = transcript.placed(delta)
            transcript.add(delta)
        (self.choice,) = (Choice.of(orjson.loads(orjson.dumps(choice.stored()))) for choice in transcript.choices())
        self.events = [event(1, EventType.STARTED, {"attempt": 1, "worker": "w"})]
        for flushed in _cut(deltas, cuts):
            for group in _groups(flushed):
                self.events.append(delta_event(len(self.events) + 1, merge_deltas(group)))
        end = {"usage": {"prompt_tokens": 1, "completion_tokens": 1, "cached_tokens": 0}, "timings": {}}
        self.events.append(event(len(self.events) + 1, EventType.COMPLETED, end))

    @property
    def job(self) -> Job:
        return replace(JOB, output=(self.choice,))


def _cut(deltas: list[Delta], sizes: Sequence[int]) -> Iterator[list[Delta]]:
    """The deltas of each flush."""
    at = 0
    for size in (*sizes, len(deltas)):
        if deltas[at : at + size]:
            yield deltas[at : at + size]
        at += size


def data_of(frame: bytes) -> Iterator[dict[str, Any]]:
    for line in frame.split(b"\n"):
        if line.startswith(b"data: ") and line != b"data: [DONE]":
            yield json.loads(line[len(b"data: ") :])


# What a client of each API sends in its next request


def messages_client(turn: Turn, *, streamed: bool) -> GenerateRequest:
    if streamed:
        blocks: list[dict[str, Any]] = []
        stream = AnthropicStream(turn.job, hides_thinking=False)
        for item in turn.events:
            for frame in stream.convert(item):
                for found in data_of(frame):
                    _accumulate(blocks, found)
        for block in blocks:
            if block["type"] == "tool_use":
                block["input"] = json.loads(block.pop("json", "") or "{}")
        content: Any = blocks
    else:
        content = message_body(turn.job, hides_thinking=False).model_dump(mode="json")["content"]
    body = {"model": "m", "max_tokens": 9, "messages": [NEW, {"role": "assistant", "content": content}, NEW]}
    return generate_request(read(MessagesRequest, body))


def _accumulate(blocks: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """As Anthropic's SDK does."""
    match found:
        case {"type": "content_block_start", "content_block": block}:
            blocks.append(dict(block))
        case {"type": "content_block_delta", "index": index, "delta": {"type": kind} as delta}:
            name = {"input_json_delta": "partial_json", "signature_delta": "signature"}.get(
                kind, kind[: -len("_delta")]
            )
            target = "json" if name == "partial_json" else name
            value = delta[name]
            blocks[index][target] = value if name == "signature" else blocks[index].get(target, "") + value


def chat_client(turn: Turn, *, streamed: bool) -> GenerateRequest:
    if streamed:
        message: dict[str, Any] = {"role": "assistant", "content": "", "reasoning": "", "reasoning_details": []}
        calls: dict[int, dict[str, Any]] = {}
        chunks = Chunks(lambda model: _Encoder(CHAT, turn.job, model, include_usage=False), CHAT, turn.job)
        for item in turn.events:
            for found in data_of(chunks.convert(item)):
                delta = found["choices"][0]["delta"]
                for name in ("content", "reasoning"):
                    message[name] += delta.get(name) or ""
                message["reasoning_details"] += delta.get("reasoning_details", [])
                for fragment in delta.get("tool_calls", ()):
                    call = calls.setdefault(fragment["index"], {"function": {"name": "", "arguments": ""}})
                    call |= {name: fragment[name] for name in ("id", "type", "extra_content") if name in fragment}
                    for name, text in fragment["function"].items():
                        call["function"][name] += text
        message["tool_calls"] = list(calls.values())
    else:
        message = json.loads(orjson.dumps(completion_body(CHAT, [turn.job])["choices"][0]["message"], default=list))
    body = {"model": "m", "messages": [NEW, message, NEW]}
    (request,) = read(ChatCompletionRequest, body).generate_requests()
    return request


def jobs_client(turn: Turn, *, streamed: bool) -> GenerateRequest:
    output: dict[str, Any]
    if streamed:
        output = {"text": "", "reasoning": "", "opaque": [], "tool_calls": {}}
        for item in turn.events[1:-1]:
            found = json.loads(native_data(item))
            output["text"] += found["text"]
            output["reasoning"] += found.get("reasoning", "")
            output["opaque"] += found.get("opaque", [])
            for fragment in found.get("tool_calls", ()):
                call = output["tool_calls"].setdefault(fragment["index"], {"id": fragment.get("id"), "arguments": ""})
                call["name"] = call.get("name") or fragment.get("name")
                call["arguments"] += fragment["arguments"]
        output["tool_calls"] = list(output["tool_calls"].values())
    else:
        output = json.loads(orjson.dumps(with_output(summary_view(turn.job), turn.job.output).build()["output"][0]))
    message = {
        "role": "assistant",
        "content": output["text"],
        "reasoning": output["reasoning"],
        "opaque": output.get("opaque"),
        "tool_calls": [
            {"id": call["id"], "function": {"name": call["name"], "arguments": call["arguments"]}}
            for call in output["tool_calls"]
        ],
    }
    return read(JobCreate, {"model": "m", "messages": [NEW, message, NEW]}).generate_request()


INCLUDE = {"include": ["reasoning.encrypted_content"]}


def _response_items(turn: Turn, created: dict[str, Any], *, streamed: bool) -> list[dict[str, Any]]:
    facts = read(ResponseCreate, {"model": "m", "input": "x", **created}).facts()
    events = ResponseEvents(StoredResponse(turn.job, facts))
    found = [item for logged in turn.events for item in events.convert(logged)]
    if streamed:
        items = [item["item"] for item in found if item["type"] == "response.output_item.done"]
    else:
        items = events.response["output"]
    result: list[dict[str, Any]] = json.loads(orjson.dumps(items, default=list))
    return result


def responses_client(turn: Turn, *, streamed: bool) -> GenerateRequest:
    items = _response_items(turn, INCLUDE, streamed=streamed)
    body = read(ResponseCreate, {"model": "m", "input": [NEW, *items, NEW]})
    return body.generate_request(conversation(None, None, body.input))


def stateless_client(turn: Turn, *, streamed: bool) -> GenerateRequest:
    items = _response_items(turn, {"store": False}, streamed=streamed)
    body = read(ResponseCreate, {"model": "m", "input": [NEW, *items, NEW]})
    return body.generate_request(conversation(None, None, body.input))


def previous_response_client(turn: Turn, *, streamed: bool) -> GenerateRequest:
    assert "hr1" not in str(_response_items(turn, {}, streamed=streamed)), "not requested"
    body = read(ResponseCreate, {"model": "m", "input": [NEW], "previous_response_id": "x"})
    return body.generate_request(conversation(None, PreviousTurns(turn.job, has_instructions=False), body.input))


CLIENTS = [messages_client, chat_client, jobs_client, responses_client, stateless_client, previous_response_client]
Client = Callable[..., GenerateRequest]


def sent_to(provider: str | None, request: GenerateRequest) -> list[Any]:
    """What an engine of a provider sends of the model's turn: the data of its parts, texts, and calls."""
    request = GenerateRequest.model_validate_json(request.model_dump_json(exclude_none=True, exclude_defaults=True))
    sent: list[Any] = []
    for message in request.for_provider(provider).messages or ():
        if message.role != "assistant":
            continue
        for item in message.in_order():
            match item:
                case OpaquePart():
                    sent.append(item.data)
                case MessageToolCall():
                    sent.append(item.id)
                    if (part := message.call_part(item.id)) is not None:
                        sent.append(part.data)
                case str() if item:
                    sent.append(item)
    return _joined(sent)


def _joined(items: Sequence[Any]) -> list[Any]:
    """The items with adjacent texts joined: where a text is cut has no meaning. Nor have calls' parts of the text."""
    joined: list[Any] = []
    for item in items:
        if _is_text(item) and joined and _is_text(joined[-1]):
            joined[-1] += item
        else:
            joined.append(item)
    return joined


def _is_text(item: Any) -> bool:
    return isinstance(item, str) and not item.startswith("call_")


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("client", CLIENTS, ids=lambda client: client.__name__)
@settings(max_examples=8)
@given(
    origin=some.sampled_from(ORIGINS),
    target=some.sampled_from((*ORIGINS, None)),
    blocks=some.lists(BLOCKS, max_size=6),
    calls=some.integers(0, 3),
    texts=some.lists(TEXTS, min_size=6, max_size=6),
    cuts=some.lists(some.integers(1, 4), max_size=12),
)
def test_parts_reach_their_provider_only(
    client: Client,
    streamed: bool,
    origin: str,
    target: str | None,
    blocks: list[str],
    calls: int,
    texts: list[str],
    cuts: list[int],
) -> None:
    turn = Turn(origin, blocks, calls, texts, cuts)
    sent = sent_to(target, client(turn, streamed=streamed))
    if target == origin:
        assert sent == _joined(turn.expected)
    else:
        assert sent == _joined([item for item in turn.expected if not isinstance(item, dict)])
