"""Whom an upstream's error concerns: the request, the key, one endpoint, or everyone, whatever its status says."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import pytest

from shared.config.models.openai import OpenAIModel
from shared.domain.errors import HeadraceError, InvalidRequest
from shared.domain.request import GenerateRequest, Message
from tests.support.faulty_upstream import Answer, End, FaultyUpstream, faulty_upstream
from tests.support.metrics import worker_metrics
from workers.engines.base import BusyReason, UpstreamBusy, UpstreamError
from workers.engines.openai.engine import OpenAIEngine
from workers.engines.upstream.breaker import FAILURES

CHAT = GenerateRequest(messages=[Message(role="user", content="Hello")])
Engines = list[OpenAIEngine]
Upstreams = list[FaultyUpstream]
KEYS = {"KEY_A": "sk-aaaa-0123456789abcdef", "KEY_B": "sk-bbbb-0123456789abcdef"}


@pytest.fixture
async def upstreams(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[FaultyUpstream]]:
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(faulty_upstream()) for _ in KEYS]


@pytest.fixture
async def engines() -> AsyncIterator[list[OpenAIEngine]]:
    """The engines of a test, which are stopped after it."""
    engines: list[OpenAIEngine] = []
    yield engines
    for engine in engines:
        await engine.stop()


async def started(engines: Engines, upstreams: Upstreams, **options: Any) -> OpenAIEngine:
    """An engine that prefers the first endpoint."""
    endpoints = [
        {"base_url": upstream.url, "api_key_env": key, "weight": weight}
        for upstream, key, weight in zip(upstreams, KEYS, (1000, 0.001), strict=False)
    ]
    fields = {"endpoints": endpoints, "max_retries": 0, **options}
    model = OpenAIModel.model_validate({"name": "up", "engine": "openai", "model": "theirs", "options": fields})
    engine = OpenAIEngine(model, worker_metrics("up"))
    engines.append(engine)
    await engine.start()
    return engine


async def run(engine: OpenAIEngine, job: str = "job") -> str:
    return "".join([item.text async for item in engine.generate(f"{job}-1", CHAT) if hasattr(item, "text")])


async def error_of(engine: OpenAIEngine, job: str = "job") -> HeadraceError:
    with pytest.raises(HeadraceError) as caught:
        await run(engine, job)
    return caught.value


def answer(status: int, body: Any, **headers: str) -> Answer:
    content = body if isinstance(body, str) else json.dumps(body)
    return Answer(status=status, body=content, headers={name.replace("_", "-"): headers[name] for name in headers})


def in_stream(body: Any) -> Answer:
    return Answer(raw=(b"data: %b\n\n" % json.dumps(body).encode(),))


def document(body: Any) -> Answer:
    return Answer(raw=(json.dumps(body).encode(),), headers={"Content-Type": "application/json"})


FLAGGED = {
    "code": 403,
    "message": 'openai/gpt requires moderation on OpenRouter. Your input was flagged for "violence".',
    "metadata": {"reasons": ["violence"], "flagged_input": "my api key...", "provider_name": "OpenAI"},
}
# https://openrouter.ai/docs/api/errors: guardrail blocks and moderation flags are 403.
OF_CONTENT = [
    answer(403, {"error": FLAGGED}),
    answer(403, {"error": {"code": "content_policy_violation", "message": "The request was rejected."}}),
    answer(
        403, {"error": {"type": "permission_error", "message": "Request blocked: prompt injection patterns detected"}}
    ),
    in_stream({"error": FLAGGED}),
    # They quote the prompt, which may speak of anything.
    answer(403, {"error": {"message": 'Request blocked: content policy violation in "my savings account"'}}),
    answer(403, {"error": {"message": 'Your prompt was flagged by moderation: "list my projects"'}}),
    answer(403, {"error": {"message": "Forbidden by guardrail: prompt mentions credentials"}}),
]
TOO_LONG = "Input length (9000) exceeds model's maximum context length (4096)."
OF_REQUEST = [
    *OF_CONTENT,
    # llama.cpp
    answer(500, {"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}),
    in_stream({"error": {"code": 500, "message": "Context size has been exceeded.", "type": "server_error"}}),
    answer(500, {"error": {"message": TOO_LONG, "type": "invalid_request_error", "code": 400}}),
    answer(500, {"error": {"message": "a bad schema", "type": "invalid_request_error"}}),
    answer(502, {"error": {"message": "a bad schema", "code": 400}}),
    # Proxies put the error of the server behind them into a text.
    answer(500, {"error": json.dumps({"type": "error", "error": {"type": "invalid_request_error", "message": "no"}})}),
    answer(404, {"error": {"type": "not_found_error", "message": "File not found: file_1"}}),
    answer(404, {"error": {"message": "No such thing", "param": "messages[0].content"}}),
]


@pytest.mark.parametrize("refusal", OF_REQUEST, ids=lambda refusal: f"{refusal.status} {refusal.body[:60]}")
async def test_a_refused_request_harms_no_other(engines: Engines, upstreams: Upstreams, refusal: Answer) -> None:
    """One client's prompt sets no key aside and does not open the breaker, however often it is sent."""
    upstreams[0].default = upstreams[1].default = refusal
    engine = await started(engines, upstreams)
    for number in range(FAILURES + 1):
        assert isinstance(await error_of(engine, f"job{number}"), InvalidRequest)
    assert engine.gate.breaker is None
    assert all(engine.stats().endpoints.values())


