"""Every API renders log probabilities of this release and of the previous one identically."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import orjson

from api.jobs.native_stream import native_data
from api.jobs.schemas import summary_view, with_output
from api.openai.chunks import frames
from api.openai.completions import CHAT, TEXT, Dialect, completion_body
from api.responses.events import ResponseEvents
from api.responses.schemas import ResponseCreate
from shared.domain.events import Event, EventType, event
from shared.domain.job import Choice, Job, JobStatus
from shared.domain.logprobs import candidate, encode_entry, encode_prompt_entry
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest, Message
from shared.domain.response import ResponseFacts, StoredResponse
from shared.runtime.chunked_json import dump_pieces


def alternative(token: str, logprob: float | None, data: bytes) -> dict[str, Any]:
    return {"token": token, "logprob": logprob, "bytes": list(data)}


# The log probabilities of one answer, as the previous release and as this one stores them.
TOP = [("The", -0.25, b"The"), ("\ufffd", -1.5, b"\xf0\x9f"), (" Mühle", -2.75, " Mühle".encode())]
OLD = [
    {**alternative("first", None, b"first"), "top": []},
    {**alternative(*TOP[0]), "top": [alternative(*item) for item in TOP]},
    {**alternative(*TOP[1]), "top": [alternative(*item) for item in TOP]},
    {**alternative(" rare", -9.5, b" rare"), "top": [alternative(*item) for item in TOP]},
]
CANDIDATES = [candidate(*item) for item in TOP]
NEW = [
    orjson.loads(entry)
    for entry in (
        encode_entry(candidate("first", None, b"first"), ()),
        encode_entry(CANDIDATES[0], CANDIDATES),
        encode_entry(CANDIDATES[1], CANDIDATES),
        encode_entry(candidate(" rare", -9.5, b" rare"), CANDIDATES),
    )
]
OLD_PROMPT = [None, {"7": {"logprob": -0.5, "rank": 1, "decoded_token": "a"}}]
NEW_PROMPT = [None, orjson.loads(encode_prompt_entry([(7, -0.5, 1, "a")]))]


def job(logprobs: list[Any], prompt_logprobs: list[Any]) -> Job:
    request = GenerateRequest(messages=[Message(role="user", content="x")], logprobs=2, prompt_logprobs=1)
    created = datetime(2026, 1, 1, tzinfo=UTC)
    choice = Choice.of(
        {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    )
    return Job(
        id=f"job_{1:032d}",
        owner=Owner(1, 1),
        model="m",
        status=JobStatus.COMPLETED,
        priority=3,
        request=request,
        created_at=created,
        output=(choice,),
    )


def log(logprobs: list[Any], prompt_logprobs: list[Any]) -> list[Event]:
    delta = {"index": 0, "text": "x", "finish_reason": "stop", "logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
    usage = {"prompt_tokens": 1, "completion_tokens": 4, "cached_tokens": 0}
    return [
        event(1, EventType.STARTED, {"attempt": 1, "worker": "w"}),
        event(2, EventType.DELTA, delta),
        event(3, EventType.COMPLETED, {"usage": usage, "timings": {}}),
    ]


OLD_JOB, NEW_JOB = job(OLD, OLD_PROMPT), job(NEW, NEW_PROMPT)
OLD_LOG, NEW_LOG = log(OLD, OLD_PROMPT), log(NEW, NEW_PROMPT)


def test_the_native_views() -> None:
    def view(job: Job) -> bytes:
        return b"".join(dump_pieces(with_output(summary_view(job), job.output).build()))

    old = view(OLD_JOB)
    assert view(NEW_JOB) == old
    assert orjson.loads(old)["output"][0]["logprobs"] == OLD
    assert orjson.loads(old)["output"][0]["prompt_logprobs"] == OLD_PROMPT


def test_the_native_stream() -> None:
    assert [native_data(item) for item in OLD_LOG] == [item.data for item in OLD_LOG]
    assert [native_data(item) for item in NEW_LOG] == [item.data for item in OLD_LOG]


async def test_openai() -> None:
    async def stream(dialect: Dialect, job: Job, log: list[Event]) -> bytes:
        async def batches() -> AsyncIterator[list[Event]]:
            yield log

        return b"".join([frame async for frame in frames(dialect, [job], [batches()])])

    for dialect in (CHAT, TEXT):
        old = completion_body(dialect, [OLD_JOB])
        assert completion_body(dialect, [NEW_JOB]) == old
        assert old["choices"][0]["logprobs"]
        assert await stream(dialect, NEW_JOB, NEW_LOG) == await stream(dialect, OLD_JOB, OLD_LOG)
    chat = completion_body(CHAT, [NEW_JOB])["choices"][0]["logprobs"]["content"]
    shown = ("token", "logprob", "bytes")
    assert chat == [{**{name: entry[name] for name in shown}, "top_logprobs": entry["top"][:2]} for entry in OLD]


def test_responses() -> None:
    def render(log: list[Event]) -> bytes:
        body = ResponseCreate.model_validate({"model": "m", "input": "x"})
        stored = StoredResponse(replace(OLD_JOB, status=JobStatus.QUEUED), ResponseFacts(body.echoed(), []))
        stream = ResponseEvents(stored)
        return orjson.dumps(
            [*stream.opening(), *(item for entry in log for item in stream.convert(entry))], default=list
        )

    assert render(NEW_LOG) == render(OLD_LOG)
    assert b'"top_logprobs":[{"token":"The"' in render(NEW_LOG)
