"""The properties of models that routes depend on: whether they can serve a request, and how soon."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Protocol

from api.context.window import PromptTokens
from api.keys.principal import Principal
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest
from shared.telemetry.definitions.labels import SkipReason


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model cannot serve a request, or not soon enough."""

    reason: SkipReason
    message: str


@dataclass(frozen=True, slots=True)
class CostLimit:
    """What a request may cost at most, in dollars, because budgets have no room for more.

    `below`: a model has to cost less. `room`: what the budgets have left. `cost`: what the request could cost at most
    with a model; None if it is not known.
    """

    below: Decimal
    room: Decimal
    cost: Callable[[str], Awaitable[Decimal | None]]


class Candidates(Protocol):
    """Tells a router about models. A property is determined only if a route needs it."""

    async def refusal(self, model: str, principal: Principal, new: NewJob, *, shortens: bool = True) -> Refusal | None:
        """Why a model can never serve a request; None if it can.

        `shortens`: the conversation will be shortened, if that is configured for the model, the key or the request.
        """
        ...

    async def overload(self, model: str, new: NewJob, max_wait_s: float | None = None) -> Refusal | None:
        """Why a model cannot serve a job soon: a paused queue, no worker, or a wait beyond its `Start-Before` or beyond
        `max_wait_s`; None if it can."""
        ...

    async def wait_s(self, model: str, priority: int) -> float | None:
        """The seconds that a new job would wait; None if unknown, infinity if no worker takes jobs."""
        ...

    def length(self, model: str) -> int | None:
        """The model's context length in tokens; None if it is unknown."""
        ...

    def most_tokens(self, model: str, request: GenerateRequest) -> int | None:
        """A number of tokens that a prompt has at most, by its size; None if it has to be measured."""
        ...

    async def measure(
        self, model: str, request: GenerateRequest, limit: int | None, project_id: int
    ) -> PromptTokens | None:
        """Count or estimate the tokens of a project's prompt, up to about the limit; None if the model cannot render
        it."""
        ...
