"""Error responses and response headers for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from api.http.errors import ErrorResponse
from api.http.members import HEADER as IGNORED
from api.http.money import COST_HEADER
from shared.domain.decisions import CacheOutcome

_TRUE = {"type": "string", "enum": ["true"]}
# The response headers, each of which is described once. Responses refer to those that they may have.
HEADERS: dict[str, dict[str, Any]] = {
    IGNORED: {
        "description": "Parameters of the request that are unknown or have no effect, percent-encoded.",
        "schema": {"type": "string"},
    },
    "x-headrace-job-id": {"description": "The job of the request.", "schema": {"type": "string"}},
    "x-headrace-route": {
        "description": "The route that chose the model, the rule that applied, the complexity if it decided, and, as"
        " `downgraded_from`, the model that it chose first, if a budget had no room for that one.",
        "schema": {"type": "string"},
        "example": "auto; rule=complexity; score=0.12",
    },
    "x-headrace-cache": {
        "description": "Whether the response cache answered the request. Absent if the cache is off.",
        "schema": {"type": "string", "enum": [outcome.value for outcome in CacheOutcome]},
    },
    "Age": {
        "description": "Seconds since the answer was generated, if it comes from the response cache.",
        "schema": {"type": "integer"},
    },
    "x-headrace-context": {
        "description": "The strategy that shortened the conversation, if it is not the requested one.",
        "schema": {"type": "string"},
        "example": "sliding_window; requested=summarize",
    },
    "x-headrace-max-tokens": {
        "description": "The `max_tokens` that applies, if a limit or a default has changed it.",
        "schema": {"type": "integer"},
    },
    "x-headrace-tokens-estimated": {
        "description": "The prompt's tokens were estimated from its size. Absent if they were counted.",
        "schema": _TRUE,
    },
    COST_HEADER: {
        "description": "What the request is charged, in US dollars, if that is known when the response begins.",
        "schema": {"type": "string"},
        "example": "0.000123",
    },
    "x-headrace-feedback-token": {
        "description": "Lets a browser give feedback about the answer without an API key: `POST /v1/feedback`.",
        "schema": {"type": "string"},
    },
    "Idempotent-Replayed": {
        "description": "An earlier request with the same `Idempotency-Key` created the job.",
        "schema": _TRUE,
    },
    "Location": {"description": "The path of the job.", "schema": {"type": "string"}},
    "Preference-Applied": {"description": "The `Prefer` that applied.", "schema": {"type": "string"}},
    "Retry-After": {"description": "Seconds after which to send the request again.", "schema": {"type": "integer"}},
    "x-headrace-export": {"description": "The export's id.", "schema": {"type": "string"}},
    "x-headrace-redaction-level": {
        "description": "At most this much of the bodies is in the file.",
        "schema": {"type": "string", "enum": ["redacted", "full"]},
    },
}


def headers(*names: str) -> dict[str, Any]:
    """References to `HEADERS`, for a response of the description."""
    return {"headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names}}


READ = headers(IGNORED)
JOB = headers("Location", "Retry-After", COST_HEADER, "x-headrace-job-id", "x-headrace-feedback-token")
# Of each response to a request that was run as a job.
SUBMITTED = headers(
    IGNORED,
    "x-headrace-job-id",
    "x-headrace-route",
    "x-headrace-cache",
    "Age",
    "x-headrace-context",
    "x-headrace-max-tokens",
    "x-headrace-tokens-estimated",
    COST_HEADER,
    "x-headrace-feedback-token",
    "Idempotent-Replayed",
)
SUBMITTED_JOB = {"headers": SUBMITTED["headers"] | JOB["headers"] | headers("Preference-Applied")["headers"]}
_FAILED_JOB = headers(IGNORED, "x-headrace-job-id")
_RETRY = headers("Retry-After")

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is invalid; `param` names the field."},
    401: {"model": ErrorResponse, "description": "The API key is missing or invalid."},
    429: {"model": ErrorResponse, "description": "A rate limit or a quota is used up.", **_RETRY},
    503: {
        "model": ErrorResponse,
        "description": "A service is unavailable; retry after `Retry-After` seconds.",
        **_RETRY,
    },
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "Not found."}}
STREAMED: dict[str, Any] = {"text/event-stream": {}}
FAILED: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorResponse, "description": "The body is too large."},
    422: {"model": ErrorResponse, "description": "The Idempotency-Key was used with a different request."},
    409: {"model": ErrorResponse, "description": "The job was cancelled by another call.", **_FAILED_JOB},
    500: {"model": ErrorResponse, "description": "The job failed; `code` is the reason.", **_FAILED_JOB},
    502: {"model": ErrorResponse, "description": "The upstream server of this model failed.", **_FAILED_JOB},
    504: {
        "model": ErrorResponse,
        "description": "The deadline of Start-Before or Cancel-After has passed.",
        **_FAILED_JOB,
    },
}
