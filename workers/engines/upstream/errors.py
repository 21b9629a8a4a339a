"""Classifies the failures of requests to an upstream: retry, fail the job, or refuse the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import aiohttp

from shared.domain.errors import ContentRefused, ContextExceeded, InvalidRequest
from workers.engines.base import BusyReason, EngineError, UpstreamError
from workers.engines.upstream.error_phrases import (
    is_about_content,
    is_about_key,
    is_loading,
    is_too_long,
    refuses_length,
)
from workers.engines.upstream.retry_after import retry_after_s

INVALID_REQUEST = (400, 413, 422)
KEY_REFUSED = 401
NO_CREDIT = 402
# Refuses the key, or what the request says, or neither: its body tells.
FORBIDDEN = 403
# An address without the model, or a file that the request names.
NOT_FOUND = 404
# In addition to every status from 500 on. Gemini cancels requests of itself (499).
TIMED_OUT, CONFLICT, TOO_EARLY, LIMITED, CANCELLED = 408, 409, 425, 429, 499
TRANSIENT = (TIMED_OUT, CONFLICT, TOO_EARLY, LIMITED, CANCELLED)
# Statuses of servers that report every failure as one of their own. Their bodies may say that it is the request's.
_UNSPECIFIC = (500, 502)
# Responses that are the same each time: their headers exceed the limits, or their encoding was not requested.
_UNREADABLE = ("Can not decode content-encoding", "Got more than", "Too many headers")
_NAMES_INPUT = re.compile(r"\b(?:file|image|document|attachment|container)s?\b", re.IGNORECASE)


class TransientError(Exception):
    """A failure that may not recur. The message is for the client, `details`, which quote no content, for the log.

    `is_final`: the request fails if no other endpoint accepts it; otherwise it may be sent again later.
    """

    is_final = False

    def __init__(
        self,
        message: str,
        details: str,
        retry_after_s: float | None = None,
        reason: BusyReason = BusyReason.SERVER_ERROR,
    ) -> None:
        """`retry_after_s`: the delay that the upstream named."""
        super().__init__(message)
        self.details = details
        self.reason = reason
        self.retry_after_s = retry_after_s

    @property
    def final(self) -> InvalidRequest | EngineError:
        """The error of a request that is not sent again."""
        return UpstreamError(str(self))


class KeyUnusable(TransientError):
    """The upstream refuses the key, or its account is exhausted: another key may be accepted."""

    is_final = True


class NotHere(TransientError):
    """An endpoint refuses a request that another one may accept. Neither the endpoint nor its key is to blame.

    `by_upstream`: whether the upstream may be out of order.
    """

    is_final = True

    def __init__(
        self,
        error: InvalidRequest | UpstreamError,
        details: str,
        *,
        by_upstream: bool,
        reason: BusyReason = BusyReason.SERVER_ERROR,
    ) -> None:
        super().__init__(error.message, details, reason=reason)
        self._error = error
        self.by_upstream = by_upstream

    @property
    def final(self) -> InvalidRequest | EngineError:
        return self._error


class RunLost(UpstreamError):
    """The upstream no longer has the request."""

    # Raised for a request that an upstream runs, if it has forgotten the request or changed its output. The request is
    # sent again if there was no output; otherwise the answer cannot be continued.


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An upstream's error: its message, the request field that it names, and the HTTP status that it stands for.

    `request_id` is the upstream's id of the request, for its support. `exhausted`: the key's account has no credit.
    `key_refused`: the key is refused, whatever the status. `of_content`: what the request says is refused.
    `of_output`: the request is accepted, but what the model wrote is not valid. `too_long`: the request does not fit
    the model's context. `retry_after_s`: the delay that the body names.
    """

    message: str
    param: str | None = None
    status: int | None = None
    request_id: str | None = None
    exhausted: bool = False
    key_refused: bool = False
    of_content: bool = False
    of_output: bool = False
    too_long: bool = False
    retry_after_s: float | None = None

    def of_program(self) -> ErrorBody:
        """This error as that of a program which the upstream runs: its keys and accounts are not the upstream's."""
        status = None if self.status in (KEY_REFUSED, NO_CREDIT, FORBIDDEN) else self.status
        return replace(self, status=status, exhausted=False, key_refused=False)


Failure = InvalidRequest | TransientError | UpstreamError


