"""Anthropic's error body: `{"type": "error", "error": {type, message}}`. The type depends on the status.

https://docs.anthropic.com/en/api/errors
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel
from starlette.responses import JSONResponse
from starlette.types import Scope

from api.http.conventions import Conventions
from api.http.rate_limits import RateLimitStatus

PREFIX = "/v1/messages"

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class AnthropicErrorBody(BaseModel):
    """An error; the message names the field."""

    type: str
    message: str


class AnthropicErrorResponse(BaseModel):
    """Anthropic's error body."""

    type: Literal["error"] = "error"
    error: AnthropicErrorBody


def anthropic_error(status: int, message: str) -> dict[str, Any]:
    """Build the body of an error with this HTTP status."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return AnthropicErrorResponse(error=AnthropicErrorBody(type=kind, message=message)).model_dump()


def _error_response(_: Scope, status: int, message: str) -> JSONResponse:
    return JSONResponse(anthropic_error(status, message), status)


CONVENTIONS = Conventions(
    PREFIX, _error_response, request_id_header="request-id", rate_limit_headers=RateLimitStatus.anthropic_headers
)
