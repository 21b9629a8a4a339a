"""Reads the errors of OpenAI-compatible servers, whether they are the body of a response or an event of a stream."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import orjson

from workers.engines.upstream.errors import ErrorBody

MAX_MESSAGE = 500
_MESSAGES = ("message", "detail", "details", "error_msg", "errorMessage", "msg", "reason", "errors", "error")
_STATUSES = ("code", "status", "status_code", "statusCode", "http_code")
# Types and codes of errors that name no HTTP status.
_STATUS_OF = {
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "exceed_context_size_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "overloaded_error": 529,
    "server_error": 500,
    "internal_server_error": 500,
    "api_error": 500,
    "service_unavailable": 503,
    # TGI's, as `error_type`.
    "validation": 422,
    "tool_error": 422,
    "template_error": 422,
    "overloaded": 429,
    "provider_unavailable": 503,
    "timeout": 504,
    "timeout_error": 504,
}
# Types and codes of errors of an account without credit, whatever their status.
_EXHAUSTED = {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"}
_REQUEST_ID_HEADERS = ("request-id", "x-request-id")
_REQUEST_ID = re.compile(r"[\w.:-]{1,100}")
_PARAM = re.compile(r"[A-Za-z_][\w.\[\]-]{0,99}")
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]+")
_TITLE = re.compile(r"<title[^>]*>([^<]*)", re.IGNORECASE)


def parse_error(content: bytes) -> ErrorBody:
    """Parse an error's body in the shape of any server: JSON, a page, or plain text."""
    text = content.decode("utf-8", "replace").strip()
    try:
        error = orjson.loads(content)
    except orjson.JSONDecodeError:
        if text.startswith("<"):
            title = _TITLE.search(text)
            return ErrorBody(_cut(title[1]) if title else "")
        return ErrorBody(_cut(text))
    return error_of(error)


def error_of(error: Any) -> ErrorBody:
    """Read a decoded error."""
    try:
        return _error_of(error)
    except RecursionError:
        return ErrorBody("")


def _error_of(error: Any) -> ErrorBody:
    if isinstance(error, list) and error and isinstance(error[0], dict) and "error" in error[0]:
        error = error[0]
    status, param, request_id, exhausted = None, None, None, False
    while True:
        if not isinstance(error, dict):
            return ErrorBody(_cut(_message(error)), param, status, request_id, exhausted)
        exhausted = exhausted or any(
            isinstance(value := error.get(name), str) and value.lower() in _EXHAUSTED for name in ("type", "code")
        )
        if isinstance(found := error.get("request_id"), str) and _REQUEST_ID.fullmatch(found):
            request_id = found
        status = _status(error) or status
        named = error.get("param")
        if isinstance(named, str) and _PARAM.fullmatch(named):
            param = named
        inner = error.get("error")
        if not isinstance(inner, dict):
            param = param or _location(error)
            return ErrorBody(_cut(_message(error)), param, status, request_id, exhausted)
        error = inner


def request_id_of(headers: Mapping[str, str]) -> str | None:
    """The upstream's id of a request, from the headers of its response."""
    found = next((headers[name] for name in _REQUEST_ID_HEADERS if name in headers), "")
    return found if _REQUEST_ID.fullmatch(found) else None


def is_error(chunk: dict[str, Any]) -> bool:
    """Whether an event without choices reports an error."""
    return (
        chunk.get("object") in ("error", "Error")
        or chunk.get("type") == "error"
        or chunk.get("success") is False
        or any(chunk.get(name) for name in ("detail", "details", "errors", "error_msg", "errorMessage"))
        or bool(chunk.get("message") and "code" in chunk)
    )


def is_blank(error: Any) -> bool:
    """Whether an error has no content: some servers send its empty members with each chunk."""
    return isinstance(error, dict) and not any(error.values())


def _status(error: dict[str, Any]) -> int | None:
    for name in _STATUSES:
        value = error.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    for value in (error.get("type"), error.get("code"), error.get("error_type")):
        if isinstance(value, str) and (status := _STATUS_OF.get(value.lower())):
            return status
    return None


def _message(error: Any) -> str:
    if isinstance(error, str):
        if error.lstrip().startswith(("{", "[")):  # JSON in a string
            try:
                return _message(orjson.loads(error))
            except orjson.JSONDecodeError:
                pass
        return error
    if isinstance(error, dict):
        message = next((error[name] for name in _MESSAGES if error.get(name)), "")
        place = ".".join(map(str, error["loc"])) if isinstance(error.get("loc"), list) else ""
        return f"{place}: {_message(message)}" if place else _message(message)
    if isinstance(error, list):
        return "; ".join(filter(None, map(_message, error[:5])))
    return "" if error is None else orjson.dumps(error).decode()


def _location(error: dict[str, Any]) -> str | None:
    """The request field that a validation error in pydantic's format names first."""
    for name in ("detail", "message", "errors"):
        details = error.get(name)
        if isinstance(details, dict):
            return _location(details)
        if isinstance(details, list) and details and isinstance(details[0], dict):
            place = details[0].get("loc")
            if isinstance(place, list):
                names = [str(part) for part in place if part != "body"]
                return names[0] if names and _PARAM.fullmatch(names[0]) else None
    return None


def _cut(message: str) -> str:
    message = message[: 2 * MAX_MESSAGE].encode("utf-8", "replace").decode()  # without lone surrogates
    return _CONTROLS.sub(" ", message).strip()[:MAX_MESSAGE]
