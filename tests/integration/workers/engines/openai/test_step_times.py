"""The largest answers and requests that are relayed keep every step of the worker's event loop short."""

from __future__ import annotations

import asyncio
import asyncio.events
import gc
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing
from typing import Any

import orjson
import pytest

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Message
from tests.support.faulty_upstream import Answer, FaultyUpstream, faulty_upstream
from tests.support.metrics import worker_metrics
from tests.support.step_limit import MAX_STEP_MS
from workers.engines.base import UpstreamError
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream.sse import MAX_EVENT_BYTES

STOP = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'


@pytest.fixture(scope="module")
def upstream() -> Iterator[FaultyUpstream]:
    """An upstream on a loop and in a thread of its own, whose steps are not measured."""
    started: list[FaultyUpstream] = []
    ready = threading.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        async with faulty_upstream() as upstream:
            started.append(upstream)
            ready.set()
            await stop.wait()

    stop = asyncio.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    assert ready.wait(10)
    yield started[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(10)
    loop.close()


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The CPU time in milliseconds of the steps of this thread's loop. Objects are frozen, as in a worker."""
    run, this = asyncio.events.Handle._run, threading.get_ident()
    taken: list[float] = []

    def measured(handle: Any) -> None:
        began = time.thread_time()
        run(handle)
        if threading.get_ident() == this:
            taken.append(1000 * (time.thread_time() - began))

    gc.collect()
    gc.freeze()
    monkeypatch.setattr(asyncio.events.Handle, "_run", measured)
    return taken


@pytest.fixture
async def engine(upstream: FaultyUpstream) -> AsyncIterator[OpenAIEngine]:
    options = OpenAIOptions(base_url=upstream.url, max_retries=0)
    engine = OpenAIEngine(OpenAIModel(name="up", engine="openai", model="m", options=options), worker_metrics("up"))
    await engine.start()
    yield engine
    await engine.stop()


async def assert_short(steps: list[float], run: Callable[[], Awaitable[None]]) -> None:
    """All steps of a run are short. The machine only ever adds to their time, so one run of three has to show it."""
    for _ in range(3):
        await asyncio.sleep(0)
        steps.clear()
        await run()
        if max(steps) <= MAX_STEP_MS:
            return
    assert max(steps) <= MAX_STEP_MS


def line(value: Any) -> bytes:
    return b"data: %b\n\n" % orjson.dumps(value)


def whole(text: str, entries: int = 0) -> dict[str, Any]:
    logprobs = {"content": [ENTRY] * entries} if entries else None
    return {
        "choices": [{"index": 0, "message": {"content": text}, "finish_reason": "stop", "logprobs": logprobs}],
    }


TOP = [{"token": f" w{rank}", "logprob": -1.5 - rank, "bytes": [32, 119, 49]} for rank in range(20)]
ENTRY = {"token": " hello", "logprob": -0.125, "bytes": [32, 104, 101, 108, 108, 111], "top_logprobs": TOP}
TEXT = 'hello "world", \n' * (MAX_EVENT_BYTES // 22)
PIECE = {"choices": [{"index": 0, "delta": {"content": " hello"}}]}
LIKELY = {"choices": [{"index": 0, "delta": {"content": " hello"}, "logprobs": {"content": [ENTRY]}}]}
COMMENTS = b": x\n" * 500_000 + line(whole(" hello"))


@pytest.mark.parametrize(
    ("body", "length"),
    [
        (line(whole(TEXT)), len(TEXT)),
        (orjson.dumps(whole(TEXT)), len(TEXT)),
        (line(whole("x", 800)), 1),
        (line(PIECE) * 30_000 + STOP, 180_000),
        (line(LIKELY) * 2_000 + STOP, 12_000),
        (COMMENTS, 6),
    ],
    ids=["a line of text", "a document", "many logprobs at once", "many chunks", "chunks with logprobs", "comments"],
)
async def test_large_answers(
    engine: OpenAIEngine, upstream: FaultyUpstream, steps: list[float], body: bytes, length: int
) -> None:
    request = GenerateRequest(messages=[Message(role="user", content="x")], logprobs=20)

    async def run() -> None:
        upstream.answers = [Answer(raw=(body,))]
        found = 0
        async with aclosing(engine.generate("r", request)) as items:
            async for item in items:
                found += len(item.text) if isinstance(item, Delta) else 0
        assert found == length

    await assert_short(steps, run)


@pytest.mark.parametrize(
    "body",
    [line(whole("x" * 8_000_000)), orjson.dumps(whole("x", 5_000)), b'data: {"x":[' + b"{}," * 340_000],
    ids=["8 MB of text", "6 MB of logprobs", "many values"],
)
async def test_too_large_answers_fail_with_a_reason(
    engine: OpenAIEngine, upstream: FaultyUpstream, steps: list[float], body: bytes
) -> None:
    request = GenerateRequest(messages=[Message(role="user", content="x")])

    async def run() -> None:
        upstream.answers = [Answer(raw=(body + b"\n\n",))]
        with pytest.raises(UpstreamError, match="too much in one event"):
            async for _ in engine.generate("r", request):
                pass

    await assert_short(steps, run)


async def test_large_requests(engine: OpenAIEngine, upstream: FaultyUpstream, steps: list[float]) -> None:
    messages = [
        Message(role="user" if number % 2 else "assistant", content="the mill, " * 37) for number in range(9999)
    ]

    async def run() -> None:
        async for _ in engine.generate("r", GenerateRequest(messages=messages)):
            pass
        assert len(upstream.seen[-1].body["messages"]) == 9999

    await assert_short(steps, run)
