"""`/v1/admin/budgets`: create, list, get, change and delete budgets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query

from api.admin.budgets.schemas import BudgetCreate, BudgetDeleted, BudgetList, BudgetUpdate, BudgetView
from api.admin.budgets.service import BudgetService
from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.http.dependencies import resource
from api.http.json_body import JsonRoute
from api.http.openapi import NOT_FOUND, READ
from api.http.pagination import After, Limit

router = APIRouter(prefix="/v1/admin/budgets", tags=["budgets"], route_class=JsonRoute)

BudgetsService = Annotated[BudgetService, Depends(resource(BudgetService))]


@router.get("", responses=ADMIN_ERRORS)
async def list_budgets(
    _: AdminPrincipal,
    budgets: BudgetsService,
    limit: Limit = 20,
    after: After = None,
    project: Annotated[str | None, Query(max_length=200, description="Only budgets of this project.")] = None,
) -> BudgetList:
    """List the budgets, newest first, with what is left of them."""
    page = await budgets.page(limit=limit, after=after, project=project)
    return BudgetList.of(page, lambda budget: budget)


@router.post("", responses={**ADMIN_ERRORS, 200: READ})
async def create_budget(body: BudgetCreate, principal: AdminPrincipal, budgets: BudgetsService) -> BudgetView:
    """Create a budget. The jobs that are submitted from then on count; all API processes know it within 6 seconds."""
    return await budgets.create(principal, body)


@router.get("/{budget_id}", responses={**ADMIN_ERRORS, **NOT_FOUND})
async def get_budget(
    budget_id: str,
    _: AdminPrincipal,
    budgets: BudgetsService,
    end_user: Annotated[
        str | None,
        Query(max_length=512, description="Of a budget that each end user has: what this one has spent."),
    ] = None,
) -> BudgetView:
    """Get a budget, with what is left of it."""
    return await budgets.view(budget_id, end_user)


@router.patch("/{budget_id}", responses={**ADMIN_ERRORS, **NOT_FOUND})
async def change_budget(
    budget_id: str, body: BudgetUpdate, principal: AdminPrincipal, budgets: BudgetsService
) -> BudgetView:
    """Change a budget: only what the body names. What was spent and is reserved remains."""
    return await budgets.change(principal, budget_id, body)


@router.delete("/{budget_id}", responses={**ADMIN_ERRORS, **NOT_FOUND})
async def delete_budget(budget_id: str, principal: AdminPrincipal, budgets: BudgetsService) -> BudgetDeleted:
    """Delete a budget. Open jobs go on."""
    return BudgetDeleted(id=await budgets.delete(principal, budget_id))
