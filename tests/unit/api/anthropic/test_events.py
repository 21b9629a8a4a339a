"""What a job's events become on Anthropic's face, where no simulated engine would make them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import orjson

from api.anthropic.events import frames
from api.streaming.errors import CutShort
from shared.domain.events import CallDelta, Delta, Event, EventType, delta_event, event
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest

JOB = Job("job_1", Owner(1, 1), "m", JobStatus.IN_PROGRESS, 3, GenerateRequest(), datetime.now(UTC))
STARTED = event(1, EventType.STARTED, {"attempt": 1, "worker": "w"})
DONE = event(9, EventType.COMPLETED, {"usage": {"prompt_tokens": 7, "cached_tokens": 3, "completion_tokens": 5}})


async def told(*events: Event, left: list[Job] | None = None) -> list[dict[str, Any]]:
    """What was sent; `left` gets the jobs that the stream left running."""

    async def batches() -> AsyncIterator[list[Event]]:
        for item in events:
            yield [item]

    sent = b""
    try:
        async for chunk in frames(JOB, batches(), hides_thinking=False):
            sent += chunk
    except CutShort as cut:
        if left is None:
            raise
        left.extend(cut.left)
    return [orjson.loads(frame.partition(b"data: ")[2]) for frame in sent.split(b"\n\n") if frame]


def blocks(frames_told: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """(kind, what it grew to) of each block; each is opened and closed once, one after the other."""
    made: list[tuple[str, str]] = []
    is_open = False
    for frame in frames_told:
        if frame["type"] == "content_block_start":
            assert not is_open
            assert frame["index"] == len(made)
            is_open = True
            made.append((frame["content_block"]["type"], ""))
        elif frame["type"] == "content_block_delta":
            assert is_open
            assert frame["index"] == len(made) - 1
            delta = frame["delta"]
            if delta["type"] != "signature_delta":
                kind, prior = made[-1]
                made[-1] = (kind, prior + next(value for name, value in delta.items() if name != "type"))
        elif frame["type"] == "content_block_stop":
            assert is_open
            assert frame["index"] == len(made) - 1
            is_open = False
    assert not is_open
    return made


async def test_blocks_of_one_delta_come_one_after_the_other() -> None:
    calls = (CallDelta(0, "a", "level", "{}"), CallDelta(1, "b", "gate", '{"x"'))
    made = await told(
        STARTED,
        delta_event(2, Delta(0, "I look.", (1,), reasoning="Hm", tool_calls=calls)),
        delta_event(3, Delta(0, "", (2,), "tool_calls", tool_calls=(CallDelta(1, arguments=": 1}"),))),
        DONE,
    )
    assert blocks(made) == [("thinking", "Hm"), ("text", "I look."), ("tool_use", "{}"), ("tool_use", '{"x": 1}')]
    assert made[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert made[-2]["usage"]["input_tokens"] == 4
    assert made[-2]["usage"]["cache_read_input_tokens"] == 3


async def test_text_amid_a_calls_arguments_comes_after_them() -> None:
    made = await told(
        STARTED,
        delta_event(2, Delta(0, "", (1,), tool_calls=(CallDelta(0, "a", "level", '{"x"'),))),
        delta_event(3, Delta(0, "\n", (2,), tool_calls=(CallDelta(0, arguments=": 1}"),))),
        delta_event(4, Delta(0, " done", (3,), "stop")),
        DONE,
    )
    assert blocks(made) == [("tool_use", '{"x": 1}'), ("text", "\n done")]
    assert made[-2]["delta"]["stop_reason"] == "tool_use"


async def test_a_call_that_a_stop_sequence_cuts_must_not_run() -> None:
    made = await told(
        STARTED,
        delta_event(2, Delta(0, "", (1,), "stop", tool_calls=(CallDelta(0, "a", "level", '{"x"'),), stop_reason="END")),
        DONE,
    )
    assert made[-2]["delta"] == {"stop_reason": "stop_sequence", "stop_sequence": "END"}


async def test_an_empty_answer_is_an_empty_text() -> None:
    made = await told(STARTED, delta_event(2, Delta(0, "", (1,), "stop", stop_reason=2)), DONE)
    assert [frame["type"] for frame in made] == [
        "message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert blocks(made) == [("text", "")]
    assert made[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}


async def test_a_job_that_starts_again_after_text_ends_its_stream_with_an_error() -> None:
    left: list[Job] = []
    made = await told(
        STARTED,
        delta_event(2, Delta(0, "a", (1,))),
        event(1_000_001, EventType.RESTARTED, {"attempt": 2}),
        event(1_000_002, EventType.STARTED, {"attempt": 2, "worker": "v"}),
        delta_event(1_000_003, Delta(0, "b", (1,), "stop")),
        left=left,
    )
    assert left == [JOB]
    assert [frame["type"] for frame in made][-2:] == ["content_block_delta", "error"]
    assert made[-1]["error"]["type"] == "api_error"
    assert "started again" in made[-1]["error"]["message"]


async def test_a_job_that_starts_again_before_text_is_told_once() -> None:
    made = await told(
        STARTED,
        event(2, EventType.RESTARTED, {"attempt": 2}),
        event(3, EventType.STARTED, {"attempt": 2, "worker": "v"}),
        delta_event(4, Delta(0, "b", (1,), "stop")),
        DONE,
    )
    assert blocks(made) == [("text", "b")]
    assert [frame["type"] for frame in made].count("message_start") == 1
