"""`POST /v1/usage/estimate`: what a request would cost at most, without running it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from api.http.dependencies import resource
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.money import dollars, total_of
from api.http.openapi import ERRORS, FAILED, NOT_FOUND, READ
from api.http.submit_headers import Submission
from api.jobs.cost_store import CostStore, MostCost
from api.jobs.dependencies import CurrentAdmission
from api.jobs.route_query import RouteRequest
from api.keys.auth import CurrentPrincipal
from shared.domain.errors import InvalidRequest

router = APIRouter(prefix="/v1/usage/estimate", tags=["usage"], route_class=JsonRoute)

Costs = Annotated[CostStore, Depends(resource(CostStore))]


class EstimateRequest(RouteRequest):
    """The body of a job or of a chat completion."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "model": "smollm2",
                    "messages": [{"role": "user", "content": "Name three rivers."}],
                    "max_tokens": 64,
                },
                {"model": "auto", "messages": [{"role": "user", "content": "Name three bridges."}], "n": 2},
            ]
        }
    )


class CostEstimate(BaseModel):
    """What a request would cost at most. Amounts are in US dollars, and null if there is no price or no limit."""

    object: Literal["usage.estimate"] = "usage.estimate"
    requested_model: str
    model: str = Field(description="The model that would run the request.")
    input_tokens: int
    tokens_estimated: bool = Field(description="Whether `input_tokens` is an estimate, because they cannot be counted.")
    max_output_tokens: int | None = Field(
        description="Of all choices together: by `max_tokens`, the model's limit and its context."
    )
    max_input_cost: float | None = Field(description="As if nothing was in the provider's prompt cache yet.")
    max_output_cost: float | None
    max_cost: float | None
    currency: Literal["usd"] = "usd"


@router.post("", responses={**ERRORS, **NOT_FOUND, 413: FAILED[413], 200: READ})
async def estimate_cost(
    body: EstimateRequest,
    principal: CurrentPrincipal,
    admission: CurrentAdmission,
    costs: Costs,
    submission: Submission,
    work: CurrentBodyWork,
) -> CostEstimate:
    """Estimate what a request would cost at most, at the prices of the default service tier, without running it."""
    principal = principal.acting_for(body.user)
    new = body.new_job(principal.owner, await work.run(body.generate_request), submission)
    try:
        most = await admission.most_tokens(principal, new)
    except InvalidRequest as error:
        raise body.rename_param(error) from None
    found = await costs.most(most.model, most.prompt.number, most.output or 0)
    cost = found if most.output is not None else MostCost(found.input, None)
    return CostEstimate(
        requested_model=body.model,
        model=most.model,
        input_tokens=most.prompt.number,
        tokens_estimated=most.prompt.estimated,
        max_output_tokens=most.output,
        max_input_cost=dollars(cost.input),
        max_output_cost=dollars(cost.output),
        max_cost=dollars(total_of((cost.input, cost.output))),
    )
