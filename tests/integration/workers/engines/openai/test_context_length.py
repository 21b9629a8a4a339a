"""The context length that servers report: how it is read, kept, and reported to the API.

The pages are those of vLLM 0.11 (`/v1/models`, also of an adapter), SGLang 0.5 (`/v1/models`) and TGI 3.2 (`/info`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import aiohttp
import pytest
from redis.asyncio import Redis

from api.context import reported_lengths
from api.context.reported_lengths import ReportedContexts
from api.context.window import ContextWindow
from shared.config.models.loader import Registry
from shared.config.models.openai import OpenAIModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message, Sampling
from shared.redis.context_lengths import ContextLengths
from tests.support.faulty_upstream import FaultyUpstream, faulty_upstream
from tests.support.metrics import worker_metrics
from tests.support.waiting import eventually
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream import context_length
from workers.execution.current_engine import CurrentEngine
from workers.supervision.context_report import ContextReport

CARD = {"id": "theirs", "object": "model", "owned_by": "vllm", "root": "/models/theirs", "parent": None}
VLLM = {"object": "list", "data": [{**CARD, "max_model_len": 4096}]}
ADAPTER = {"object": "list", "data": [{**CARD, "id": "base", "max_model_len": 2048}, {**CARD, "parent": "base"}]}
SGLANG = {"object": "list", "data": [{"id": "theirs", "owned_by": "sglang", "root": "theirs", "max_model_len": 40960}]}
TGI = {"model_id": "mistralai/Ministral-8B", "max_input_tokens": 32767, "max_total_tokens": 32768, "version": "3.2.1"}
REQUEST = GenerateRequest(messages=[Message(role="user", content="Hello")], sampling=Sampling(max_tokens=3))


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    async with faulty_upstream() as upstream:
        yield upstream


def spec(*urls: str, preset: str = "vllm", **options: Any) -> OpenAIModel:
    options = {"endpoints": [{"base_url": url} for url in urls], "max_retries": 0, **options}
    entry = {"name": "up", "engine": "openai", "preset": preset, "model": "theirs", "options": options}
    return OpenAIModel.model_validate(entry)


@asynccontextmanager
async def running(model: OpenAIModel) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(model, worker_metrics("up"))
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def reported(engine: OpenAIEngine) -> int:
    async def probe() -> int | None:
        context = engine.stats().context
        return context.tokens if context is not None else None

    return await eventually(probe, "a context length")


async def run(engine: OpenAIEngine) -> None:
    async with aclosing(engine.generate("job-1", REQUEST)) as items:
        async for _ in items:
            pass


@pytest.mark.parametrize(
    ("preset", "path", "page", "length"),
    [
        ("vllm", "/v1/models", VLLM, 4096),
        ("vllm", "/v1/models", ADAPTER, 2048),
        ("sglang", "/v1/models", SGLANG, 40960),
        ("tgi", "/info", TGI, 32768),
    ],
)
async def test_servers_report_their_context(
    upstream: FaultyUpstream, preset: str, path: str, page: Any, length: int
) -> None:
    upstream.pages[path] = page
    async with running(spec(upstream.url, preset=preset)) as engine:
        assert await reported(engine) == length


@pytest.mark.parametrize(
    "page",
    [
        {"data": [{"id": "another", "max_model_len": 5}]},
        {"data": [CARD]},
        *({"data": [{**CARD, "max_model_len": value}]} for value in (None, True, "4096", 0, 1 << 40, 4.5)),
        {"data": {}},
        [],
        b"<html>",
        b"[" * 100_000,
        b'"' + b"x" * (2 << 20) + b'"',
        404,
        307,
    ],
    ids=str,
)
async def test_a_page_without_a_length(upstream: FaultyUpstream, page: Any) -> None:
    """It costs nothing else: the length stays unknown, and the page is not asked for again and again."""
    upstream.pages["/v1/models"] = page
    async with running(spec(upstream.url)) as engine:
        await upstream.page_read.wait()
        await run(engine)
        assert engine.stats().context is None
    assert upstream.pages_read == 1


async def test_an_upstream_that_starts_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine starts without it, and asks again by itself."""
    monkeypatch.setattr(context_length, "RETRY_S", (0.01, 0.02))
    async with faulty_upstream() as gone:
        port = int(gone.url.split(":")[2].split("/")[0])
    async with running(spec(gone.url)) as engine:
        assert engine.stats().context is None
        async with faulty_upstream(port) as upstream:
            upstream.pages["/v1/models"] = 503
            await upstream.page_read.wait()
            upstream.pages["/v1/models"] = VLLM
            assert await reported(engine) == 4096


