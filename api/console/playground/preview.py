"""What the playground shows of a request while it is typed: its tokens on each of the chosen models, and its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from api.context.window import ContextWindow
from api.http.json_body import BodyWork
from api.http.members import MemberReader, Shape
from api.jobs.admission import Admission
from api.jobs.schemas import JobCreate
from api.keys.principal import Principal
from shared.domain.errors import HeadraceError
from shared.domain.new_job import NewJob
from shared.domain.request import GenerateRequest

SIDES = 2
_JOB = Shape(JobCreate)


class PreviewRequest(BaseModel):
    """A request that is being written. The models that it is for share its `body`, so that a long prompt is sent once.

    `variants`: for each model, the members of the body that are its own. `shown`: the variant whose code is shown.
    `headers` are sent with the request.
    """

    body: dict[str, Any]
    variants: list[dict[str, Any]] = Field(min_length=1, max_length=SIDES)
    shown: int = Field(0, ge=0, lt=SIDES)
    headers: dict[str, str] = Field(default_factory=dict)

    def bodies(self) -> list[dict[str, Any]]:
        """The body for each model."""
        return [{**variant, **self.body} for variant in self.variants]


@dataclass(frozen=True, slots=True)
class TokenCount:
    """The tokens of a prompt on the model that would serve it. `limit`: tokens of its context; None if unknown."""

    tokens: int
    estimated: bool
    model: str
    limit: int | None


class TokenCounter:
    """Counts the tokens of requests of a principal without creating jobs."""

    def __init__(
        self,
        principal: Principal,
        *,
        admission: Admission,
        context: ContextWindow,
        members: MemberReader,
        work: BodyWork,
    ) -> None:
        self._principal = principal
        self._admission = admission
        self._context = context
        self._members = members
        self._work = work

    async def count(self, body: Mapping[str, Any]) -> TokenCount | None:
        """The tokens of the body of a job; None if the API would refuse it, as what is being typed often is."""
        try:
            return await self._count(body)
        except (HeadraceError, ValidationError):
            return None

    async def _count(self, body: Mapping[str, Any]) -> TokenCount:
        principal = self._principal
        job, generate = await self._work.run(self._read, body)
        new = NewJob(owner=principal.owner, model=job.model, priority=job.priority, request=generate, metadata={})
        model = await self._admission.model_of(principal, new)
        tokens = await self._admission.count_tokens(model, generate, principal.project_id)
        if tokens is None:  # only the engine can count, and it has other things to do than to count as people type
            tokens = self._context.estimate(model, generate, principal.project_id)
        return TokenCount(tokens.number, tokens.estimated, model, self._context.length(model))

    def _read(self, body: Mapping[str, Any]) -> tuple[JobCreate, GenerateRequest]:
        job = JobCreate.model_validate(self._members.read(_JOB, dict(body), counted=False).body)
        return job, job.generate_request()
