"""The reasons why answers end, in the words of all servers: gateways pass on those of the model's provider."""

from __future__ import annotations

from typing import Any

from workers.engines.upstream.error_body import error_of
from workers.engines.upstream.errors import ErrorBody

# The filter of the provider ended the answer. Google's compatible endpoint sends Gemini's reasons, also after
# `content_filter: `.
_FILTERS = (
    "content_filter",
    "content_filtered",
    "guardrail_intervened",
    "refusal",
    "sensitive",
    "safety",
    "recitation",
    "blocklist",
    "prohibited_content",
    "spii",
    "image_safety",
    "model_armor",
    "language",
)
_LIMITS = ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded")
_CALLS = ("tool_calls", "tool_call", "tool_use", "function_call")
# Any other reason becomes "stop".
_FINISH_REASONS = (
    dict.fromkeys(_FILTERS, "content_filter") | dict.fromkeys(_LIMITS, "length") | dict.fromkeys(_CALLS, "tool_calls")
)
# Reasons after which the last tool call may be incomplete.
TRUNCATED = ("length", "content_filter")
# Texts that stand for no reason.
UNFINISHED = ("null", "none")
# Reasons of answers that are not complete, and the HTTP status that each stands for: those with one may not recur.
# Ollama's `load` says that it has only loaded the model.
INTERRUPTED = {
    "error": 500,
    "engine_error": 500,
    "network_error": 502,
    "abort": 503,
    "aborted": 503,
    "insufficient_system_resource": 503,
    "timeout": 504,
    "time_limit": None,
    "cancelled": None,
    "canceled": None,
    "load": None,
    "malformed_function_call": None,
    "malformed_response": None,
    "unexpected_tool_call": None,
    "too_many_tool_calls": None,
    "function_call_filter": None,
}


def kind_of(reason: Any) -> str:
    """The reason in small letters, without what follows a colon. Old versions of SGLang send an object with a type, and
    some servers a list."""
    if isinstance(reason, list) and reason:
        reason = reason[0]
    name = reason.get("type") if isinstance(reason, dict) else reason
    return str(name).lower().partition(":")[0]


def finish_reason_of(kind: str) -> str:
    """The finish reason for a kind of reason that is not one of `INTERRUPTED`."""
    return _FINISH_REASONS.get(kind, "stop")


def interruption(kind: str, reason: Any, error: Any = None) -> ErrorBody:
    """The error of an answer that ended with a reason of `INTERRUPTED`. `error`: what the upstream sent with it."""
    if error:
        return error_of(error)
    if isinstance(reason, dict) and reason.get("message"):
        return error_of(reason)
    return ErrorBody(f"it ended the answer with the reason {kind}", status=INTERRUPTED[kind])