def status_error(status: int, headers: Mapping[str, str], body: ErrorBody, default_param: str) -> Failure:
    """The error for a response other than 200."""
    message = body.message
    text = f"The upstream answered HTTP {status}{f': {message}' if message else ''}."
    refusal = _refusal(message or f"The upstream refused the request (HTTP {status}).", body, default_param)
    delay_s = retry_after_s(headers)
    if delay_s is None:
        delay_s = body.retry_after_s
    if status == KEY_REFUSED or body.key_refused:
        return _key_refused(status)
    if status == NO_CREDIT or body.exhausted:
        return _exhausted(text, status, delay_s)
    if status == FORBIDDEN:
        return _forbidden(text, refusal, body)
    if status == NOT_FOUND:
        return _not_found(text, refusal, body)
    if status in INVALID_REQUEST and body.of_output:
        return UpstreamError(text)
    if status in INVALID_REQUEST:
        return TransientError(text, "the model is being loaded", delay_s) if is_loading(message) else refusal
    if status in _UNSPECIFIC and (body.status in INVALID_REQUEST or is_too_long(message)):
        return refusal
    if status in TRANSIENT or status >= 500:
        return TransientError(text, f"HTTP {status}", delay_s, _reason(status))
    return UpstreamError(text)


def reported_error(body: ErrorBody, default_param: str) -> Failure:
    """The error for one that was reported within a response of status 200."""
    text = f"The upstream failed: {body.message or 'no reason was given'}"
    refusal = _refusal(body.message or text, body, default_param)
    status = body.status
    if status == KEY_REFUSED or body.key_refused:
        return _key_refused(KEY_REFUSED)
    if status == NO_CREDIT or body.exhausted:
        return _exhausted(text, status or NO_CREDIT, body.retry_after_s)
    if status == FORBIDDEN:
        return _forbidden(text, refusal, body)
    if status == NOT_FOUND:
        return _not_found(text, refusal, body)
    if status in INVALID_REQUEST:
        return UpstreamError(text) if body.of_output else refusal
    if status in (None, *_UNSPECIFIC) and is_too_long(body.message):
        return refusal
    if status is not None and (status in TRANSIENT or status >= 500):
        return TransientError(text, f"error {status} in the answer", body.retry_after_s, _reason(status))
    return UpstreamError(text)


def _refusal(message: str, body: ErrorBody, default_param: str) -> InvalidRequest:
    if body.of_content or is_about_content(body.message):
        kind: type[InvalidRequest] = ContentRefused
    else:
        kind = ContextExceeded if body.too_long or refuses_length(body.message) else InvalidRequest
    return kind(message, param=body.param or default_param)


def _key_refused(status: int) -> KeyUnusable:
    return KeyUnusable(f"The upstream refused the key (HTTP {status}).", f"the key was refused (HTTP {status})")


def _exhausted(text: str, status: int, delay_s: float | None) -> KeyUnusable:
    error = KeyUnusable(text, f"the account of the key has no credit (HTTP {status})", delay_s, _reason(status))
    error.is_final = status != LIMITED
    return error


def _forbidden(text: str, refusal: InvalidRequest, body: ErrorBody) -> Failure:
    """Any client could have the key set aside by what it says, so the key is blamed only if the body does so.

    A body that speaks of both is not clear: accounts are refused for what they have sent before.
    """
    of_key, of_content = is_about_key(body.message), is_about_content(body.message)
    if body.of_content or (of_content and not of_key):
        return refusal
    if of_key and not of_content:
        return _key_refused(FORBIDDEN)
    return NotHere(UpstreamError(text), f"HTTP {FORBIDDEN}", by_upstream=True)


def _not_found(text: str, refusal: InvalidRequest, body: ErrorBody) -> Failure:
    of_request = body.param not in (None, "model") or _NAMES_INPUT.search(body.message)
    return NotHere(refusal if of_request else UpstreamError(text), f"HTTP {NOT_FOUND}", by_upstream=False)


def ended_early() -> TransientError:
    """The error for a body that ended before its answer."""
    text = "The upstream ended its answer too early."
    return TransientError(text, "the body ended before the answer", reason=BusyReason.BROKEN)


def connection_error(error: aiohttp.ClientError | TimeoutError) -> TransientError:
    """The error for a connection that failed. The exception's text may quote the answer, so most of it is dropped."""
    details = type(error).__name__
    if isinstance(error.__cause__, aiohttp.http.HttpProcessingError):
        what = error.__cause__.message.partition("\n")[0].partition(":")[0][:100]
        details = f"{details}: {what}"
        if what.startswith(_UNREADABLE):
            failed = UpstreamError("The upstream sent a response that cannot be read.")
            return NotHere(failed, details, reason=BusyReason.BROKEN, by_upstream=True)
    match error:
        case TimeoutError():
            details = f"{details}: {error}" if str(error) else details
            return TransientError("The upstream did not answer in time.", details, reason=BusyReason.TIMEOUT)
        case aiohttp.ClientConnectorError():
            details = f"{details}: {error}"
            return TransientError("The upstream cannot be reached.", details, reason=BusyReason.UNREACHABLE)
        case _:
            return TransientError("The connection to the upstream broke.", details, reason=BusyReason.BROKEN)


def _reason(status: int) -> BusyReason:
    if status == LIMITED:
        return BusyReason.RATE_LIMIT
    return BusyReason.TIMEOUT if status == TIMED_OUT else BusyReason.SERVER_ERROR
