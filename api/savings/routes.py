"""`/v1/savings`: what routes and caches have saved."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from api.http.openapi import ERRORS
from api.keys.auth import CurrentPrincipal
from api.savings.dependencies import CurrentSavings
from api.savings.schemas import SavingsView

MAX_DAYS = 90

router = APIRouter(prefix="/v1/savings", tags=["savings"])


@router.get("", responses=ERRORS)
async def get_savings(
    principal: CurrentPrincipal,
    savings: CurrentSavings,
    days: Annotated[int, Query(ge=1, le=MAX_DAYS, description="The report is about the last days up to now.")] = 7,
) -> SavingsView:
    """Get what routes, the response cache, coalescing and prompt caches have saved the project, in tokens and dollars.

    Jobs whose rows have been deleted after their retention time are not in it.
    """
    return SavingsView.of(days, *await savings.report(principal.project_id, days))
