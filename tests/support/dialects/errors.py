"""Errors in a response of status 200."""

from __future__ import annotations

import json
from typing import Any

from tests.support.dialects.base import DONE, HI, JSON, Dialect, chunk, frames


def _failed(name: str, source: str, *writes: bytes, error: str, **expected: Any) -> Dialect:
    return Dialect(name=name, source=source, writes=writes, error=error, **expected)


FAILED = "The upstream failed: out of memory"
MEMORY = "out of memory"
ERRORS = (
    _failed(
        "OpenAI: an error object",
        "openai/openai-python#1160",
        *frames({"error": {"message": MEMORY, "type": "other"}}),
        error=FAILED,
    ),
    _failed("an error as text", "UKGovernmentBEIS/inspect_ai#5218", *frames({"error": MEMORY}), error=FAILED),
    _failed(
        "TGI: an error as text, with its type",
        "huggingface/text-generation-inference",
        *frames({"error": MEMORY, "error_type": "generation"}),
        error=FAILED,
    ),
    _failed(
        "vLLM: object error",
        "vllm-project/vllm",
        *frames({"object": "error", "message": MEMORY, "type": "x", "code": "y"}),
        error=FAILED,
    ),
    _failed("FastAPI: detail", "FastAPI", *frames({"detail": MEMORY}), error=FAILED),
    _failed(
        "Anthropic: type error",
        "Anthropic API reference",
        *frames({"type": "error", "error": {"type": "other", "message": MEMORY}}),
        error=FAILED,
    ),
    _failed(
        "OpenRouter: with an empty choice",
        "diegosouzapw/OmniRoute#8210",
        *frames(
            *HI,
            {
                "choices": [{"index": 0, "delta": {"content": ""}, "finish_reason": "error"}],
                "error": {"code": 502, "message": MEMORY},
            },
        ),
        error=FAILED,
        text="Hi there",
    ),
    _failed(
        "OpenRouter: an error in the choice",
        "OpenRouter API reference",
        *frames(
            *HI,
            chunk(
                {
                    "index": 0,
                    "delta": {"content": ""},
                    "finish_reason": "error",
                    "error": {"message": MEMORY, "code": 502},
                }
            ),
        ),
        error=FAILED,
        text="Hi there",
    ),
    _failed(
        "Groq: event error",
        "sashabaranov/go-openai#1057",
        b'event: error\ndata: {"error":{"message":"out of memory","type":"x"}}\n\n',
        error=FAILED,
    ),
    _failed(
        "FMS: event error without an error member",
        "foundation-model-stack/fms-guardrails-orchestrator#436",
        frames(*HI, done=False)[0] + b'event: error\ndata: {"code":500,"details":"out of memory"}\n\n' + DONE,
        error=FAILED,
        text="Hi there",
    ),
    _failed("event error with text", "gateways", b"event: error\ndata: out of memory\n\n", error=FAILED),
    _failed(
        "llama.cpp: a field of its own",
        "ggml-org/llama.cpp#16109",
        frames(*HI, done=False)[0] + b'error: {"code":500,"message":"out of memory","type":"server_error"}\n\n' + DONE,
        error=FAILED,
        text="Hi there",
    ),
    _failed(
        "an error as a raw text",
        "lucasjinreal/Crane#121",
        frames(*HI, done=False)[0] + b"data: error: out of memory\n\n",
        error=FAILED,
        text="Hi there",
    ),
    _failed(
        "a list with an error",
        "Gemini API reference",
        json.dumps([{"error": {"message": MEMORY, "status": "X"}}]).encode(),
        error=FAILED,
        headers=JSON,
    ),
    _failed(
        "an error document of status 200",
        "apache/rocketmq-dashboard#2178",
        json.dumps({"error": {"message": MEMORY}}, indent=1).encode(),
        error=FAILED,
        headers=JSON,
    ),
    _failed(
        "success false", "CommandCodeAI/command-code#785", *frames({"success": False, "message": MEMORY}), error=FAILED
    ),
    _failed(
        "an outage before text is retried",
        "diegosouzapw/OmniRoute#8210",
        *frames({"choices": [], "error": {"code": 503, "message": MEMORY}}),
        error=FAILED,
        requests=2,
    ),
    _failed(
        "a rate limit before text is retried",
        "UKGovernmentBEIS/inspect_ai#5218",
        *frames({"error": {"type": "rate_limit_error", "message": MEMORY}}),
        error=FAILED,
        requests=2,
    ),
    _failed(
        "llama.cpp: a refused request",
        "ggml-org/llama.cpp#14566",
        *frames({"error": {"code": 400, "message": "too long", "type": "invalid_request_error"}}),
        error="too long",
        invalid=True,
    ),
    _failed(
        "a refused key",
        "gateways",
        *frames({"error": {"code": 401, "message": "no"}}),
        error="The upstream refused the key (HTTP 401).",
    ),
    _failed(
        "not JSON",
        "anomalyco/opencode#25247",
        *frames(*HI, b'{"choices":[{"ind'),
        error="not OpenAI's stream",
        text="Hi there",
    ),
    _failed(
        "a page of status 200",
        "gateways",
        b"<!DOCTYPE html>\n<html><title>Sign in</title></html>\n",
        error="ended its answer too early",
        headers={"Content-Type": "text/html"},
        requests=2,
    ),
)
