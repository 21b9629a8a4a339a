"""Events become OpenAI's chunks: of one job, and of several that are the prompts of one call."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from api.openai.chunks import DONE, frames
from api.openai.completions import CHAT, TEXT, Dialect
from api.streaming.errors import CutShort
from shared.domain.events import CallDelta, Delta, Event, EventType, delta_event, event
from shared.domain.job import Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling

USAGE = {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2}


def job(number: int = 1, **request: Any) -> Job:
    asked = GenerateRequest(messages=[Message(role="user", content="x")], **request)
    return Job(f"job_{number:032d}", Owner(1, 1), "m", JobStatus.QUEUED, 3, asked, datetime.now(UTC))


def log(
    *deltas: Delta, counted: bool = False, end: EventType = EventType.COMPLETED, fingerprint: str | None = None
) -> list[Event]:
    told: dict[str, Any] = {"usage": USAGE}
    if end is EventType.FAILED:
        told["error"] = {"message": "no", "code": "engine_error"}
    made = [delta_event(seq, delta, with_count=counted) for seq, delta in enumerate(deltas, 2)]
    started = {"attempt": 1, "worker": "w"} | ({"fingerprint": fingerprint} if fingerprint else {})
    return [event(1, EventType.STARTED, started), *made, event(9, end, told)]


async def batches(events: Sequence[Event], gate: asyncio.Event | None = None) -> AsyncIterator[list[Event]]:
    """One event a batch; the first waits for the gate."""
    if gate is not None:
        await gate.wait()
    for item in events:
        yield [item]


async def chunks_of(
    face: Dialect, jobs: list[Job], logs: list[list[Event]], *, left: list[Job] | None = None, **options: Any
) -> list[Any]:
    """What was sent: chunks, and `[DONE]` as a text; `left` gets the jobs that the stream left running."""
    sent = b""
    try:
        async for frame in frames(face, jobs, [batches(events) for events in logs], **options):
            sent += frame
    except CutShort as cut:
        if left is None:
            raise
        left.extend(cut.left)
    return [
        "[DONE]" if frame + b"\n\n" == DONE else orjson.loads(frame.removeprefix(b"data: "))
        for frame in sent.split(b"\n\n")[:-1]
    ]


async def test_a_chat() -> None:
    first, text, last, done = await chunks_of(
        CHAT, [job()], [log(Delta(0, "Müh", (1,)), Delta(0, "le", (2,), "stop"), fingerprint="fp_1")]
    )
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert text["choices"] == [{"index": 0, "delta": {"content": "Müh"}, "logprobs": None, "finish_reason": None}]
    assert "system_fingerprint" not in text
    assert last["choices"][0] == {
        "index": 0,
        "delta": {"content": "le"},
        "logprobs": None,
        "finish_reason": "stop",
        "stop_reason": None,
    }
    assert (last["system_fingerprint"], last["object"], done) == ("fp_1", "chat.completion.chunk", "[DONE]")
    assert first["id"] == text["id"] == last["id"] == "chatcmpl-" + "1".zfill(32)


async def test_what_is_more_than_text() -> None:
    deltas = (
        Delta(0, reasoning="so", token_ids=(1,)),
        Delta(0, tool_calls=(CallDelta(0, "c", "f", '{"a"'),), token_ids=(2,)),
        Delta(0, tool_calls=(CallDelta(0, arguments=":1}"),), token_ids=(3,), finish_reason="tool_calls"),
    )
    chunks = await chunks_of(CHAT, [job()], [log(*deltas)])
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:-1]] == [
        {"reasoning": "so"},
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a"'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": ":1}"}}]},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[1:-1]] == [None, None, None, "tool_calls"]


async def test_a_chunk_has_one_fragment_of_a_call() -> None:
    calls = (CallDelta(0, arguments="}"), CallDelta(1, "d", "g", "{}"))
    delta = Delta(0, "and", (1, 2), "tool_calls", tool_calls=calls, prompt_tokens=3)
    chunks = await chunks_of(CHAT, [job()], [log(delta, counted=True)], usage_in_the_end=True, usage_always=True)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]] == [
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}], "content": "and"},
        {"tool_calls": [{"index": 1, "id": "d", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {},
    ]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:-2]] == [0, 2, 2, 2]


async def test_usage_in_the_end_and_with_every_chunk() -> None:
    deltas = (Delta(0, "a", (1, 2), prompt_tokens=3), Delta(0, "b", (3,), "stop"))
    chunks = await chunks_of(CHAT, [job()], [log(*deltas, fingerprint="fp_1")], usage_in_the_end=True)
    assert [chunk["usage"] for chunk in chunks[:-2]] == [None] * 3
    assert (chunks[-2]["choices"], chunks[-2]["usage"]["total_tokens"]) == ([], 5)
    assert [chunk["system_fingerprint"] for chunk in chunks[:-1] if "system_fingerprint" in chunk] == ["fp_1"]
    chunks = await chunks_of(CHAT, [job()], [log(*deltas, counted=True)], usage_in_the_end=True, usage_always=True)
    told = [chunk["usage"] for chunk in chunks[:-2]]
    assert [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in told] == [(3, 0), (3, 2), (3, 3)]


async def test_several_prompts_are_numbered_in_their_order_as_they_come() -> None:
    jobs = [job(number, sampling=Sampling(n=2)) for number in (1, 2)]
    logs = [
        log(Delta(0, f"{name}0", (1,), "stop"), Delta(1, f"{name}1", (2,), "length"), end=EventType.INCOMPLETE)
        for name in "ab"
    ]
    gate = asyncio.Event()
    streams = [batches(logs[0], gate), batches(logs[1])]
    sent: list[Any] = []
    async for frame in frames(TEXT, jobs, streams, usage_in_the_end=True):
        sent += [one for one in frame.split(b"\n\n") if one]
        if len(sent) == 2:
            gate.set()  # the second prompt was not held up by the first
    chunks = [orjson.loads(one.removeprefix(b"data: ")) for one in sent[:-1]]
    assert [chunk["choices"][0]["index"] for chunk in chunks[:-1]] == [2, 3, 0, 1]
    assert {chunk["id"] for chunk in chunks} == {"cmpl-" + "1".zfill(32)}
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert sent[-1] + b"\n\n" == DONE


async def test_one_that_fails_ends_the_call() -> None:
    logs = [log(Delta(0, "a", (1,), "stop")), log(end=EventType.FAILED)]
    told = await chunks_of(TEXT, [job(1), job(2)], logs)
    assert told[-1]["error"]["code"] == "engine_error"
    assert "[DONE]" not in told


async def test_one_that_fails_leaves_those_that_run() -> None:
    jobs = [job(1), job(2)]
    streams = [batches(log(), asyncio.Event()), batches(log(end=EventType.FAILED))]
    with pytest.raises(CutShort) as cut:
        async for _ in frames(TEXT, jobs, streams):
            pass
    assert cut.value.left == jobs[:1]


async def test_a_stream_that_breaks_is_told_of() -> None:
    async def breaks() -> AsyncIterator[list[Event]]:
        yield log()[:1]
        raise ConnectionError("away")

    with pytest.raises(ConnectionError):
        async for _ in frames(TEXT, [job(1), job(2)], [batches(log()), breaks()]):
            pass


async def test_a_restart_after_text_cannot_be_taken_back() -> None:
    started = log(Delta(0, "a", (1,)))[:2]
    events = [*started, event(3, EventType.RESTARTED, {"attempt": 2}), *log(Delta(0, "b", (1,), "stop"))]
    left: list[Job] = []
    asked = job()
    told = await chunks_of(CHAT, [asked], [events], left=left)
    assert told[-1]["error"]["code"] == "worker_lost"
    assert left == [asked], "it runs on for nobody"


async def test_a_restart_before_text_opens_once() -> None:
    events = [log()[0], event(2, EventType.RESTARTED, {"attempt": 2}), *log(Delta(0, "b", (1,), "stop"))]
    told = await chunks_of(CHAT, [job()], [events])
    assert [chunk["choices"][0]["delta"] for chunk in told[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "b"},
    ]


async def test_logprobs_of_completions_go_on_from_chunk_to_chunk() -> None:
    def entry(token: str, logprob: float | None, *others: str) -> dict[str, Any]:
        top = [{"token": one, "logprob": -2.0, "bytes": None} for one in (token, *others)]
        return {"token": token, "logprob": logprob, "bytes": None, "top": top}

    deltas = (
        Delta(0, "the", logprobs=(entry("the", None),)),
        Delta(0, " mill", (1,), "stop", logprobs=(entry(" mi", -1.0, "x", "y"), entry("ll", -3.0))),
    )
    told = await chunks_of(TEXT, [job(logprobs=1)], [log(*deltas)])
    assert told[0]["choices"][0]["logprobs"] == {
        "text_offset": [0],
        "token_logprobs": [None],
        "tokens": ["the"],
        "top_logprobs": [None],
    }
    assert told[1]["choices"][0]["logprobs"] == {
        "text_offset": [3, 6],
        "token_logprobs": [-1.0, -3.0],
        "tokens": [" mi", "ll"],
        "top_logprobs": [{" mi": -1.0, "x": -2.0}, {"ll": -3.0}],
    }
