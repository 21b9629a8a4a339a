"""`POST /v1/route`: which model would run a request, and why, without running it."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, model_validator

from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.members import MemberRules
from api.http.openapi import ERRORS, FAILED, NOT_FOUND, READ
from api.http.submit_headers import Submission
from api.jobs import dialects
from api.jobs.dependencies import CurrentAdmission
from api.jobs.parameters import Logprobs
from api.jobs.schemas import JobCreate
from api.keys.auth import CurrentPrincipal
from api.routing.router import Explanation
from shared.config.models.routes import Mode
from shared.domain.errors import InvalidRequest
from shared.telemetry.definitions.labels import SkipReason

router = APIRouter(prefix="/v1/route", tags=["routes"], route_class=JsonRoute)


class RouteRequest(JobCreate):
    """The body of a job or of a chat completion."""

    member_rules: ClassVar[MemberRules] = dialects.ROUTE
    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"model": "auto", "messages": [{"role": "user", "content": "Name three rivers."}]},
                {
                    "model": "auto:quality",
                    "messages": [{"role": "user", "content": "Name three rivers."}],
                    "response_format": {"type": "json_object"},
                },
            ]
        }
    )

    logprobs: bool | Logprobs | None = None
    top_logprobs: Logprobs = 0
    max_completion_tokens: int | None = Field(None, ge=1, lt=2**31)
    stream: bool = False
    stream_options: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _as_job(self) -> Self:
        """Translate the parameter names of chat completions into those of jobs."""
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if isinstance(self.logprobs, bool):
            self.logprobs = self.top_logprobs if self.logprobs else None
        return self


class CandidateView(BaseModel):
    """A model that the route may choose."""

    model: str
    chosen: bool
    reason: SkipReason | None = Field(
        description="Why it cannot serve the request, or not soon enough; null if it can."
    )
    message: str | None


class RouteAnswer(BaseModel):
    """How a request would be routed now."""

    object: Literal["route"] = "route"
    requested_model: str
    model: str = Field(description="The model that would run the request.")
    route: str | None = Field(None, description="Null if the request names a model.")
    mode: Mode | None = None
    rule: str | None = Field(
        None,
        description="The rule that applies; `complexity` or `otherwise` if none does, and `conversation` if the"
        " conversation keeps its model.",
    )
    score: float | None = Field(
        None, description="The complexity of the request, from 0 to 1. It decides if no rule applies."
    )
    input_tokens: int | None = Field(
        None, description="The prompt's tokens; at least so many, if it is longer than the context of each candidate."
    )
    tokens_estimated: bool = Field(False, description="Whether `input_tokens` is an estimate.")
    tried: list[str] = Field([], description="Models that were skipped because they cannot serve the request.")
    fallbacks: list[str] = Field([], description="Models that would take over if the model failed, in order.")
    candidates: list[CandidateView] = []


@router.post("", responses={**ERRORS, **NOT_FOUND, 413: FAILED[413], 200: READ})
async def explain_route(
    body: RouteRequest,
    principal: CurrentPrincipal,
    admission: CurrentAdmission,
    submission: Submission,
    work: CurrentBodyWork,
) -> RouteAnswer:
    """Show which model would run a request, and why, without running it."""
    principal = principal.acting_for(body.end_user)
    new = body.new_job(principal.owner, await work.run(body.generate_request), submission)
    try:
        return _answer(new.model, await admission.explain(principal, new))
    except InvalidRequest as error:
        raise body.rename_param(error) from None


def _answer(requested: str, found: Explanation | None) -> RouteAnswer:
    if found is None:
        return RouteAnswer(requested_model=requested, model=requested)
    choice = found.choice
    return RouteAnswer(
        requested_model=requested,
        model=choice.model,
        route=found.route,
        mode=found.mode,
        rule=choice.rule,
        score=round(found.score, 4),
        input_tokens=found.tokens.number,
        tokens_estimated=found.tokens.estimated,
        tried=list(choice.tried),
        fallbacks=list(choice.fallbacks),
        candidates=[
            CandidateView(
                model=name,
                chosen=name == choice.model,
                reason=None if refusal is None else refusal.reason,
                message=None if refusal is None else refusal.message,
            )
            for name, refusal in found.refusals.items()
        ],
    )
