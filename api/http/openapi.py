"""Error responses for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from api.http.errors import ErrorResponse

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is invalid; `param` names the field."},
    401: {"model": ErrorResponse, "description": "The API key is missing or invalid."},
    429: {"model": ErrorResponse, "description": "A quota of the project is used up."},
    503: {"model": ErrorResponse, "description": "A service is unavailable; retry after `Retry-After` seconds."},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "Not found."}}
STREAMED: dict[str, Any] = {"text/event-stream": {}}
FAILED: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorResponse, "description": "The body is too large."},
    422: {"model": ErrorResponse, "description": "The Idempotency-Key was used with a different request."},
    409: {"model": ErrorResponse, "description": "The job was cancelled by another call."},
    500: {"model": ErrorResponse, "description": "The job failed; `code` is the reason."},
    502: {"model": ErrorResponse, "description": "The upstream server of this model failed."},
    504: {"model": ErrorResponse, "description": "The deadline of Start-Before or Cancel-After has passed."},
}
