"""Conversion of logs to response events is deterministic, so that streams can be resumed after any event."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from api.http.large_json import CHUNK
from api.responses.events import ResponseEvents, build_response, frames
from api.responses.schemas import ResponseCreate, ResponseView
from shared.domain.events import (
    CallDelta,
    Delta,
    Event,
    EventType,
    archive,
    delta_event,
    event,
    parse_archive,
    seq_before,
)
from shared.domain.job import Job, JobStatus
from shared.domain.logprobs import Candidate, encode_entry
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.response import ResponseFacts, StoredResponse
from tests.support.examples import example_count
from tests.support.members import read

DIGITS = "0190" + "a" * 28
USAGE = {"prompt_tokens": 7, "completion_tokens": 5, "cached_tokens": 2}
SDK_EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def response(*, background: bool = False, **parameters: Any) -> StoredResponse:
    body = read(ResponseCreate, {"model": "sim", "input": "x", "background": background, **parameters})
    job = Job(
        id=f"job_{DIGITS}",
        owner=Owner(1, 1),
        model="sim",
        status=JobStatus.QUEUED,
        priority=3,
        request=GenerateRequest(),
        created_at=datetime(2026, 1, 2, tzinfo=UTC),
        metadata={"a": "b"},
    )
    return StoredResponse(job, ResponseFacts(body.echoed(), [], background=background))


def log(*deltas: Delta, ending: EventType = EventType.COMPLETED, **error: str) -> list[Event]:
    """Build the log of one attempt."""
    events = [event(1, EventType.STARTED, {"attempt": 1, "worker": "w"})]
    events += [delta_event(number, delta, with_count=True) for number, delta in enumerate(deltas, 2)]
    payload: dict[str, Any] = {"usage": USAGE, "timings": {}}
    if error:
        payload["error"] = error
    return [*events, event(len(events) + 1, ending, payload)]


def convert(events: Sequence[Event], to: StoredResponse | None = None) -> list[dict[str, Any]]:
    stream = ResponseEvents(to or response())
    return [*stream.opening(), *(item for entry in events for item in stream.convert(entry))]


def kinds(events: Sequence[dict[str, Any]]) -> list[str]:
    return [item["type"].removeprefix("response.") for item in events]


ALL_ITEMS = log(
    Delta(0, "", (1, 2), reasoning="hm"),
    Delta(0, "", reasoning="m"),
    Delta(0, "The ", logprobs=(encode_entry(Candidate("The ", -0.5, b"T"), ()),)),
    Delta(0, "mill 🌊"),
    Delta(0, "", tool_calls=(CallDelta(0, "call_1", "weather", '{"city": '),)),
    Delta(0, "", tool_calls=(CallDelta(0, arguments='"Ulm"}'), CallDelta(1, "call_2", "time"))),
    Delta(0, "", finish_reason="tool_calls"),
)


def test_the_event_order_of_a_text_response() -> None:
    events = convert(log(Delta(0, "The "), Delta(0, "mill"), Delta(0, "", finish_reason="stop")))
    assert kinds(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert [item["sequence_number"] for item in events] == list(range(10))
    last = events[-1]["response"]
    assert last["status"] == "completed"
    assert last["output"] == [events[-2]["item"]]
    assert last["output"][0]["content"][0]["text"] == "The mill"
    assert last["usage"]["input_tokens_details"]["cached_tokens"] == 2


def test_reasoning_text_and_calls_are_consecutive_items() -> None:
    events = convert(ALL_ITEMS)
    items = [item["item"] for item in events if item["type"] == "response.output_item.done"]
    assert [item["type"] for item in items] == ["reasoning", "message", "function_call", "function_call"]
    assert items[0]["content"] == [{"type": "reasoning_text", "text": "hmm"}]
    assert items[1]["content"][0]["logprobs"] == [{"token": "The ", "logprob": -0.5, "bytes": [84], "top_logprobs": []}]
    assert [(item["call_id"], item["name"], item["arguments"]) for item in items[2:]] == [
        ("call_1", "weather", '{"city": "Ulm"}'),
        ("call_2", "time", ""),
    ]
    assert [item["output_index"] for item in events if item["type"] == "response.output_item.added"] == [0, 1, 2, 3]
    assert events[-1]["response"]["output"] == items
    assert events[-1]["response"]["usage"]["output_tokens_details"] == {"reasoning_tokens": 2}


@pytest.mark.parametrize("background", [False, True])
def test_every_event_is_valid_for_the_sdk(background: bool) -> None:
    for item in convert(ALL_ITEMS, response(background=background)):
        parsed = SDK_EVENT.validate_python(item)
        assert parsed.type == item["type"]
        # Unlike the SDK's own parsing, this validation requires all fields.
        assert not type(parsed).model_validate(item).model_extra, item["type"]


def test_a_complete_response_is_valid_for_the_api_schema_and_the_sdk() -> None:
    parameters: dict[str, Any] = {
        "instructions": "Be brief.",
        "tools": [{"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}],
        "tool_choice": {"type": "function", "name": "weather"},
        "reasoning": {"effort": "low"},
        "text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "object"}}},
        "max_output_tokens": 9,
    }
    body = build_response(response(**parameters), ALL_ITEMS)
    assert body.keys() == ResponseView.model_fields.keys()
    ResponseView.model_validate(body)
    parsed = Response.model_validate(body)
    assert parsed.output_text == "The mill 🌊"
    assert parsed.instructions == "Be brief."
    assert parsed.tools[0].type == "function"


@pytest.mark.parametrize(
    ("ending", "code", "last", "status", "error"),
    [
        (EventType.INCOMPLETE, None, "incomplete", "incomplete", None),
        (EventType.FAILED, "engine_error", "failed", "failed", "server_error"),
        (EventType.FAILED, "invalid_request", "failed", "failed", "invalid_prompt"),
        (EventType.EXPIRED, "deadline_exceeded", "failed", "failed", "server_error"),
        (EventType.CANCELLED, "cancelled", "incomplete", "cancelled", None),
        (EventType.CANCELLED, "deadline_exceeded", "incomplete", "cancelled", "server_error"),
    ],
)
def test_the_last_event_reports_how_the_job_ended(
    ending: EventType, code: str | None, last: str, status: str, error: str | None
) -> None:
    failure = {"code": code, "message": "no"} if code else {}
    events = convert(log(Delta(0, "The "), ending=ending, **failure))
    body = events[-1]["response"]
    assert kinds(events)[-1] == last
    assert body["status"] == status
    assert (body["error"] or {}).get("code") == error
    assert body["output"][0]["status"] == "incomplete"
    assert (body["incomplete_details"] is not None) == (status == "incomplete")


def test_a_job_that_was_cancelled_before_it_started() -> None:
    ended = event(1, EventType.CANCELLED, {"usage": USAGE, "error": {"code": "cancelled", "message": "no"}})
    assert kinds(convert([ended], response(background=True))) == ["created", "queued", "incomplete"]


def test_a_job_resumed_by_another_worker_is_one_stream() -> None:
    events = log(Delta(0, "The "), Delta(0, "mill"))
    events.insert(2, event(3, EventType.STARTED, {"attempt": 2, "worker": "v"}))
    events[3:] = [item._replace(seq=number) for number, item in enumerate(events[3:], 4)]
    assert kinds(convert(events)) == kinds(convert(log(Delta(0, "The "), Delta(0, "mill"))))


def restarted(seq: int) -> list[Event]:
    """Build the events of a log from a restart with this sequence number on."""
    return [
        event(seq, EventType.RESTARTED, {"attempt": 2}),
        event(seq + 1, EventType.STARTED, {"attempt": 2, "worker": "v"}),
        delta_event(seq + 2, Delta(0, "A wheel")),
        event(seq + 3, EventType.COMPLETED, {"usage": USAGE, "timings": {}}),
    ]


def test_a_restart_ends_the_open_item_as_incomplete_and_starts_a_new_one() -> None:
    events = convert([*log(Delta(0, "The "))[:2], *restarted(3)])
    done = [item for item in events if item["type"] == "response.output_item.done"]
    assert [(item["output_index"], item["item"]["status"]) for item in done] == [(0, "incomplete"), (1, "completed")]
    assert [item["sequence_number"] for item in events] == list(range(len(events)))
    (output,) = events[-1]["response"]["output"]
    assert output == done[1]["item"]
    assert output["content"][0]["text"] == "A wheel"


def test_sequence_numbers_after_a_lost_log_exceed_all_earlier_ones() -> None:
    after = restarted(seq_before(2) + 1)
    live, late = convert([*log(Delta(0, "The "))[:2], *after]), convert(after)
    at = next(number for number, item in enumerate(late) if item["sequence_number"] > 1_000_000)
    # From the restart on, a reader that was connected and a later one receive the same events.
    assert live[-len(late) + at :] == late[at:]
    assert [item["sequence_number"] for item in live] == sorted({item["sequence_number"] for item in live})
    assert kinds(late[:at]) == ["created", "in_progress"]
    assert live[: len(late[:at])] == late[:at]


# Properties of all logs

DELTAS = st.lists(
    st.builds(
        Delta,
        st.just(0),
        st.text(max_size=3),
        reasoning=st.text(max_size=2),
        tool_calls=st.lists(
            st.builds(CallDelta, st.integers(0, 2), st.just("call_x"), st.just("f"), st.text(max_size=2)), max_size=2
        ).map(tuple),
    ),
    max_size=8,
)


async def stream(to: StoredResponse, batches: list[list[Event]], after: int | None) -> list[dict[str, Any]]:
    async def read() -> AsyncIterator[list[Event]]:
        for batch in batches:
            yield batch

    text = b"".join([frame async for frame in frames(to, read(), after)])
    events = []
    for frame in text.split(b"\n\n")[:-1]:
        name, data = frame.split(b"\n")
        events.append(orjson.loads(data.removeprefix(b"data: ")))
        assert name == b"event: " + events[-1]["type"].encode()
    return events


@example_count(50, long=3000)
@given(DELTAS, st.sampled_from([kind for kind in EventType if kind.terminal]), st.integers(1, 5), st.booleans())
async def test_a_stream_resumed_after_any_event_has_the_remaining_events(
    deltas: list[Delta], ending: EventType, size: int, restarts: bool
) -> None:
    failure = {} if ending in (EventType.COMPLETED, EventType.INCOMPLETE) else {"code": "engine_error", "message": "no"}
    events = log(*deltas, ending=ending, **failure)
    if restarts:
        events = [*events[:-1], *restarted(len(events))]
    to = response(background=True)
    complete = await stream(to, [events], None)
    assert [item["sequence_number"] for item in complete] == list(range(len(complete)))
    # From the log, in batches of any size, and from the archive in the row.
    batches = [events[start : start + size] for start in range(0, len(events), size)]
    archived = parse_archive((await archive(events)).decode())
    for number in range(len(complete)):
        assert await stream(to, batches, number) == complete[number + 1 :]
    assert await stream(to, [archived], None) == complete
    assert build_response(to, archived) == orjson.loads(orjson.dumps(complete[-1]["response"]))
    # The deltas of each item add up to its final content.
    for item in (entry for entry in complete if entry["type"] == "response.output_item.done"):
        own = [entry for entry in complete if entry.get("item_id") == item["item"]["id"]]
        deltas_text = "".join(entry["delta"] for entry in own if entry["type"].endswith(".delta"))
        arguments = item["item"].get("arguments")
        assert deltas_text == (item["item"]["content"][0]["text"] if arguments is None else arguments)


LOGPROB = encode_entry(Candidate("word ", -0.5), [Candidate(f"word{number}", -1.5) for number in range(20)])
TOOL = {
    "type": "function",
    "name": "f",
    "parameters": {"properties": {f"p{n}": {"type": "string"} for n in range(9000)}},
}


@pytest.mark.parametrize(
    ("delta", "parameters"),
    [
        (Delta(0, "word " * 64, logprobs=[LOGPROB] * 64), {}),
        (Delta(0, "word " * 5000), {}),
        (Delta(0, reasoning="word " * 5000), {}),
        (Delta(0, tool_calls=(CallDelta(0, "call_x", "f", "word " * 5000),)), {}),
        (Delta(0, "word "), {"instructions": "word " * 100_000}),
        (Delta(0, "word "), {"tools": [TOOL]}),
    ],
    ids=["logprobs", "text", "reasoning", "call", "instructions", "tools"],
)
async def test_large_events_are_sent_in_chunks(delta: Delta, parameters: dict[str, Any]) -> None:
    events = log(*[delta] * 20)

    async def read() -> AsyncIterator[list[Event]]:
        for one in events:
            yield [one]

    to = response(**parameters)
    chunks = [chunk async for chunk in frames(to, read())]
    assert max(map(len, chunks)) < 3 * CHUNK
    sent = [orjson.loads(frame.partition(b"\ndata: ")[2]) for frame in b"".join(chunks).split(b"\n\n")[:-1]]
    assert len(sent[-1]["response"]["output"]) == 1
    assert sent[-1]["response"] == orjson.loads(orjson.dumps(build_response(to, events), default=list))


def test_an_answer_that_the_provider_refused_is_incomplete_for_that_reason() -> None:
    events = convert(log(Delta(0, "The "), Delta(0, finish_reason="content_filter"), ending=EventType.INCOMPLETE))
    body = events[-1]["response"]
    assert (body["status"], body["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    ResponseView.model_validate(body)
