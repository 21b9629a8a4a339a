"""Error responses, as the OpenAPI description lists them."""

from __future__ import annotations

from typing import Any

from api.http.errors import ErrorResponse

ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorResponse, "description": "The request is not valid; `param` names the field."},
    401: {"model": ErrorResponse, "description": "No valid API key."},
    503: {"model": ErrorResponse, "description": "A service is away; `Retry-After` says when to try again."},
}
NOT_FOUND: dict[int | str, dict[str, Any]] = {
    404: {"model": ErrorResponse, "description": "No such job or model, or not yours."}
}
STREAMED: dict[str, Any] = {"text/event-stream": {}}
FAILED: dict[int | str, dict[str, Any]] = {
    413: {"model": ErrorResponse, "description": "The body is too large."},
    422: {"model": ErrorResponse, "description": "The Idempotency-Key was used with another request."},
    409: {"model": ErrorResponse, "description": "The job was cancelled by another call."},
    500: {"model": ErrorResponse, "description": "The job failed; `code` says why."},
    502: {"model": ErrorResponse, "description": "The server that this model is relayed to failed."},
    504: {"model": ErrorResponse, "description": "Start-Before or Cancel-After has passed."},
}
