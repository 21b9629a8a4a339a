"""Errors of an upstream: what clients get of them, and what the log gets."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel, OpenAIOptions
from shared.domain.errors import HeadraceError, InvalidRequest
from shared.domain.request import GenerateRequest, Message
from tests.support.faulty_upstream import Answer, FaultyUpstream, faulty_upstream
from tests.support.metrics import worker_metrics
from workers.engines.openai.engine import OpenAIEngine

KEY = "model-key-8c1f22aa90b7-XyZ"
PROMPT = "Summarize http://intranet.example.com/secret-plan for /home/ann/plan.txt"
REQUEST = GenerateRequest(messages=[Message(role="user", content=PROMPT)])
SERVER = "http://vllm-0.models.svc.cluster.local:8000/v1"
TEXT = f"cannot reach {SERVER} with key {KEY[:12]}..., see /opt/models/a/config.json"
HTML = {"Content-Type": "text/html"}


@pytest.fixture
async def upstream(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FaultyUpstream]:
    monkeypatch.setenv("UPSTREAM_API_KEY", KEY)
    async with faulty_upstream() as upstream:
        yield upstream


async def error_of(upstream: FaultyUpstream, answer: Answer, **options: Any) -> HeadraceError:
    upstream.answers = [answer]
    values = OpenAIOptions(base_url=upstream.url, api_key_env="UPSTREAM_API_KEY", max_retries=0, **options)
    engine = OpenAIEngine(OpenAIModel(name="up", engine="openai", model="m", options=values), worker_metrics("up"))
    await engine.start()
    try:
        with pytest.raises(HeadraceError) as caught:
            async for _ in engine.generate("r", REQUEST):
                pass
    finally:
        await engine.stop()
    return caught.value


def answers(message: str) -> list[Answer]:
    """The same message in each form of an error."""
    error = {"error": {"message": message, "type": "x"}}
    return [
        Answer(status=500, body=json.dumps(error)),
        Answer(status=400, body=json.dumps(error)),
        Answer(status=418, body=json.dumps({"detail": message})),
        Answer(status=502, body=message, headers={"Content-Type": "text/plain"}),
        Answer(status=503, body=f"<html><head><title>{message}</title></head></html>", headers=HTML),
        Answer(raw=(b"data: %b\n\n" % json.dumps(error).encode(),)),
        Answer(raw=(b"data: %b\n\n" % json.dumps({"error": message}).encode(),)),
        Answer(raw=(json.dumps({"detail": message}).encode(),)),
    ]


@pytest.mark.parametrize("answer", answers(TEXT), ids=lambda answer: f"{answer.status} {answer.body[:20]}")
async def test_addresses_and_keys_do_not_reach_clients(
    upstream: FaultyUpstream, caplog: pytest.LogCaptureFixture, answer: Answer
) -> None:
    with caplog.at_level(logging.DEBUG):
        error = await error_of(upstream, answer)
    assert "cannot reach [address] with key ***" in error.message
    assert "see [path]" in error.message
    log = "\n".join(record.getMessage() for record in caplog.records)
    assert SERVER in log
    assert "/opt/models/a/config.json" in log
    assert KEY[:12] not in log + error.message


async def test_addresses_of_the_prompt_are_not_logged(
    upstream: FaultyUpstream, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        await error_of(upstream, answers(f"{PROMPT}; from {SERVER}")[0])
    assert SERVER in caplog.text
    assert "secret-plan" not in caplog.text
    assert "plan.txt" not in caplog.text


async def test_whole_texts_are_logged_on_request(upstream: FaultyUpstream, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        await error_of(upstream, answers(TEXT)[0], log_error_texts=True)
    assert f"cannot reach {SERVER}" in caplog.text
    assert KEY[:12] not in caplog.text


@pytest.mark.parametrize(
    ("answer", "message", "param"),
    [
        (Answer(status=502, body="<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"),
         "The upstream answered HTTP 502: 502 Bad Gateway.", None),
        (Answer(status=502, body="<html><body>x</body></html>"), "The upstream answered HTTP 502.", None),
        (Answer(status=500), "The upstream answered HTTP 500.", None),
        (Answer(status=500, body='"no memory"'), "The upstream answered HTTP 500: no memory.", None),
        (Answer(status=500, body="null"), "The upstream answered HTTP 500.", None),
        (Answer(status=500, body="[]"), "The upstream answered HTTP 500.", None),
        (Answer(status=500, body='{"error": {"message": {"text": "x"}}}'), "The upstream answered HTTP 500.", None),
        (Answer(status=400), "The upstream refused the request (HTTP 400).", "messages"),
        (Answer(status=422, body='{"detail": [{"loc": ["body", "top_p"], "msg": "too large", "type": "x"}]}'),
         "body.top_p: too large", "top_p"),
        (Answer(status=422, body='{"object": "error", "message": "{\\"detail\\": [{\\"msg\\": \\"no\\"}]}"}'),
         "no", "messages"),
        (Answer(status=400, body='{"error": {"message": "no", "param": "a b\\nc"}}'), "no", "messages"),
        (Answer(status=400, body='{"message": "no", "details": {"x": 1}}'), "no", "messages"),
    ],
    ids=lambda value: value.body[:40] if isinstance(value, Answer) else None,
)  # fmt: skip
async def test_error_bodies(upstream: FaultyUpstream, answer: Answer, message: str, param: str | None) -> None:
    error = await error_of(upstream, answer)
    assert error.message == message
    assert (error.param if isinstance(error, InvalidRequest) else None) == param
