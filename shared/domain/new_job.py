"""A job that is to be created, and the key that lets a client repeat its creation."""

from __future__ import annotations

from dataclasses import dataclass, field

from shared.domain.answer_options import NO_REQUEST_OPTIONS, RequestOptions
from shared.domain.budgets import WindowReservation
from shared.domain.conversation import ConversationNote, EarlierAnswer
from shared.domain.decisions import NO_DECISIONS, Decisions
from shared.domain.log_level import LogLevel
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.request_context import REQUEST_CONTEXT, RequestContext
from shared.domain.request_webhook import RequestWebhook
from shared.domain.response import ResponseFacts


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job to create. `start_within_s` and `finish_within_s` count from its creation.

    Until it is admitted, `model` may be a route, and `options` say how it may be answered; admission replaces the route
    by a model, and sets the fields from `log_level` on; a level that is set before is the highest possible one.
    `earlier_answer` is the one that the request continues,
    if it names one. `note` is to be remembered before the job is stored. `delay_s`: no worker starts the job earlier.
    `reservations` are made with the insertion of the job, at most one in each window.
    """

    owner: Owner
    model: str
    priority: int
    request: GenerateRequest
    metadata: dict[str, str] = field(default_factory=dict)
    start_within_s: float | None = None
    finish_within_s: float | None = None
    request_context: RequestContext = field(default_factory=REQUEST_CONTEXT.get)
    response: ResponseFacts | None = None
    webhook: RequestWebhook | None = None
    options: RequestOptions = NO_REQUEST_OPTIONS
    earlier_answer: EarlierAnswer | None = None
    log_level: LogLevel | None = None
    requested_model: str | None = None
    kind: str | None = None
    decisions: Decisions = NO_DECISIONS
    cache_key: bytes | None = None
    note: ConversationNote | None = None
    delay_s: float | None = None
    reservations: tuple[WindowReservation, ...] = ()
    _stored_request: str | None = field(default=None, init=False, repr=False, compare=False)

    def stored_request(self) -> str:
        """The request as the job's row has it, in JSON. It is encoded once: the row and the first hint both have it."""
        if self._stored_request is None:
            object.__setattr__(self, "_stored_request", self.request.stored())
        assert self._stored_request is not None
        return self._stored_request


@dataclass(frozen=True, slots=True)
class Idempotency:
    """A client's `Idempotency-Key`, and the digest of the request that it was sent with."""

    key: str
    request_sha256: str
