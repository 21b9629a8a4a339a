"""`/v1/batches`: create, list, poll, cancel."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api.batches.dependencies import Batches
from api.batches.schemas import BatchCreate, BatchList, BatchView, batch_view
from api.http.errors import ErrorResponse
from api.http.json_body import JsonRoute
from api.http.openapi import ERRORS, READ
from api.http.pagination import After, Limit
from api.keys.auth import CurrentPrincipal

router = APIRouter(prefix="/v1/batches", tags=["batches"], route_class=JsonRoute)

NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorResponse, "description": "Not found."}}


@router.post("", responses={**ERRORS, **NOT_FOUND, 200: READ})
async def create(body: BatchCreate, principal: CurrentPrincipal, batches: Batches) -> BatchView:
    """Create a batch, which runs the requests of an uploaded file at the lowest priority."""
    return batch_view(await batches.create(principal.owner, body))


@router.get("", responses=ERRORS)
async def list_batches(
    principal: CurrentPrincipal,
    batches: Batches,
    limit: Limit = 20,
    after: After = None,
) -> BatchList:
    """List batches, newest first."""
    page = await batches.page(principal.project_id, limit=limit, after=after)
    return BatchList.of(page, batch_view)


@router.get("/{batch_id}", responses={**ERRORS, **NOT_FOUND})
async def get_batch(batch_id: str, principal: CurrentPrincipal, batches: Batches) -> BatchView:
    """Get a batch: its progress and, once it has ended, its result files."""
    return batch_view(await batches.get(batch_id, principal.project_id))


@router.post(
    "/{batch_id}/cancel",
    responses={**ERRORS, **NOT_FOUND, 409: {"model": ErrorResponse, "description": "The batch has ended."}},
)
async def cancel(batch_id: str, principal: CurrentPrincipal, batches: Batches) -> BatchView:
    """Cancel a batch. Queued requests end immediately; running requests have ten minutes to finish."""
    return batch_view(await batches.cancel(batch_id, principal.project_id))