async def test_a_request_asks_an_upstream_that_did_not_answer(
    upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_length, "RETRY_S", (600.0, 600.0))
    monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))
    upstream.pages["/v1/models"] = 503
    async with running(spec(upstream.url)) as engine:
        await upstream.page_read.wait()
        upstream.pages["/v1/models"] = VLLM

        async def probe() -> int | None:
            await run(engine)
            context = engine.stats().context
            return context.tokens if context is not None else None

        assert await eventually(probe, "a context length") == 4096


async def test_a_server_that_was_started_again_with_another_length(
    upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle upstream is asked once; with requests, the length is read again when it is old."""
    upstream.pages["/v1/models"] = VLLM
    async with running(spec(upstream.url)) as engine:
        assert await reported(engine) == 4096
        upstream.pages["/v1/models"] = {"data": [{**CARD, "max_model_len": 1024}]}
        await run(engine)
        assert upstream.pages_read == 1
        monkeypatch.setattr(context_length, "FRESH_S", 0.0)
        monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))

        async def probe() -> bool:
            await run(engine)
            context = engine.stats().context
            return context is not None and context.tokens == 1024

        await eventually(probe, "the new length")


async def test_an_idle_upstream_that_does_not_answer_is_left_alone(
    upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After some attempts; it may have been scaled to zero. The next request asks it again."""
    monkeypatch.setattr(context_length, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(context_length, "RETRIES", 3)
    upstream.pages["/v1/models"] = 503

    async def asked(times: int) -> None:
        async def probe() -> bool:
            return upstream.pages_read >= times

        await eventually(probe, "the attempts")
        async with aiohttp.ClientSession() as session:
            for _ in range(10):
                await (await session.get(f"{upstream.url}/health")).read()
        assert upstream.pages_read == times

    async with running(spec(upstream.url)) as engine:
        await asked(1 + 3)
        monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))
        await run(engine)
        await asked(1 + 3 + 1)


async def test_only_the_endpoint_that_did_not_answer_is_asked_again(
    upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context_length, "RETRY_S", (600.0, 600.0))
    monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))
    upstream.pages["/v1/models"] = VLLM
    async with faulty_upstream() as other, running(spec(upstream.url, other.url)) as engine:

        async def probe() -> bool:
            await run(engine)
            return other.pages_read >= 3

        await eventually(probe, "the attempts")
        assert upstream.pages_read == 1
        assert await reported(engine) == 4096


def test_waits_have_an_upper_limit() -> None:
    """However long an endpoint does not answer."""
    waits = [context_length._wait_s((1.0, 60.0), failures) for failures in (0, 1, 2, 6, 7, 1_000_000)]
    assert waits == [1, 1, 2, 32, 60, 60]


@pytest.mark.parametrize("method", ["length_url", "length_in"])
@pytest.mark.parametrize("error", [UnicodeError, RuntimeError, OSError, OverflowError])
async def test_no_error_ends_the_reading(
    upstream: FaultyUpstream, monkeypatch: pytest.MonkeyPatch, method: str, error: type[Exception]
) -> None:
    monkeypatch.setattr(context_length, "RETRY_S", (0.0, 0.0))
    monkeypatch.setattr(context_length, "FRESH_S", 0.0)
    monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))
    upstream.pages["/v1/models"] = VLLM
    works, failed = getattr(OpenAIEngine, method), asyncio.Event()

    def fails_once(engine: OpenAIEngine, value: Any) -> Any:
        if failed.is_set():
            return works(engine, value)
        failed.set()
        raise error

    monkeypatch.setattr(OpenAIEngine, method, fails_once)
    async with running(spec(upstream.url)) as engine:
        await failed.wait()

        async def probe() -> bool:
            await run(engine)
            context = engine.stats().context
            return context is not None and context.tokens == 4096

        await eventually(probe, "a context length")


