"""Maps exceptions to HTTP status codes and OpenAI's error body: `{"error": {message, type, param, code}}`.

A dialect can define another body for its path prefix; see `api.http.conventions`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

import sqlalchemy.exc
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from redis.exceptions import RedisError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from api.http.conventions import Conventions, find_conventions
from api.http.rate_limits import retry_headers
from api.http.validation import describe
from shared.domain.errors import (
    BudgetExceeded,
    Conflict,
    Forbidden,
    HeadraceError,
    InvalidRequest,
    KeyReused,
    NotFound,
    QuotaExceeded,
    RateLimited,
    TooLarge,
    Unauthorized,
    Unavailable,
    UnsupportedEncoding,
    UpstreamFailed,
)
from shared.domain.job import Failure
from shared.domain.request_context import REQUEST_CONTEXT
from shared.runtime.outages import is_database_outage, is_redis_outage

logger = logging.getLogger(__name__)

RETRY_AFTER_S = "2"
# The job has ended, or cannot be admitted soon, if ever. Without this header, OpenAI's clients would submit it again,
# up to twice.
NO_RETRY = {"x-should-retry": "false"}

# PostgreSQL's SQLSTATEs for a text with the character NUL, which it cannot store: as `text`, and in `jsonb`.
_NUL_IN_TEXT = ("22021", "22P05")

T = TypeVar("T", str, str | None)


class IncompleteResponse(Exception):
    """A response that has begun cannot be completed. Its connection is closed, so that the client knows."""


class ErrorBody(BaseModel):
    """An error: what went wrong, and in which parameter."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorResponse(BaseModel):
    """OpenAI's error body."""

    error: ErrorBody


class JsonErrorResponse(JSONResponse):
    """An error response. Its body follows the conventions of the request's path."""

    def __init__(self, status: int, body: ErrorResponse, headers: Mapping[str, str]) -> None:
        super().__init__(body.model_dump(), status, headers)
        self.message = body.error.message
        self._extra_headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        registered: Sequence[Conventions] = scope["app"].state.conventions
        conventions = find_conventions(registered, scope["path"])
        if conventions is None or conventions.error_response is None:
            await super().__call__(scope, receive, send)
            return
        response = conventions.error_response(scope, self.status_code, self.message)
        response.headers.update(self._extra_headers)
        await response(scope, receive, send)