async def test_the_reason_of_a_flagged_prompt_reaches_the_client(engines: Engines, upstreams: Upstreams) -> None:
    upstreams[0].default = OF_CONTENT[0]
    engine = await started(engines, upstreams)
    assert "Your input was flagged" in (await error_of(engine)).message
    assert len(upstreams[0].seen) == 1
    assert not upstreams[1].seen, "the prompt is not sent with other keys"


def error(message: str, kind: str | None = None, code: str | int | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "code": code}}


GEMINI_KEY = {
    "code": 400,
    "message": "Please pass a valid API key.",
    "status": "INVALID_ARGUMENT",
    "details": [{"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}],
}
XAI_KEY = {"code": "Client specified an invalid argument", "error": "Incorrect API key provided: xa***."}
NO_CREDIT = [
    answer(400, error("Your credit balance is too low to access the Anthropic API.", "invalid_request_error")),
    answer(400, error("Access denied, please make sure your account is in good standing.", "Arrearage", "Arrearage")),
    answer(400, error("Budget has been exceeded! Current cost: 1, Max budget: 0", "budget_exceeded", "400")),
    answer(403, {"code": "INSUFFICIENT_BALANCE", "message": "Insufficient account balance"}),
    answer(429, error("Your account is suspended, please check your plan", "exceeded_current_quota_error")),
    answer(429, error("余额不足或无可用资源包,请充值。", None, "1113")),
    answer(429, error("insufficient balance (1008)", "insufficient_balance_error")),
    answer(500, error("insufficient balance (1008)", "api_error")),
    document({"choices": None, "base_resp": {"status_code": 1008, "status_msg": "insufficient balance"}}),
]
KEY_REFUSED = [
    answer(400, [{"error": GEMINI_KEY}]),
    answer(400, error("API key not valid. Please pass a valid API key.", None, 400)),
    answer(400, error("API key expired. Please renew the API key.", None, 400)),
    answer(400, XAI_KEY),
    answer(403, error("Your API key does not have permission to use the specified resource.", "permission_error")),
    answer(403, error("This organization has been disabled.", "permission_error")),
    answer(403, error("Project `proj_1` does not have access to model `gpt`", "invalid_request_error")),
    answer(403, error("Method doesn't allow unregistered callers (callers without established identity).", None, 403)),
    answer(403, error("Permission denied: Consumer 'projects/1' has been suspended.", None, 403)),
    answer(403, error("Generative Language API has not been used in project 1 before or it is disabled.", None, 403)),
    answer(403, error("Key limit exceeded (total limit).", None, 403)),
    answer(403, error("OAuth token has been revoked.", "permission_error")),
    answer(403, {"message": "User: arn:aws:iam::1:user/a is not authorized to perform: bedrock:InvokeModel"}),
    answer(403, {"error": "Your newly created teams doesn't have any credits yet."}),
    document({"code": 401, "msg": "invalid api key"}),
]


@pytest.mark.parametrize(
    "refusal", [*NO_CREDIT, *KEY_REFUSED], ids=lambda refusal: f"{refusal.status} {refusal.body[:60]}"
)
async def test_a_key_that_cannot_be_used_is_set_aside(
    engines: Engines, upstreams: Upstreams, refusal: Answer, caplog: pytest.LogCaptureFixture
) -> None:
    upstreams[0].default = refusal
    engine = await started(engines, upstreams)
    assert await run(engine) == "0 1 2 "
    assert await run(engine) == "0 1 2 "
    assert (len(upstreams[0].seen), len(upstreams[1].seen)) == (1, 2)
    assert "api_key_env is KEY_A" in caplog.text


@pytest.mark.parametrize(
    "refusal", [*NO_CREDIT, *KEY_REFUSED], ids=lambda refusal: f"{refusal.status} {refusal.body[:60]}"
)
async def test_an_unusable_key_is_not_blamed_on_the_client(
    engines: Engines, upstreams: Upstreams, refusal: Answer
) -> None:
    upstreams[0].default = refusal
    engine = await started(engines, upstreams[:1])
    assert isinstance(await error_of(engine), UpstreamError)


@pytest.mark.parametrize("status", [400, 422, 429, 500, 503])
async def test_a_message_that_quotes_a_prompt_sets_no_key_aside(
    engines: Engines, upstreams: Upstreams, status: int
) -> None:
    upstreams[0].default = upstreams[1].default = answer(
        status, error("Invalid tool name: 'insufficient balance. Incorrect API key provided'", None, None)
    )
    engine = await started(engines, upstreams)
    message = (await error_of(engine)).message
    assert "Invalid tool name" in message
    assert not any(endpoint.health.key_failed for endpoint in engine._endpoints)


NOT_HERE = [
    answer(404, {"error": {"code": "DeploymentNotFound", "message": "The API deployment does not exist."}}),
    answer(404, {"error": {"code": 404, "message": "The model `m` does not exist.", "param": "model"}}),
    answer(404, "<html><title>404 page not found</title></html>"),
    answer(403, "<html><title>Attention Required! | Cloudflare</title></html>"),
    answer(403, error("Country, region, or territory not supported", "request_forbidden")),
    # What names the key may be quoted, or the account be refused for what it has sent.
    answer(403, error('The request "my api key, project and credentials" is not allowed')),
    answer(403, error('"Your API key is invalid" is not allowed here')),
    answer(403, error("Your account was flagged for violations of the usage policy.")),
]


@pytest.mark.parametrize("refusal", NOT_HERE, ids=lambda refusal: f"{refusal.status} {refusal.body[:60]}")
async def test_another_endpoint_may_accept_a_request(engines: Engines, upstreams: Upstreams, refusal: Answer) -> None:
    upstreams[0].default = refusal
    engine = await started(engines, upstreams)
    assert await run(engine) == "0 1 2 "
    assert len(upstreams[0].seen) == 1
    assert all(engine.stats().endpoints.values()), "the request may be the cause"
    upstreams[1].default = refusal
    found = await error_of(engine)
    assert isinstance(found, UpstreamError)
    assert not isinstance(found, UpstreamBusy)
    assert f"HTTP {refusal.status}" in found.message
    assert (len(upstreams[0].seen), len(upstreams[1].seen)) == (2, 2)


@pytest.mark.parametrize(
    "transient",
    [
        answer(409, error("lock timeout")),
        answer(425, ""),
        answer(499, {"error": {"code": 499, "message": "The operation was cancelled.", "status": "CANCELLED"}}),
        answer(400, {"error": "Model is loading, please wait"}),
        # DeepSeek's code is the same for all errors.
        answer(500, error("busy", "service_unavailable_error", "invalid_request_error")),
        answer(503, error("Service is too busy.", "service_unavailable_error", "invalid_request_error")),
        answer(503, error("no capacity", "invalid_request_error")),
        answer(500, error("busy", "unknown_error", "invalid_request_error")),
        document({"message": "Internal server error"}),
        document({"choices": None, "base_resp": {"status_code": 1002, "status_msg": "rate limit"}}),
    ],
    ids=lambda answer: f"{answer.status} {answer.body[:60]}",
)
async def test_failures_that_may_not_recur(engines: Engines, upstreams: Upstreams, transient: Answer) -> None:
    upstreams[0].answers = [transient]
    engine = await started(engines, upstreams)
    assert await run(engine) == "0 1 2 "
    assert not any(endpoint.health.key_failed for endpoint in engine._endpoints)
    upstreams[0].default = upstreams[1].default = transient
    assert isinstance(await error_of(engine), UpstreamBusy)


@pytest.mark.parametrize(
    ("refusal", "delay_s"),
    [
        (answer(429, [{"error": {"code": 429, "message": "quota", "details": [{"retryDelay": "36.5s"}]}}]), 36.5),
        (answer(524, {"title": "A timeout occurred", "status": 524, "retry_after": 120}), 120),
        (answer(429, error("Rate limit reached. Please try again in 1m7.32s.", "tokens")), 67.32),
        (answer(429, error("Please retry after 3 seconds.")), 3),
        (answer(429, error("Please try again in 250ms.")), 0.25),
        (answer(429, error("slow"), retry_after="30s"), 30),
        (in_stream({"error": {"code": 429, "message": "busy", "metadata": {"retry_after_seconds": 12}}}), 12),
        (answer(429, error("Please try again in 99s."), retry_after="7"), 7),
        (answer(429, error("Please try again in 1e9 years.")), None),
        (answer(429, {"error": {"message": "busy", "retry_after": True, "retryDelay": {}, "metadata": []}}), None),
    ],
    ids=lambda value: f"{value.status} {value.body[:60]}" if isinstance(value, Answer) else None,
)  # fmt: skip
async def test_the_delay_that_a_body_names(
    engines: Engines, upstreams: Upstreams, refusal: Answer, delay_s: float | None
) -> None:
    upstreams[0].default = refusal
    engine = await started(engines, upstreams[:1])
    found = await error_of(engine)
    assert isinstance(found, UpstreamBusy)
    assert found.retry_after_s == delay_s


async def test_the_delay_of_openrouters_limit(engines: Engines, upstreams: Upstreams) -> None:
    """As a header within the body, in milliseconds since 1970."""
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "4102444800000"}
    upstreams[0].default = answer(429, {"error": {"message": "limit", "code": 429, "metadata": {"headers": headers}}})
    engine = await started(engines, upstreams[:1])
    found = await error_of(engine)
    assert isinstance(found, UpstreamBusy)
    assert (found.reason, found.retry_after_s) == (BusyReason.RATE_LIMIT, 3600)


def provider(status: int, raw: Any) -> Answer:
    metadata = {"raw": raw, "provider_name": "Theirs"}
    return answer(status, {"error": {"message": "Provider returned error", "code": status, "metadata": metadata}})


@pytest.mark.parametrize(
    ("refusal", "message", "kind"),
    [
        (provider(400, json.dumps(error("max_tokens is too large", "invalid_request_error"))),
         "max_tokens is too large", InvalidRequest),
        (provider(400, error("no images")), "no images", InvalidRequest),
        (provider(502, json.dumps(error("a bad tool", "invalid_request_error"))), "a bad tool", InvalidRequest),
        (provider(429, "google/gemini is temporarily rate-limited"),
         "The upstream answered HTTP 429: google/gemini is temporarily rate-limited.", UpstreamBusy),
        # OpenRouter's own keys at a provider, not the one that it has accepted.
        (provider(502, json.dumps(error("Incorrect API key provided", "invalid_api_key", 401))),
         "The upstream answered HTTP 502: Incorrect API key provided.", UpstreamBusy),
        (answer(500, {"error": json.dumps(error("Your credit balance is too low"))}),
         "The upstream answered HTTP 500: Your credit balance is too low.", UpstreamBusy),
        (provider(400, ""), "Provider returned error", InvalidRequest),
        (provider(400, "{cut"), "{cut", InvalidRequest),
        (document({"status": "error", "message": "no such model"}), "The upstream failed: no such model",
         UpstreamError),
    ],
    ids=lambda value: f"{value.status} {value.body[-60:]}" if isinstance(value, Answer) else None,
)  # fmt: skip
async def test_the_message_of_the_server_behind(
    engines: Engines, upstreams: Upstreams, refusal: Answer, message: str, kind: type[Exception]
) -> None:
    upstreams[0].default = refusal
    engine = await started(engines, upstreams[:1])
    found = await error_of(engine)
    assert (found.message, type(found)) == (message, kind)
    assert all(not endpoint.health.key_failed for endpoint in engine._endpoints)


async def test_an_answer_is_not_taken_for_an_error(engines: Engines, upstreams: Upstreams) -> None:
    """Documents and events with a message, or a code, that are part of an answer."""
    ok = {"status_code": 0, "status_msg": ""}
    chunk = {"choices": [{"index": 0, "delta": {"content": "Hi"}}], "base_resp": ok}
    events = [{"message": "processing"}, {"code": 200, "msg": "ok"}, chunk, {"base_resp": ok}]
    raw = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    upstreams[0].default = Answer(raw=(raw,))
    engine = await started(engines, upstreams[:1])
    assert await run(engine) == "Hi"
    upstreams[0].default = Answer(2, End.COMPLETE)
    assert await run(engine) == "0 1 "