async def test_the_shortest_context_of_several_endpoints_counts(upstream: FaultyUpstream) -> None:
    upstream.pages["/v1/models"] = VLLM
    async with faulty_upstream() as other:
        other.pages["/v1/models"] = {"data": [{**CARD, "max_model_len": 1000}]}
        async with running(spec(upstream.url, other.url)) as engine:
            assert await reported(engine) in (1000, 4096)
            await eventually(lambda: _is(engine, 1000), "the shorter length")


async def _is(engine: OpenAIEngine, length: int) -> bool:
    return await reported(engine) == length


@pytest.mark.parametrize("options", [{"detect_max_model_len": False}, {"max_model_len": 100}])
async def test_it_is_not_read_if_it_is_configured_or_switched_off(
    upstream: FaultyUpstream, options: dict[str, Any]
) -> None:
    upstream.pages["/v1/models"] = VLLM
    async with running(spec(upstream.url, **options)) as engine:
        await run(engine)
        assert engine.stats().context is None
    assert upstream.pages_read == 0


def test_servers_that_would_have_to_be_started_are_not_asked() -> None:
    sources = {preset: spec("http://up/v1", preset=preset).context_source for preset in ("modal", "runpod", "gemini")}
    assert set(sources.values()) == {None}


def asking(tokens: int) -> GenerateRequest:
    return GenerateRequest(messages=REQUEST.messages, sampling=Sampling(max_tokens=tokens))


async def test_admission_uses_what_the_worker_reports(upstream: FaultyUpstream, redis: Redis) -> None:
    upstream.pages["/v1/models"] = VLLM
    model = spec(upstream.url)
    registry = Registry({"up": model})
    window, lengths = ContextWindow(registry), ContextLengths(redis)
    contexts = ReportedContexts(registry, window, lengths)
    async with running(model) as engine:
        report = ContextReport(CurrentEngine(engine), lengths)
        await contexts.read()
        await window.check("up", asking(4097))
        await reported(engine)
        await report.report()
        await contexts.read()
        assert window.length("up") == 4096
        await window.check("up", asking(4096))
        with pytest.raises(InvalidRequest, match="context is 4096 tokens") as caught:
            await window.check("up", asking(4097))
        assert caught.value.param == "max_tokens"

    # Redis has lost it: it stays known until a worker has written it again.
    await redis.flushdb()
    await contexts.read()
    assert window.length("up") == 4096

    # After a reload, nothing that was reported for another server or model counts.
    for changed in (
        spec("http://elsewhere/v1"),
        spec(upstream.url, detect_max_model_len=False),
        model.model_copy(update={"model": "other"}),
    ):
        registry.replace({"up": changed})
        window.use(window.read(registry.models))
        await contexts.read()
        assert window.length("up") is None
    registry.replace({"up": spec(upstream.url, max_model_len=50)})
    window.use(window.read(registry.models))
    assert window.length("up") == 50


