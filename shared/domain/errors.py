"""The base class of Headrace's own errors, and the error codes of failed jobs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from decimal import Decimal
from enum import StrEnum

from shared.domain.budgets import BudgetScope


class HeadraceError(Exception):
    """An error occurred."""

    def __init__(self, message: str | None = None) -> None:
        # The docstring of a class is its default message.
        super().__init__(message or (type(self).__doc__ or "").strip())

    @property
    def message(self) -> str:
        return str(self)


class InvalidRequest(HeadraceError):
    """The request is not valid."""

    def __init__(self, message: str | None = None, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param

    def renamed(self, names: Mapping[str, str]) -> InvalidRequest:
        """Return the error with a job's parameter replaced by that of an API, if `names` has it.

        The name is replaced in `param` and at the start of the message.
        """
        name = names.get(self.param) if self.param is not None else None
        if name is None or self.param is None:
            return self
        rest = self.message.removeprefix(self.param)
        return InvalidRequest(name + rest if rest != self.message else self.message, param=name)


class ContextExceeded(InvalidRequest):
    """The prompt does not fit the model's context."""


class ContentRefused(InvalidRequest):
    """A provider's filter refuses what the request says."""


class Unavailable(HeadraceError):
    """A required service is unavailable."""


class UnreadableRow(Unavailable):
    """This version cannot read a row: a newer version wrote it, or it is damaged."""

    def __init__(self, what: str, item_id: str, reason: str) -> None:
        """`reason` is for the log; it quotes no values."""
        super().__init__(
            f"The {what} {item_id} cannot be read by this version of the server. If an upgrade is in progress, try"
            " again when it has finished."
        )
        self.what = what
        self.item_id = item_id
        self.reason = reason


class ErrorCode(StrEnum):
    """Why a job did not complete: `error.code` of the job."""

    CANCELLED = "cancelled"
    INVALID_REQUEST = "invalid_request"
    ENGINE_ERROR = "engine_error"
    UPSTREAM_ERROR = "upstream_error"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    WORKER_LOST = "worker_lost"
    CANNOT_CONTINUE = "cannot_continue"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    MODEL_NOT_FOUND = "model_not_found"


class Unauthorized(HeadraceError):
    """An API key is required: send `Authorization: Bearer <key>`."""


class Forbidden(HeadraceError):
    """The API key has no scope for this request."""

    def __init__(
        self, message: str | None = None, *, param: str | None = None, code: str = "insufficient_permissions"
    ) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class NotFound(HeadraceError):
    """Not found."""

    def __init__(self, message: str | None = None, *, param: str | None = None, code: str = "not_found") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class Conflict(HeadraceError):
    """The current state does not allow this operation."""


class FileInUse(Conflict):
    """A batch that has not ended reads this file; cancel it first."""


class KeyReused(Conflict):
    """This Idempotency-Key was used with another request."""


class UnsupportedEncoding(HeadraceError):
    """This Content-Encoding is not supported; the body of a JSON request may be compressed with gzip or deflate."""


class TooLarge(HeadraceError):
    """The request body is too large."""


class QuotaExceeded(HeadraceError):
    """A quota of the project is used up."""

    def __init__(self, message: str | None = None, *, retry_after_s: int = 1) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class BudgetExceeded(HeadraceError):
    """A budget is used up."""

    def __init__(
        self,
        message: str | None = None,
        *,
        scope: BudgetScope = BudgetScope.PROJECT,
        retry_after_s: int | None = None,
        holds: bool = False,
        downgrades: bool = False,
        amount: Decimal = Decimal(0),
        room: Decimal = Decimal(0),
    ) -> None:
        """`retry_after_s`: when the last of the windows ends that have no room; None if waiting does not help.
        `holds`: a background job may wait for that. `downgrades`: a cheaper model of its route may run the job.
        `amount`: what the job could cost at most, and `room`: what the windows have left, in dollars."""
        super().__init__(message)
        self.scope = scope
        self.retry_after_s = retry_after_s
        self.holds = holds
        self.downgrades = downgrades
        self.amount = amount
        self.room = room

    def without_cheaper(self, reason: str) -> BudgetExceeded:
        """The error if no cheaper model runs the job; `reason` is a sentence that says why."""
        return BudgetExceeded(
            f"{self.message} {reason}",
            scope=self.scope,
            retry_after_s=self.retry_after_s,
            amount=self.amount,
            room=self.room,
        )


class RateLimited(QuotaExceeded):
    """A rate limit is reached."""

    def __init__(
        self, reason: str, *, wait_s: float | None, asked: Mapping[str, tuple[int, int]] | None = None
    ) -> None:
        """`wait_s`: after so many seconds the request would be accepted; None if it never is. `asked`: by the keys of
        the windows of hard limits, what it needs of them and their limits."""
        message = reason if wait_s is None else f"{reason} Try again in {wait_s:.3f} s."
        super().__init__(message, retry_after_s=1 if wait_s is None else math.ceil(wait_s))
        self.reason = reason
        self.wait_s = wait_s
        self.asked = asked or {}

    def with_wait(self, wait_s: float | None) -> RateLimited:
        """The error of a request that would be accepted after another time."""
        return RateLimited(self.reason, wait_s=wait_s, asked=self.asked)


class UpstreamFailed(HeadraceError):
    """The job behind a synchronous request failed."""

    def __init__(self, message: str, *, code: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param
