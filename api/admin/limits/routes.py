"""`/v1/admin/limits`: create, change, delete, list."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query

from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.admin.limits.schemas import LimitCreate, LimitDeleted, LimitList, LimitUpdate, LimitView
from api.admin.limits.service import LimitService
from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import NOT_FOUND, READ
from api.http.pagination import After, Limit

router = APIRouter(prefix="/v1/admin/limits", tags=["limits"], route_class=JsonRoute)

Limits = Annotated[LimitService, Depends(resource(LimitService))]
EXISTS: dict[int | str, dict[str, Any]] = {
    409: {"model": ErrorResponse, "description": "There is a limit for this project, key, end user and model."}
}


@router.get("", responses=ADMIN_ERRORS)
async def list_limits(
    _: AdminPrincipal,
    limits: Limits,
    limit: Limit = 20,
    after: After = None,
    project: Annotated[str | None, Query(max_length=200, description="Only the project's own limits.")] = None,
) -> LimitList:
    """List the limits of all projects, newest first."""
    return LimitList.of(await limits.page(limit=limit, after=after, project=project), LimitView.of)


@router.post("", responses={**ADMIN_ERRORS, **EXISTS, 200: READ})
async def create_limit(body: LimitCreate, principal: AdminPrincipal, limits: Limits) -> LimitView:
    """Create a limit. All API processes apply it within seconds."""
    return LimitView.of(await limits.create(principal, body))


@router.get("/{limit_id}", responses={**ADMIN_ERRORS, **NOT_FOUND})
async def get_limit(limit_id: str, _: AdminPrincipal, limits: Limits) -> LimitView:
    """Get a limit, and what is left of it."""
    limit = await limits.get(limit_id)
    return LimitView.of(limit, await limits.left(limit))


@router.patch("/{limit_id}", responses={**ADMIN_ERRORS, **NOT_FOUND, 200: READ})
async def change_limit(limit_id: str, body: LimitUpdate, principal: AdminPrincipal, limits: Limits) -> LimitView:
    """Change a limit: only what the body names. What was used in the last minute counts against the new values."""
    return LimitView.of(await limits.change(principal, limit_id, body))


@router.delete("/{limit_id}", responses={**ADMIN_ERRORS, **NOT_FOUND})
async def delete_limit(limit_id: str, principal: AdminPrincipal, limits: Limits) -> LimitDeleted:
    """Delete a limit."""
    await limits.delete(principal, limit_id)
    return LimitDeleted(id=limit_id)