async def test_a_report_is_written_again(
    upstream: FaultyUpstream, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.pages["/v1/models"] = VLLM
    model = spec(upstream.url)
    assert model.context_source is not None
    lengths = ContextLengths(redis)
    async with running(model) as engine:
        await reported(engine)
        report = ContextReport(CurrentEngine(engine), lengths)
        await report.report()
        await redis.flushdb()
        await report.report()
        assert await lengths.read([model.context_source]) == {}, "it has just been written"
        monkeypatch.setattr("workers.supervision.context_report.AGAIN_S", 0.0)
        await report.report()
        assert await lengths.read([model.context_source, "another"]) == {model.context_source: 4096}
        info = engine.stats().info
        assert info is not None
        assert (info.engine, info.context) == ("openai", 4096)
        assert await redis.ttl(f"hr:context:{model.context_source}") > 0


async def test_a_refused_request_has_an_old_length_read_again(
    upstream: FaultyUpstream, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other request may reach the worker: the clients all ask for more than the server had."""
    upstream.pages["/v1/models"] = VLLM
    model = spec(upstream.url)
    registry = Registry({"up": model})
    window, lengths = ContextWindow(registry), ContextLengths(redis)
    contexts = ReportedContexts(registry, window, lengths)
    async with running(model) as engine:
        await reported(engine)
        report = ContextReport(CurrentEngine(engine), lengths)
        await report.report()
        await contexts.read()
        # The server is started again with a longer context, and what was read is old.
        upstream.pages["/v1/models"] = {"data": [{**CARD, "max_model_len": 32768}]}
        monkeypatch.setattr(context_length, "FRESH_S", 0.0)
        monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))
        await report.report()
        assert upstream.pages_read == 1, "nobody uses the model"
        with pytest.raises(InvalidRequest, match="context is 4096 tokens"):
            await window.check("up", asking(16000))

        async def passes() -> bool:
            await contexts.read()
            await report.report()
            return window.length("up") == 32768

        await eventually(passes, "the new length")
        await window.check("up", asking(16000))


async def test_a_length_is_read_again_at_most_once_a_minute_for_refused_requests(
    upstream: FaultyUpstream, redis: Redis
) -> None:
    upstream.pages["/v1/models"] = VLLM
    model = spec(upstream.url)
    assert model.context_source is not None
    lengths = ContextLengths(redis)
    async with running(model) as engine:
        await reported(engine)
        report = ContextReport(CurrentEngine(engine), lengths)
        await lengths.note_refusals([model.context_source])
        assert await lengths.has_refused(model.context_source)
        for _ in range(5):
            await report.report()
            await run(engine)
    assert upstream.pages_read == 1
    assert await redis.ttl(f"hr:context_refusal:{model.context_source}") > 60


async def test_a_server_that_reports_no_length_any_more(
    upstream: FaultyUpstream, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.pages["/v1/models"] = VLLM
    model = spec(upstream.url)
    registry = Registry({"up": model})
    window, lengths = ContextWindow(registry), ContextLengths(redis)
    contexts = ReportedContexts(registry, window, lengths)
    async with running(model) as engine:
        await reported(engine)
        report = ContextReport(CurrentEngine(engine), lengths)
        await report.report()
        await contexts.read()
        assert window.length("up") == 4096
        upstream.pages["/v1/models"] = {"data": [CARD]}
        monkeypatch.setattr(context_length, "FRESH_S", 0.0)
        monkeypatch.setattr(context_length, "UNREAD_S", (0.0, 0.0))
        monkeypatch.setattr(reported_lengths, "KEPT_S", 0.0)
        monkeypatch.setattr("workers.supervision.context_report.AGAIN_S", 0.0)

        async def unknown() -> bool:
            await run(engine)
            await report.report()
            await contexts.read()
            return window.length("up") is None

        await eventually(unknown, "no length")
        await report.report()
        assert await redis.keys("hr:context:*") == []
        await window.check("up", asking(16000))


async def test_a_length_that_no_worker_reports_is_forgotten(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that are refused because of it would start no worker that could read it again."""
    model = spec("http://127.0.0.1:1/v1")
    registry = Registry({"up": model})
    window, lengths = ContextWindow(registry), ContextLengths(redis)
    contexts = ReportedContexts(registry, window, lengths)
    assert model.context_source is not None
    await lengths.write(model.context_source, 4096)
    assert 0 < await redis.ttl(f"hr:context:{model.context_source}") <= 600
    await contexts.read()
    assert window.length("up") == 4096
    await redis.flushdb()
    monkeypatch.setattr(reported_lengths, "KEPT_S", 0.0)
    await contexts.read()
    assert window.length("up") is None


async def test_an_idle_worker_does_not_replace_what_another_one_has_read(
    upstream: FaultyUpstream, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.pages["/v1/models"] = VLLM
    model = spec(upstream.url)
    assert model.context_source is not None
    lengths = ContextLengths(redis)
    async with running(model) as engine:
        await reported(engine)
        report = ContextReport(CurrentEngine(engine), lengths)
        await report.report()
        await lengths.write(model.context_source, 8192)
        monkeypatch.setattr("workers.supervision.context_report.AGAIN_S", 0.0)
        await report.report()
    assert await lengths.read([model.context_source]) == {model.context_source: 8192}
