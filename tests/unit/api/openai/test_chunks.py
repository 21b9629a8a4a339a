"""Conversion of events to OpenAI's chunks, for one job and for the jobs of a call with several prompts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from api.openai.chunks import DONE, frames
from api.openai.completions import CHAT, TEXT, Dialect
from api.streaming.errors import StreamAborted
from shared.domain.events import CallDelta, Delta, Event, EventType, delta_event, event
from shared.domain.job import Job, JobStatus
from shared.domain.logprobs import Candidate, encode_entry
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message, Sampling

USAGE = {"prompt_tokens": 3, "cached_tokens": 1, "completion_tokens": 2}


def job(number: int = 1, **request: Any) -> Job:
    generate = GenerateRequest(messages=[Message(role="user", content="x")], **request)
    return Job(
        id=f"job_{number:032d}",
        owner=Owner(1, 1),
        model="m",
        status=JobStatus.QUEUED,
        priority=3,
        request=generate,
        created_at=datetime.now(UTC),
    )


def log(
    *deltas: Delta, counted: bool = False, end: EventType = EventType.COMPLETED, fingerprint: str | None = None
) -> list[Event]:
    payload: dict[str, Any] = {"usage": USAGE}
    if end is EventType.FAILED:
        payload["error"] = {"message": "no", "code": "engine_error"}
    events = [delta_event(seq, delta, with_count=counted) for seq, delta in enumerate(deltas, 2)]
    started = {"attempt": 1, "worker": "w"} | ({"fingerprint": fingerprint} if fingerprint else {})
    return [event(1, EventType.STARTED, started), *events, event(9, end, payload)]


async def batches(events: Sequence[Event], gate: asyncio.Event | None = None) -> AsyncIterator[list[Event]]:
    """Yield batches of one event, once the gate is open."""
    if gate is not None:
        await gate.wait()
    for item in events:
        yield [item]


async def chunks_of(
    dialect: Dialect, jobs: list[Job], logs: list[list[Event]], *, unfinished: list[Job] | None = None, **options: Any
) -> list[Any]:
    """Return the chunks, and `[DONE]` as a string. The jobs of a `StreamAborted` are added to `unfinished`."""
    sent = b""
    try:
        async for frame in frames(dialect, jobs, [batches(events) for events in logs], **options):
            sent += frame
    except StreamAborted as aborted:
        if unfinished is None:
            raise
        unfinished.extend(aborted.unfinished)
    return [
        "[DONE]" if frame + b"\n\n" == DONE else orjson.loads(frame.removeprefix(b"data: "))
        for frame in sent.split(b"\n\n")[:-1]
    ]


async def test_chat_chunks() -> None:
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


async def test_reasoning_and_tool_calls_have_their_own_deltas() -> None:
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
    chunks = await chunks_of(CHAT, [job()], [log(delta, counted=True)], include_usage=True, continuous_usage=True)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]] == [
        {"tool_calls": [{"index": 0, "function": {"arguments": "}"}}], "content": "and"},
        {"tool_calls": [{"index": 1, "id": "d", "type": "function", "function": {"name": "g", "arguments": "{}"}}]},
        {},
    ]
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks[:-2]] == [0, 2, 2, 2]


async def test_usage_is_sent_at_the_end_or_with_every_chunk() -> None:
    deltas = (Delta(0, "a", (1, 2), prompt_tokens=3), Delta(0, "b", (3,), "stop"))
    chunks = await chunks_of(CHAT, [job()], [log(*deltas, fingerprint="fp_1")], include_usage=True)
    assert [chunk["usage"] for chunk in chunks[:-2]] == [None] * 3
    assert (chunks[-2]["choices"], chunks[-2]["usage"]["total_tokens"]) == ([], 5)
    assert [chunk["system_fingerprint"] for chunk in chunks[:-1] if "system_fingerprint" in chunk] == ["fp_1"]
    chunks = await chunks_of(CHAT, [job()], [log(*deltas, counted=True)], include_usage=True, continuous_usage=True)
    usages = [chunk["usage"] for chunk in chunks[:-2]]
    assert [(usage["prompt_tokens"], usage["completion_tokens"]) for usage in usages] == [(3, 0), (3, 2), (3, 3)]


async def test_choices_of_several_prompts_are_sent_as_they_arrive_with_their_own_index() -> None:
    jobs = [job(number, sampling=Sampling(n=2)) for number in (1, 2)]
    logs = [
        log(Delta(0, f"{name}0", (1,), "stop"), Delta(1, f"{name}1", (2,), "length"), end=EventType.INCOMPLETE)
        for name in "ab"
    ]
    gate = asyncio.Event()
    streams = [batches(logs[0], gate), batches(logs[1])]
    sent: list[Any] = []
    async for frame in frames(TEXT, jobs, streams, include_usage=True):
        sent += [part for part in frame.split(b"\n\n") if part]
        if len(sent) == 2:
            gate.set()  # the first prompt did not delay the second
    chunks = [orjson.loads(part.removeprefix(b"data: ")) for part in sent[:-1]]
    assert [chunk["choices"][0]["index"] for chunk in chunks[:-1]] == [2, 3, 0, 1]
    assert {chunk["id"] for chunk in chunks} == {"cmpl-" + "1".zfill(32)}
    assert chunks[-1]["usage"]["completion_tokens"] == 4
    assert sent[-1] + b"\n\n" == DONE


async def test_a_failed_job_ends_the_stream() -> None:
    logs = [log(Delta(0, "a", (1,), "stop")), log(end=EventType.FAILED)]
    chunks = await chunks_of(TEXT, [job(1), job(2)], logs)
    assert chunks[-1]["error"]["code"] == "engine_error"
    assert "[DONE]" not in chunks


async def test_a_failed_job_reports_the_unfinished_jobs() -> None:
    jobs = [job(1), job(2)]
    streams = [batches(log(), asyncio.Event()), batches(log(end=EventType.FAILED))]
    with pytest.raises(StreamAborted) as aborted:
        async for _ in frames(TEXT, jobs, streams):
            pass
    assert aborted.value.unfinished == jobs[:1]


async def test_an_error_of_a_stream_is_raised() -> None:
    async def broken() -> AsyncIterator[list[Event]]:
        yield log()[:1]
        raise ConnectionError("unavailable")

    with pytest.raises(ConnectionError):
        async for _ in frames(TEXT, [job(1), job(2)], [batches(log()), broken()]):
            pass


async def test_a_restart_after_text_ends_the_stream_with_an_error() -> None:
    started = log(Delta(0, "a", (1,)))[:2]
    events = [*started, event(3, EventType.RESTARTED, {"attempt": 2}), *log(Delta(0, "b", (1,), "stop"))]
    unfinished: list[Job] = []
    restarted = job()
    chunks = await chunks_of(CHAT, [restarted], [events], unfinished=unfinished)
    assert chunks[-1]["error"]["code"] == "worker_lost"
    assert unfinished == [restarted], "the job is still running"


async def test_a_restart_before_text_sends_the_opening_chunk_once() -> None:
    events = [log()[0], event(2, EventType.RESTARTED, {"attempt": 2}), *log(Delta(0, "b", (1,), "stop"))]
    chunks = await chunks_of(CHAT, [job()], [events])
    assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
        {"role": "assistant", "content": ""},
        {"content": "b"},
    ]


@pytest.mark.parametrize("form", ["compact", "objects"])
async def test_text_offsets_of_logprobs_continue_across_chunks(form: str) -> None:
    def entry(token: str, logprob: float | None, *others: str) -> bytes:
        if form == "compact":
            return encode_entry(Candidate(token, logprob), [Candidate(item, -2.0) for item in (token, *others)])
        top = [{"token": item, "logprob": -2.0, "bytes": None} for item in (token, *others)]
        return orjson.dumps({"token": token, "logprob": logprob, "bytes": None, "top": top})

    deltas = (
        Delta(0, "the", logprobs=(entry("the", None),)),
        Delta(0, " mill", (1,), "stop", logprobs=(entry(" mi", -1.0, "x", "y"), entry("ll", -3.0))),
    )
    chunks = await chunks_of(TEXT, [job(logprobs=1)], [log(*deltas)])
    assert chunks[0]["choices"][0]["logprobs"] == {
        "text_offset": [0],
        "token_logprobs": [None],
        "tokens": ["the"],
        "top_logprobs": [None],
    }
    assert chunks[1]["choices"][0]["logprobs"] == {
        "text_offset": [3, 6],
        "token_logprobs": [-1.0, -3.0],
        "tokens": [" mi", "ll"],
        "top_logprobs": [{" mi": -1.0, "x": -2.0}, {"ll": -3.0}],
    }
