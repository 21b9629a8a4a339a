"""Classifies the failures of requests to an upstream: retry, fail the job, or refuse the request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp

from shared.domain.errors import InvalidRequest
from workers.engines.base import BusyReason, UpstreamError
from workers.engines.upstream.retry_after import retry_after_s

INVALID_REQUEST = (400, 404, 413, 422)
KEY_REFUSED = (401, 403)
NO_CREDIT = 402
# In addition to every status from 500 on.
TIMED_OUT, LIMITED = 408, 429
TRANSIENT = (TIMED_OUT, LIMITED)


class TransientError(Exception):
    """A failure that may not recur. The message is for the client, `details`, which quote no content, for the log."""

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


class KeyUnusable(TransientError):
    """The upstream refuses the key, or its account is exhausted: another key may be accepted.

    `is_final`: the request fails if there is no other key; otherwise it may be sent again later.
    """

    is_final = True


class RunLost(UpstreamError):
    """The upstream no longer has the request."""

    # Raised for a request that an upstream runs, if it has forgotten the request or changed its output. The request is
    # sent again if there was no output; otherwise the answer cannot be continued.


@dataclass(frozen=True, slots=True)
class ErrorBody:
    """An upstream's error: its message, the request field that it names, and the HTTP status that it stands for.

    `request_id` is the upstream's id of the request, for its support. `exhausted`: the key's account has no credit.
    """

    message: str
    param: str | None = None
    status: int | None = None
    request_id: str | None = None
    exhausted: bool = False


def status_error(
    status: int, headers: Mapping[str, str], body: ErrorBody, default_param: str
) -> InvalidRequest | TransientError | UpstreamError:
    """The error for a response other than 200."""
    message = body.message
    if status in INVALID_REQUEST:
        return InvalidRequest(
            message or f"The upstream refused the request (HTTP {status}).", param=body.param or default_param
        )
    text = f"The upstream answered HTTP {status}{f': {message}' if message else ''}."
    if status in TRANSIENT or status >= 500:
        return TransientError(text, f"HTTP {status}", retry_after_s(headers), _reason(status))
    return UpstreamError(text)


def exhausted_error(status: int, headers: Mapping[str, str], body: ErrorBody) -> KeyUnusable:
    """The error for a key whose account has no credit left."""
    text = f"The upstream answered HTTP {status}{f': {body.message}' if body.message else ''}."
    details = f"the account of the key has no credit (HTTP {status})"
    error = KeyUnusable(text, details, retry_after_s(headers), _reason(status))
    error.is_final = status != LIMITED
    return error


def reported_error(body: ErrorBody, default_param: str) -> InvalidRequest | TransientError | UpstreamError:
    """The error for one that was reported within a response of status 200."""
    text = f"The upstream failed: {body.message or 'no reason was given'}"
    match body.status:
        case status if status in INVALID_REQUEST:
            return InvalidRequest(body.message or text, param=body.param or default_param)
        case None:
            return UpstreamError(text)
        case status if status in TRANSIENT or status >= 500:
            return TransientError(text, f"error {status} in the answer", reason=_reason(status))
        case _:
            return UpstreamError(text)


def connection_error(error: aiohttp.ClientError | TimeoutError) -> TransientError:
    """The error for a connection that failed. The exception's text may quote the answer, so most of it is dropped."""
    details = type(error).__name__
    match error:
        case TimeoutError():
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
