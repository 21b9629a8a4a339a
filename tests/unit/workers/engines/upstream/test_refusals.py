"""Refusals that another model of a route may not repeat, or must not be asked about, are distinguished from others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import orjson
import pytest

from shared.domain.errors import ContentRefused, ContextExceeded, InvalidRequest
from workers.engines.base import UpstreamError
from workers.engines.upstream.error_body import parse_error
from workers.engines.upstream.errors import reported_error, status_error


def of(kind: str | None, message: str, **members: Any) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, **members}}


TOO_LONG = [
    # OpenAI
    of("invalid_request_error", "Your messages are not accepted.", code="context_length_exceeded"),
    of("invalid_request_error", "This model's maximum context length is 8192 tokens. However, you requested 9000."),
    # Anthropic
    of("invalid_request_error", "prompt is too long: 200001 tokens > 200000 maximum"),
    of("invalid_request_error", "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
    # Bedrock
    {"message": "Input is too long for requested model."},
    # Gemini
    {
        "error": {
            "code": 400,
            "message": "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576).",
        }
    },
    # Groq
    of(
        "invalid_request_error",
        "Please reduce the length of the messages or completion.",
        code="context_length_exceeded",
    ),
    # llama.cpp
    of("exceed_context_size_error", "the request exceeds the available context size, try increasing it", code=400),
    # SGLang, vLLM, LM Studio, TGI
    {"message": "The input (40000 tokens) is longer than the model's context length (32768 tokens).", "code": 400},
    of("BadRequestError", "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
    of(None, "However, the model is loaded with context length of only 4096 tokens, which is not enough."),
    {"error": "`inputs` tokens + `max_new_tokens` must be <= 4096. Given: 5000 `inputs` tokens"},
    {"error": "`inputs` must have less than 1024 tokens. Given: 3000", "error_type": "validation"},
    # DashScope, Moonshot, Volcengine, Zhipu, and gateways of their models
    of("InvalidParameter", "Range of input length should be [1, 30720]"),
    of("invalid_request_error", "Invalid request: Your request exceeded model token limit: 8192 (requested: 9000)"),
    of("invalid_request_error", "model max length exceeded, max length:8192"),
    of("BadRequest", "Total tokens of image and text exceed max message tokens."),
    of(None, "Prompt exceeds max length", code="1261"),
    of("context_window_exceeded", "no", code=400),
    of(None, "[400] 请求超出模型上下文限制"),
    of(None, "Prompt 超长"),
    # Mistral, Perplexity, xAI, GitHub
    {"message": "Prompt contains 40000 tokens, too large for model with 32768 maximum context length"},
    of("bad_request", "The total length of all messages is too long."),
    {"error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."},
    of(None, "Request body too large for gpt-4o model. Max size: 8000 tokens.", code="tokens_limit_reached"),
    of(None, "prompt token count of 150000 exceeds the limit of 128000"),
    # A gateway that passes on the error of the server behind it.
    of(None, orjson.dumps(of("invalid_request_error", "no", code="context_length_exceeded")).decode(), code=400),
]
CONTENT = [
    of(None, "The request was rejected.", code="content_policy_violation"),
    of(None, "The response was filtered due to the prompt triggering Azure OpenAI's content management policy."),
    of("invalid_request_error", "Your input was flagged", metadata={"flagged_input": "x"}),
]
OTHERS = [
    of("invalid_request_error", "messages: at least one message is required"),
    of("invalid_request_error", "max_tokens: must be at least 1"),
    of("invalid_request_error", "The tool's name is too long"),
    of(None, "the image exceeds 5 MB"),
    of(None, "max_tokens is too large: 5000. This model supports at most 4096 completion tokens"),
    of("string_above_max_length", "Invalid 'tools[0].function.description': string too long"),
    of(None, "图片大小超出限制"),
]


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        *((error, ContextExceeded) for error in TOO_LONG),
        *((error, ContentRefused) for error in CONTENT),
        *((error, InvalidRequest) for error in OTHERS),
    ],
    ids=lambda value: str(value)[:60],
)
def test_kinds_of_refusals(error: dict[str, Any], kind: type[InvalidRequest]) -> None:
    body = parse_error(orjson.dumps(error))
    assert type(status_error(400, {}, body, "messages")) is kind


def test_an_error_within_an_answer() -> None:
    body = parse_error(orjson.dumps(of("server_error", "Context size has been exceeded.", code=500)))
    assert type(reported_error(body, "messages")) is ContextExceeded


@pytest.mark.parametrize(
    "error",
    [
        of("invalid_request_error", "Failed to call a function.", code="tool_use_failed", failed_generation="<f=1>"),
        of("invalid_request_error", "Failed to generate JSON.", code="json_validate_failed", failed_generation="{"),
    ],
    ids=lambda error: str(error["error"]["code"]),
)
def test_output_that_is_not_valid_is_no_fault_of_the_request(error: dict[str, Any]) -> None:
    """Groq answers 400. Another model of the route may do better."""
    body = parse_error(orjson.dumps(error))
    assert type(status_error(400, {}, body, "messages")) is UpstreamError
    assert type(reported_error(replace(body, status=400), "messages")) is UpstreamError
