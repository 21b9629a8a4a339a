"""Conversion of events to Anthropic's stream, for events that the simulated engine does not generate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson

from api.anthropic.events import frames
from api.streaming.errors import StreamAborted
from shared.domain.events import CallDelta, Delta, Event, EventType, delta_event, event
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest

JOB = Job(
    id="job_1",
    owner=Owner(1, 1),
    model="m",
    status=JobStatus.IN_PROGRESS,
    priority=3,
    request=GenerateRequest(),
    created_at=datetime.now(UTC),
)
STARTED = event(1, EventType.STARTED, {"attempt": 1, "worker": "w"})
DONE = event(9, EventType.COMPLETED, {"usage": {"prompt_tokens": 7, "cached_tokens": 3, "completion_tokens": 5}})


async def stream(*events: Event, unfinished: list[Job] | None = None) -> list[dict[str, Any]]:
    """Return the frames. The jobs of a `StreamAborted` are added to `unfinished`."""

    async def batches() -> AsyncIterator[list[Event]]:
        for item in events:
            yield [item]

    sent = b""
    try:
        async for chunk in frames(JOB, batches(), hides_thinking=False):
            sent += chunk
    except StreamAborted as aborted:
        if unfinished is None:
            raise
        unfinished.extend(aborted.unfinished)
    return [orjson.loads(frame.partition(b"data: ")[2]) for frame in sent.split(b"\n\n") if frame]


def blocks(frames: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return type and content of each block. Checks that blocks are opened and closed in turn."""
    found: list[tuple[str, str]] = []
    is_open = False
    for frame in frames:
        if frame["type"] == "content_block_start":
            assert not is_open
            assert frame["index"] == len(found)
            is_open = True
            found.append((frame["content_block"]["type"], ""))
        elif frame["type"] == "content_block_delta":
            assert is_open
            assert frame["index"] == len(found) - 1
            delta = frame["delta"]
            if delta["type"] != "signature_delta":
                kind, prior = found[-1]
                found[-1] = (kind, prior + next(value for name, value in delta.items() if name != "type"))
        elif frame["type"] == "content_block_stop":
            assert is_open
            assert frame["index"] == len(found) - 1
            is_open = False
    assert not is_open
    return found


async def test_the_parts_of_one_delta_become_consecutive_blocks() -> None:
    calls = (CallDelta(0, "a", "level", "{}"), CallDelta(1, "b", "gate", '{"x"'))
    sent = await stream(
        STARTED,
        delta_event(2, Delta(0, "I look.", (1,), reasoning="Hm", tool_calls=calls)),
        delta_event(3, Delta(0, "", (2,), "tool_calls", tool_calls=(CallDelta(1, arguments=": 1}"),))),
        DONE,
    )
    assert blocks(sent) == [("thinking", "Hm"), ("text", "I look."), ("tool_use", "{}"), ("tool_use", '{"x": 1}')]
    assert sent[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert sent[-2]["usage"]["input_tokens"] == 4
    assert sent[-2]["usage"]["cache_read_input_tokens"] == 3


async def test_text_between_the_arguments_of_a_call_is_sent_after_the_call() -> None:
    sent = await stream(
        STARTED,
        delta_event(2, Delta(0, "", (1,), tool_calls=(CallDelta(0, "a", "level", '{"x"'),))),
        delta_event(3, Delta(0, "\n", (2,), tool_calls=(CallDelta(0, arguments=": 1}"),))),
        delta_event(4, Delta(0, " done", (3,), "stop")),
        DONE,
    )
    assert blocks(sent) == [("tool_use", '{"x": 1}'), ("text", "\n done")]
    assert sent[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_call_truncated_by_a_stop_sequence_does_not_report_tool_use() -> None:
    sent = await stream(
        STARTED,
        delta_event(2, Delta(0, "", (1,), "stop", tool_calls=(CallDelta(0, "a", "level", '{"x"'),), stop_reason="END")),
        DONE,
    )
    assert sent[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


async def test_an_empty_output_is_an_empty_text_block() -> None:
    sent = await stream(STARTED, delta_event(2, Delta(0, "", (1,), "stop", stop_reason=2)), DONE)
    assert [frame["type"] for frame in sent] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert blocks(sent) == [("text", "")]
    assert sent[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


async def test_a_restart_after_text_ends_the_stream_with_an_error() -> None:
    unfinished: list[Job] = []
    sent = await stream(
        STARTED,
        delta_event(2, Delta(0, "a", (1,))),
        event(1_000_001, EventType.RESTARTED, {"attempt": 2}),
        event(1_000_002, EventType.STARTED, {"attempt": 2, "worker": "v"}),
        delta_event(1_000_003, Delta(0, "b", (1,), "stop")),
        unfinished=unfinished,
    )
    assert unfinished == [JOB]
    assert [frame["type"] for frame in sent][-2:] == ["content_block_delta", "error"]
    assert sent[-1]["error"]["type"] == "api_error"
    assert "restarted" in sent[-1]["error"]["message"]


async def test_a_restart_before_text_sends_message_start_once() -> None:
    sent = await stream(
        STARTED,
        event(2, EventType.RESTARTED, {"attempt": 2}),
        event(3, EventType.STARTED, {"attempt": 2, "worker": "v"}),
        delta_event(4, Delta(0, "b", (1,), "stop")),
        DONE,
    )
    assert blocks(sent) == [("text", "b")]
    assert [frame["type"] for frame in sent].count("message_start") == 1


async def test_an_answer_that_the_provider_refused() -> None:
    sent = await stream(STARTED, delta_event(2, Delta(0, "I", finish_reason="content_filter")), DONE)
    assert [frame["delta"]["stop_reason"] for frame in sent if frame["type"] == "message_delta"] == ["refusal"]
