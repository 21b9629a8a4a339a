"""What a route needs to know about the models that it may choose: whether they can serve a request, and how soon."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from api.context.window import PromptTokens
from api.keys.principal import Principal
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import NewJob
from shared.telemetry.metrics import SkipReason


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a model cannot serve a request, or not soon enough."""

    reason: SkipReason
    message: str


class Candidates(Protocol):
    """Answers questions about models. Nothing is asked that a route does not need."""

    async def refusal(self, model: str, principal: Principal, new: NewJob) -> Refusal | None:
        """Why a model can never serve a request; None if it can."""
        ...

    async def overload(self, model: str, new: NewJob) -> Refusal | None:
        """Why a model cannot serve a job soon: no worker, or a wait beyond its `Start-Before`; None if it can."""
        ...

    async def wait_s(self, model: str, priority: int) -> float | None:
        """The seconds that a new job would wait; None if unknown, infinity if no worker takes jobs."""
        ...

    async def measure(self, model: str, request: GenerateRequest, limit: int | None) -> PromptTokens | None:
        """Count or estimate a prompt's tokens, up to about the limit; None if the model cannot render it."""
        ...
