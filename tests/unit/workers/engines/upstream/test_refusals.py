"""Refusals that another model of a route may not repeat, or must not be asked about, are distinguished from others."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from shared.domain.errors import ContentRefused, ContextExceeded, InvalidRequest
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
