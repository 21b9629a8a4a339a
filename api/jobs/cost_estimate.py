"""`POST /v1/usage/estimate`: what a request would cost at most, without running it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from api.budgets.worst_case import PricesInForce, WorstCase, dearest
from api.context.count_memo import counting_once
from api.http.dependencies import resource
from api.http.json_body import CurrentBodyWork, JsonRoute
from api.http.money import dollars
from api.http.openapi import ERRORS, FAILED, NOT_FOUND, READ
from api.http.submit_headers import Submission
from api.jobs.dependencies import CurrentAdmission
from api.jobs.route_query import RouteRequest
from api.keys.auth import CurrentPrincipal
from api.keys.principal import Scope
from shared.domain.errors import InvalidRequest
from shared.postgres.price_store import PriceStore

router = APIRouter(prefix="/v1/usage/estimate", tags=["usage"], route_class=JsonRoute)

CurrentWorstCase = Annotated[WorstCase, Depends(resource(WorstCase))]
Prices = Annotated[PriceStore, Depends(resource(PriceStore))]


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
    """What a request would cost at most, which is what its job would reserve in budgets.

    Amounts are in US dollars, and null if there is no price or no limit. They are those of the model that could cost
    most: `model`, or one that its route may move the job to.
    """

    object: Literal["usage.estimate"] = "usage.estimate"
    requested_model: str
    model: str = Field(description="The model that would run the request.")
    input_tokens: int
    tokens_estimated: bool = Field(description="Whether `input_tokens` is an estimate, because they cannot be counted.")
    max_output_tokens: int | None = Field(
        description="Of all choices together: by `max_tokens`, the model's limit and its context."
    )
    max_input_cost: float | None = Field(
        description="In the most expensive service tier, as if nothing was in the provider's prompt cache yet."
    )
    max_output_cost: float | None
    max_cost: float | None
    currency: Literal["usd"] = "usd"


@router.post("", responses={**ERRORS, **NOT_FOUND, 413: FAILED[413], 200: READ})
async def estimate_cost(
    body: EstimateRequest,
    principal: CurrentPrincipal,
    admission: CurrentAdmission,
    worst_case: CurrentWorstCase,
    price_store: Prices,
    submission: Submission,
    work: CurrentBodyWork,
) -> CostEstimate:
    """Estimate what a request would cost at most, without running it."""
    principal = principal.acting_for(body.end_user)
    principal.require(Scope.INFERENCE)
    new = body.new_job(principal.owner, await work.run(body.generate_request), submission)
    try:
        with counting_once(principal.project_id):
            new = await admission.recheck(principal, new)
            await admission.take_request(new.owner, new.model)
            models = worst_case.models(new)
            prices = PricesInForce(await price_store.in_force(models))
            costs = [await worst_case.of_model(model, new, prices) for model in models]
    except InvalidRequest as error:
        raise body.rename_param(error) from None
    chosen, most = costs[0], dearest(costs)
    return CostEstimate(
        requested_model=body.model,
        model=chosen.model,
        input_tokens=chosen.prompt.number,
        tokens_estimated=chosen.prompt.estimated,
        max_output_tokens=chosen.output,
        max_input_cost=dollars(most.input_cost),
        max_output_cost=dollars(most.output_cost),
        max_cost=dollars(most.cost),
    )
