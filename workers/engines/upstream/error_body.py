"""Reads the errors of OpenAI-compatible servers, whether they are the body of a response or an event of a stream."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import orjson

from workers.engines.upstream.error_phrases import refuses_key, says_no_credit, status_of_message
from workers.engines.upstream.errors import INVALID_REQUEST, ErrorBody
from workers.engines.upstream.retry_after import delay_in_body

MAX_MESSAGE = 500
_MESSAGES = (
    "message", "detail", "details", "error_msg", "errorMessage", "msg", "status_msg", "reason", "errors", "error"
)  # fmt: skip
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
    "service_unavailable_error": 503,
    "engine_overloaded_error": 429,
    # TGI's, as `error_type`.
    "validation": 422,
    "tool_error": 422,
    "template_error": 422,
    "overloaded": 429,
    "provider_unavailable": 503,
    "timeout": 504,
    "timeout_error": 504,
}
# MiniMax's, in `base_resp`: https://platform.minimax.io/docs/api-reference/errorcode
_MINIMAX_STATUSES = {1000: 500, 1001: 504, 1002: 429, 1004: 401, 1008: 402, 1024: 500, 1033: 500, 1039: 429, 2013: 400}
# Types and codes of errors of an account without credit, whatever their status.
_EXHAUSTED = {
    "insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error", "arrearage",
    "exceeded_current_quota_error", "insufficient_balance_error", "insufficient_balance", "budget_exceeded",
}  # fmt: skip
_KEY_REFUSED = {"invalid_api_key", "api_key_invalid", "api_key_expired"}
_TOO_LONG = {
    "context_length_exceeded", "exceed_context_size_error", "model_context_window_exceeded", "context_window_exceeded",
    "model_max_prompt_tokens_exceeded", "tokens_limit_reached",
}  # fmt: skip
# Groq's: the model has written a call of a tool, or JSON, that is not valid.
_OF_OUTPUT = {"tool_use_failed", "json_validate_failed", "output_parse_failed"}
_OF_CONTENT = {"content_policy_violation", "content_filter", "responsibleaipolicyviolation", "refusal"}
# What DeepSeek names as the code of failures of any type.
_ANY_FAILURE = "invalid_request_error"
# Members of an answer: a document with one of them is no error only because it also has a message.
_ANSWER_PARTS = ("choices", "object", "usage", "model", "delta", "output")
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
    body = ErrorBody("")
    while isinstance(error, dict):
        body = _with_members(body, error)
        inner = error.get("error")
        if not isinstance(inner, dict):
            inner = error.get("base_resp")
        if not isinstance(inner, dict):
            body = replace(body, param=body.param or _location(error))
            break
        error = inner
    own = error if isinstance(error, str) else _message_member(error)
    if isinstance(own, str):
        body = replace(
            body,
            exhausted=body.exhausted or says_no_credit(own),
            key_refused=body.key_refused or refuses_key(own),
        )
    return _with_wrapped(replace(body, message=_cut(_message(error))), own, error)


def _with_members(body: ErrorBody, error: dict[str, Any]) -> ErrorBody:
    """What the members of an object of an error say, besides the message. Inner objects say more than outer ones."""
    kinds = {value.lower() for name in ("type", "code") if isinstance(value := error.get(name), str)}
    details = error.get("details")
    kinds |= {
        reason.lower()
        for detail in (details if isinstance(details, list) else ())
        if isinstance(detail, dict) and isinstance(reason := detail.get("reason"), str)
    }
    request_id, param, metadata = error.get("request_id"), error.get("param"), error.get("metadata")
    delay_s = delay_in_body(error)
    return replace(
        body,
        param=param if isinstance(param, str) and _PARAM.fullmatch(param) else body.param,
        status=_status(error) or body.status,
        request_id=request_id if isinstance(request_id, str) and _REQUEST_ID.fullmatch(request_id) else body.request_id,
        exhausted=body.exhausted or not kinds.isdisjoint(_EXHAUSTED),
        key_refused=body.key_refused or not kinds.isdisjoint(_KEY_REFUSED),
        of_content=body.of_content
        or not kinds.isdisjoint(_OF_CONTENT)
        or (isinstance(metadata, dict) and bool(metadata.get("flagged_input"))),
        of_output=body.of_output or not kinds.isdisjoint(_OF_OUTPUT),
        too_long=body.too_long or not kinds.isdisjoint(_TOO_LONG),
        retry_after_s=body.retry_after_s if delay_s is None else delay_s,
    )


def _with_wrapped(body: ErrorBody, own: Any, error: Any) -> ErrorBody:
    """Add the error of a server behind this one, which it passes on in a text, or as OpenRouter does.

    It says what is wrong with the request. What it says about keys and accounts is about those of the server between.
    """
    metadata = error.get("metadata") if isinstance(error, dict) else None
    raw = metadata.get("raw") if isinstance(metadata, dict) else None
    wrapped: Any = raw or own
    if isinstance(wrapped, str):
        if wrapped.lstrip().startswith(("{", "[")):
            with contextlib.suppress(orjson.JSONDecodeError):
                return _with_inner(body, error_of(orjson.loads(wrapped)))
        return replace(body, message=_cut(wrapped)) if raw else body
    return _with_inner(body, error_of(raw)) if isinstance(raw, dict) else body


def _with_inner(body: ErrorBody, inner: ErrorBody) -> ErrorBody:
    is_refusal = body.status in (None, 500, 502) and inner.status in INVALID_REQUEST
    return replace(
        body,
        message=inner.message or body.message,
        param=body.param or inner.param,
        of_output=body.of_output or inner.of_output,
        too_long=body.too_long or inner.too_long,
        status=inner.status if is_refusal else body.status,
        retry_after_s=inner.retry_after_s if body.retry_after_s is None else body.retry_after_s,
    )


def _message_member(error: Any) -> Any:
    return next((error[name] for name in _MESSAGES if error.get(name)), None) if isinstance(error, dict) else None


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
        or bool(chunk.get("msg") and chunk.get("code") not in (None, 0, 200, "0", "200"))
        or (isinstance(base := chunk.get("base_resp"), dict) and bool(base.get("status_code")))
    )


def is_error_document(document: dict[str, Any]) -> bool:
    """Whether a body that is one document without events or choices is an error, as some gateways write it."""
    message = document.get("message") or document.get("msg")
    has_failed = str(document.get("status", "error")).lower() in ("error", "failed", "failure", "fail")
    return isinstance(message, str) and has_failed and not any(document.get(name) for name in _ANSWER_PARTS)


def is_blank(error: Any) -> bool:
    """Whether an error has no content: some servers send its empty members with each chunk."""
    return isinstance(error, dict) and not any(error.values())


def _status(error: dict[str, Any]) -> int | None:
    if (minimax := error.get("status_code")) in _MINIMAX_STATUSES and "status_msg" in error:
        return _MINIMAX_STATUSES[minimax]
    for name in _STATUSES:
        value = error.get(name)
        if isinstance(value, str) and value.isdecimal() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    kind, code = error.get("type"), error.get("code")
    for value in (kind, None if kind and code == _ANY_FAILURE else code, error.get("error_type")):
        if isinstance(value, str) and (status := _STATUS_OF.get(value.lower())):
            return status
    message = error.get("message")
    return status_of_message(message) if isinstance(message, str) and is_error_document(error) else None


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
