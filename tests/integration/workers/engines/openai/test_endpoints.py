"""Several addresses and keys of one upstream: the choice among them, and keys that cannot be used."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel
from shared.domain.errors import InvalidRequest
from shared.domain.request import GenerateRequest, Message
from tests.support.faulty_upstream import Answer, End, FaultyUpstream, error_answer, faulty_upstream
from tests.support.metrics import worker_metrics
from tests.support.ports import free_port
from tests.support.waiting import eventually
from workers.engines.base import EngineError
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream import endpoints
from workers.engines.upstream.endpoints import Endpoints

CHAT = GenerateRequest(messages=[Message(role="user", content="Hello")])
KEYS = {"KEY_A": "sk-aaaa-0123456789abcdef", "KEY_B": "sk-bbbb-0123456789abcdef"}
NO_CREDIT = json.dumps({"error": {"message": "You exceeded your quota", "type": "insufficient_quota", "code": None}})


@pytest.fixture
async def upstreams() -> AsyncIterator[list[FaultyUpstream]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(faulty_upstream()) for _ in range(2)]


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)


def model(*entries: dict[str, Any], **options: Any) -> OpenAIModel:
    fields = {"endpoints": list(entries), "max_retries": 0, **options}
    return OpenAIModel.model_validate({"name": "up", "engine": "openai", "model": "theirs", "options": fields})


def pair(upstreams: list[FaultyUpstream], **options: Any) -> OpenAIModel:
    entries = zip(upstreams, KEYS, strict=True)
    return model(*({"base_url": upstream.url, "api_key_env": key} for upstream, key in entries), **options)


async def started(model: OpenAIModel) -> OpenAIEngine:
    engine = OpenAIEngine(model, worker_metrics("up"))
    await engine.start()
    return engine


async def text(engine: OpenAIEngine) -> str:
    return "".join([item.text async for item in engine.generate("r", CHAT) if hasattr(item, "text")])


def states(engine: OpenAIEngine) -> dict[str, bool]:
    return dict(engine.stats().endpoints)


async def test_requests_are_shared_by_weight(upstreams: list[FaultyUpstream]) -> None:
    light, heavy = (
        {"base_url": upstream.url, "weight": weight} for upstream, weight in zip(upstreams, (1, 4), strict=True)
    )
    chosen = Endpoints(model(light, heavy), lambda key: {})
    counts = Counter(chosen.choose().name for _ in range(2000))
    assert counts["0"] + counts["1"] == 2000
    assert 250 < counts["0"] < 550


async def test_each_endpoint_gets_its_own_key(upstreams: list[FaultyUpstream]) -> None:
    engine = await started(pair(upstreams))
    while not all(upstream.seen for upstream in upstreams):
        assert await text(engine) == "0 1 2 "
    for upstream, key in zip(upstreams, KEYS.values(), strict=True):
        assert {seen.headers["authorization"] for seen in upstream.seen} == {f"Bearer {key}"}
    await engine.stop()


@pytest.mark.parametrize(
    "answer",
    [
        error_answer(500),
        error_answer(429),
        Answer(0, End.DISCONNECT),
        error_answer(401),
        error_answer(403, "Your API key may not use this model"),
        error_answer(402),
        Answer(status=429, body=NO_CREDIT),
    ],
    ids=["500", "429", "closed", "401", "403", "402", "no credit"],
)
async def test_a_failure_before_the_first_token_is_tried_elsewhere(
    upstreams: list[FaultyUpstream], answer: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    """At once, and although no request may be repeated at the same endpoint."""
    bad, good = upstreams
    bad.default = answer
    engine = await started(pair(upstreams))
    while not bad.seen:
        assert await text(engine) == "0 1 2 "
    seen = len(good.seen)
    assert await text(engine) == "0 1 2 ", "the endpoint is set aside now"
    assert (len(bad.seen), len(good.seen)) == (1, seen + 1)
    assert states(engine) == {"0": False, "1": True}
    assert [record.message for record in caplog.records if "set aside" in record.message] == [
        record.message for record in caplog.records if "endpoint=0 set aside" in record.message
    ]
    assert not [record for record in caplog.records if any(key in record.getMessage() for key in KEYS.values())]
    await engine.stop()


async def test_an_unreachable_endpoint(upstreams: list[FaultyUpstream]) -> None:
    gone = {"base_url": f"http://127.0.0.1:{free_port()}/v1", "weight": 1000}
    engine = await started(model(gone, {"base_url": upstreams[0].url, "weight": 0.001}))
    assert await text(engine) == "0 1 2 "
    assert states(engine) == {"0": False, "1": True}
    await engine.stop()


async def test_all_keys_are_refused(upstreams: list[FaultyUpstream], caplog: pytest.LogCaptureFixture) -> None:
    for upstream, key in zip(upstreams, KEYS.values(), strict=True):
        upstream.default = error_answer(401, f"Incorrect API key provided: {key} and {KEYS['KEY_A']}")
    engine = await started(pair(upstreams))
    with caplog.at_level(logging.DEBUG):
        for _ in range(3):
            with pytest.raises(EngineError, match=r"^The upstream refused the key \(HTTP 401\)\.$"):
                await text(engine)
    for name in KEYS:
        assert caplog.text.count(f"api_key_env is {name}") == 1, "reported once"
    assert not any(key in caplog.text for key in KEYS.values())
    assert states(engine) == {"0": False, "1": False}
    await engine.stop()


async def test_a_key_that_was_set_aside_recovers(
    upstreams: list[FaultyUpstream], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endpoints, "KEY_ASIDE_S", (0.0, 0.0))
    rotated, other = upstreams
    rotated.answers = [error_answer(401)]
    engine = await started(pair(upstreams))
    while len(rotated.seen) < 2:
        assert await text(engine) == "0 1 2 "
    assert states(engine) == {"0": True, "1": True}
    assert "endpoint=0 works again" in caplog.text
    assert other.seen
    await engine.stop()


async def test_a_broken_stream_is_not_tried_elsewhere(upstreams: list[FaultyUpstream]) -> None:
    for upstream in upstreams:
        upstream.default = Answer(2, End.DISCONNECT)
    engine = await started(pair(upstreams))
    with pytest.raises(EngineError):
        await text(engine)
    assert sum(len(upstream.seen) for upstream in upstreams) == 1
    await engine.stop()


async def test_a_missing_key_names_model_option_and_variable(
    upstreams: list[FaultyUpstream], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY_B", " ")
    with pytest.raises(InvalidRequest, match=r"up\.options\.endpoints\[1\]\.api_key_env: KEY_B is not set"):
        await started(pair(upstreams))


async def test_a_health_check_takes_no_refused_key_back(upstreams: list[FaultyUpstream]) -> None:
    """Servers answer health checks without looking at the key."""
    for upstream in upstreams:
        upstream.health = 200
    refusing = upstreams[0]
    refusing.default = error_answer(401)
    engine = await started(pair(upstreams, health_path="/health", health_interval_s=0.005))
    while not refusing.seen:
        assert await text(engine) == "0 1 2 "
    before = refusing.checks

    async def checked() -> bool:
        return refusing.checks > before + 3

    await eventually(checked, "further checks")
    assert states(engine) == {"0": False, "1": True}
    await engine.stop()


async def test_health_checks_set_endpoints_aside(upstreams: list[FaultyUpstream]) -> None:
    healthy, ill = upstreams
    healthy.health, ill.health = 200, 503
    engine = await started(pair(upstreams, health_path="/health", health_interval_s=0.01))

    async def are(expected: dict[str, bool]) -> bool:
        return states(engine) == expected

    await eventually(lambda: are({"0": True, "1": False}), "the failed check")
    assert await text(engine) == "0 1 2 "
    assert not ill.seen
    ill.health = 200
    await eventually(lambda: are({"0": True, "1": True}), "the check")
    await engine.stop()