def error_response(
    status: int,
    message: str,
    *,
    kind: str = "invalid_request_error",
    param: str | None = None,
    code: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> JsonErrorResponse:
    body = ErrorResponse(error=ErrorBody(message=_encodable(message), type=kind, param=_encodable(param), code=code))
    return JsonErrorResponse(status, body, headers or {})


def _encodable(text: T) -> T:
    """Replace unpaired surrogates, which an error may quote from the client's request."""
    return text.encode("utf-8", "replace").decode() if isinstance(text, str) else text


def unavailable(what: str) -> JsonErrorResponse:
    return error_response(
        503,
        f"{what} is temporarily unavailable; try again.",
        kind="server_error",
        code="unavailable",
        headers={"Retry-After": RETRY_AFTER_S},
    )


def stopping() -> JsonErrorResponse:
    return error_response(
        503,
        "This server is shutting down; try again.",
        kind="server_error",
        code="unavailable",
        headers={"Retry-After": RETRY_AFTER_S},
    )


def render(error: Exception) -> JsonErrorResponse:
    """The response to an exception that no route has handled."""
    match error:
        case InvalidRequest():
            return error_response(400, error.message, param=error.param)
        case Unauthorized():
            return error_response(401, error.message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        case Forbidden():
            return error_response(403, error.message, param=error.param, code=error.code)
        case NotFound():
            return error_response(404, error.message, param=error.param, code=error.code)
        case KeyReused():
            return error_response(422, error.message, param="Idempotency-Key", code="idempotency_key_reused")
        case Conflict():
            return error_response(409, error.message, kind="conflict_error")
        case TooLarge():
            return error_response(413, error.message)
        case UnsupportedEncoding():
            return error_response(415, error.message, headers={"Accept-Encoding": "gzip, deflate"})
        case RateLimited():
            headers = NO_RETRY if error.wait_s is None else retry_headers(error.wait_s)
            return error_response(
                429, error.message, kind="rate_limit_error", code="rate_limit_exceeded", headers=headers
            )
        case QuotaExceeded():
            headers = {"Retry-After": str(error.retry_after_s)}
            return error_response(429, error.message, kind="rate_limit_error", code="quota_exceeded", headers=headers)
        case BudgetExceeded():
            headers = dict(NO_RETRY)
            if error.retry_after_s is not None:
                headers["Retry-After"] = str(error.retry_after_s)
            kind = code = "insufficient_quota"
            return error_response(429, error.message, kind=kind, code=code, headers=headers)
        case UpstreamFailed(code="invalid_request"):
            return error_response(400, error.message, param=error.param, code=error.code, headers=NO_RETRY)
        case UpstreamFailed(code="model_not_found"):
            return error_response(404, error.message, param="model", code=error.code, headers=NO_RETRY)
        case UpstreamFailed(code="deadline_exceeded"):
            return error_response(504, error.message, kind="server_error", code=error.code, headers=NO_RETRY)
        case UpstreamFailed(code="cancelled"):
            return error_response(409, error.message, kind="conflict_error", code=error.code, headers=NO_RETRY)
        case UpstreamFailed(code="upstream_error"):
            return error_response(502, error.message, kind="server_error", code=error.code, headers=NO_RETRY)
        case UpstreamFailed():
            return error_response(500, error.message, kind="server_error", code=error.code, headers=NO_RETRY)
        case ClientDisconnect():
            return error_response(499, "The client has disconnected.")  # for metrics and traces: no client receives it
        case Unavailable():
            return error_response(
                503, error.message, kind="server_error", code="unavailable", headers={"Retry-After": RETRY_AFTER_S}
            )
    if getattr(getattr(error, "orig", error), "sqlstate", None) in _NUL_IN_TEXT:
        return error_response(400, "A text of the request has the character NUL.")
    if isinstance(error, RedisError) and is_redis_outage(error):
        logger.warning("Redis unavailable: %s", error)
        return unavailable("Redis")
    if is_database_outage(error):
        logger.warning("PostgreSQL unavailable: %s", error)
        return unavailable("The database")
    logger.error("request=%s unexpected error", REQUEST_CONTEXT.get().request_id, exc_info=error)
    return error_response(500, "The server had an error.", kind="server_error", code="internal_error")


def render_failure(failure: Failure) -> JsonErrorResponse:
    """The response of a synchronous call whose job failed, and the content of the error in its stream."""
    return render(UpstreamFailed(failure.message, code=failure.code, param=failure.param))


def install(app: FastAPI, conventions: Sequence[Conventions]) -> None:
    """Register the error handlers: OpenAI's error body, or that of the conventions for the path."""
    app.state.conventions = tuple(conventions)

    async def on_error(_: Request, error: Exception) -> JsonErrorResponse:
        return render(error)

    async def on_invalid(_: Request, error: Exception) -> JsonErrorResponse:
        assert isinstance(error, RequestValidationError)
        message, param = describe(error.errors())
        return error_response(400, message, param=param)

    async def on_http(request: Request, error: Exception) -> JsonErrorResponse:
        assert isinstance(error, HTTPException)
        method, path, headers = request.method, request.scope["path"], error.headers or {}
        match error.status_code:
            case 404:
                return error_response(404, f"There is no {method} {path}.", code="not_found")
            case 405:
                return error_response(
                    405, f"{path} does not support {method}.", code="method_not_allowed", headers=headers
                )
            case 400 if isinstance(error.__cause__, HeadraceError):
                return render(error.__cause__)
            case 400 if error.__cause__ is not None:
                return error_response(400, f"The body is not valid JSON: {_json_error(error.__cause__)}.")
        kind = "server_error" if error.status_code >= 500 else "invalid_request_error"
        return error_response(error.status_code, str(error.detail), kind=kind, headers=headers)

    for kind in (HeadraceError, ClientDisconnect, RedisError, sqlalchemy.exc.SQLAlchemyError, OSError, Exception):
        app.add_exception_handler(kind, on_error)
    app.add_exception_handler(RequestValidationError, on_invalid)
    app.add_exception_handler(HTTPException, on_http)


def _json_error(error: BaseException) -> str:
    """Why a body was rejected that may be grammatically valid JSON."""
    match error:
        case RecursionError():
            return "it is nested too deeply"
        case UnicodeError():
            return "it is not UTF-8"
        case ValueError():
            return "a number has too many digits"
        case _:
            return "it cannot be parsed"
