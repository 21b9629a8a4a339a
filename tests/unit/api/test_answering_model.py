"""All frames of a stream name the model that answers, also if another one takes over before there is output."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from api.anthropic import events as anthropic
from api.openai import chunks
from api.openai.completions import CHAT, TEXT, Dialect
from api.responses import events as responses
from api.responses.schemas import ResponseCreate
from shared.domain.decisions import Decisions, RouteDecision
from shared.domain.events import Delta, Event, EventType, delta_event, event
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.domain.response import ResponseFacts, StoredResponse
from tests.support.members import read

JOB = Job(
    id="job_" + "1" * 32,
    owner=Owner(1, 1),
    model="small",
    status=JobStatus.QUEUED,
    priority=3,
    request=GenerateRequest(messages=[Message(role="user", content="x")]),
    created_at=datetime.now(UTC),
    requested_model="auto",
    decisions=Decisions(route=RouteDecision(route="auto", rule="short", fallbacks=("large",))),
)
MOVED = replace(
    JOB, model="large", decisions=Decisions(route=RouteDecision(route="auto", rule="short", tried=("small",)))
)
LOG = [
    event(1, EventType.STARTED, {"attempt": 1, "worker": "s", "fingerprint": "fp_s", "model": "small"}),
    event(2, EventType.STARTED, {"attempt": 2, "worker": "l", "fingerprint": "fp_l", "model": "large"}),
    delta_event(3, Delta(0, "a", (1,), prompt_tokens=3), with_count=True),
    delta_event(4, Delta(0, "b", (2,), "stop"), with_count=True),
    event(5, EventType.COMPLETED, {"usage": {"prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 2}}),
]

Events = AsyncIterator[list[Event]]
Stream = Callable[[Job, Events], AsyncIterator[bytes]]


def openai(dialect: Dialect, **options: Any) -> Stream:
    return lambda job, events: chunks.frames(dialect, [job], [events], **options)


def response_stream(job: Job, events: Events, *, background: bool = False) -> AsyncIterator[bytes]:
    body = read(ResponseCreate, {"model": "auto", "input": "x", "background": background})
    return responses.frames(StoredResponse(job, ResponseFacts(body.echoed(), [], background=background)), events)


STREAMS = {
    "chat": openai(CHAT),
    "chat with usage": openai(CHAT, include_usage=True, continuous_usage=True),
    "completions": openai(TEXT, include_usage=True),
    "messages": lambda job, events: anthropic.frames(job, events, hides_thinking=False),
    "responses": response_stream,
    "background responses": lambda job, events: response_stream(job, events, background=True),
}
each_stream = pytest.mark.parametrize("stream", STREAMS.values(), ids=list(STREAMS))


async def frames_of(stream: Stream, job: Job, *batches: list[Event]) -> list[list[dict[str, Any]]]:
    """The frames that follow each batch; the first ones are those before any."""
    position = 0
    found: list[list[dict[str, Any]]] = [[] for _ in range(len(batches) + 1)]

    async def events() -> Events:
        nonlocal position
        for number, batch in enumerate(batches, 1):
            position = number
            yield batch

    async for sent in stream(job, events()):
        for frame in sent.split(b"\n\n"):
            data = frame.partition(b"data: ")[2]
            if data and data != b"[DONE]":
                found[position].append(orjson.loads(data))
    return found


def joined(batches: list[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    return [frame for batch in batches for frame in batch]


def models(frames: list[dict[str, Any]]) -> set[str]:
    """The models that frames name."""
    named = [
        frame.get("model") or (frame.get("response") or frame.get("message") or {}).get("model") for frame in frames
    ]
    return {model for model in named if model is not None}


@each_stream
async def test_the_first_frame_waits_until_it_is_known_which_model_answers(stream: Stream) -> None:
    frames = await frames_of(stream, JOB, *([item] for item in LOG))
    assert frames[:3] == [[], [], []], "neither model has generated anything"
    assert models(frames[3]) == {"large"}
    assert models(joined(frames)) == {"large"}


@each_stream
async def test_a_job_that_cannot_move_opens_its_stream_at_once(stream: Stream) -> None:
    """Also in a replay after it has moved. The frames are the same, at an earlier time."""
    held = joined(await frames_of(stream, JOB, *([item] for item in LOG)))
    for job in (MOVED, replace(MOVED, status=JobStatus.COMPLETED)):
        frames = await frames_of(stream, job, *([item] for item in LOG))
        assert joined(frames) == held
        plain = await frames_of(stream, replace(job, decisions=Decisions()), *([item] for item in LOG))
        assert [len(batch) for batch in frames] == [len(batch) for batch in plain]


@each_stream
async def test_a_keepalive_opens_the_stream_for_the_model_that_has_the_job(stream: Stream) -> None:
    frames = await frames_of(stream, JOB, LOG[:1], [], *([item] for item in LOG[1:]))
    assert frames[1] == []
    assert frames[2], "an idle stream gets an event"
    assert models(frames[2]) <= {"small"}
    assert models(joined(frames[3:])) == {"large"}


@pytest.mark.parametrize("stream", [response_stream, STREAMS["background responses"]])
async def test_events_of_responses_have_the_same_numbers_whether_they_waited_or_not(stream: Stream) -> None:
    kept = [
        frame for frame in joined(await frames_of(stream, JOB, LOG[:1], [], LOG[1:])) if frame["type"] != "keepalive"
    ]
    held = joined(await frames_of(stream, JOB, LOG))
    assert [(item["type"], item["sequence_number"]) for item in kept] == [
        (item["type"], item["sequence_number"]) for item in held
    ]
    assert [item["sequence_number"] for item in held] == list(range(len(held)))
