"""`/v1/workers`, and the queues of models: list and drain workers, pause and resume queues."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from api.admin.dependencies import ADMIN_ERRORS, AdminPrincipal
from api.admin.fleet.schemas import PauseView, QueueView, WorkerList, WorkerView
from api.admin.fleet.service import FleetService
from api.http.dependencies import resource
from api.http.errors import ErrorResponse
from api.http.openapi import NOT_FOUND

router = APIRouter(prefix="/v1", tags=["workers"])

Fleet = Annotated[FleetService, Depends(resource(FleetService))]
ADAPTER: dict[int | str, dict[str, Any]] = {409: {"model": ErrorResponse, "description": "The model is an adapter."}}
NOT_ALIVE: dict[int | str, dict[str, Any]] = {409: {"model": ErrorResponse, "description": "The worker is not alive."}}


@router.get("/workers", responses=ADMIN_ERRORS)
async def list_workers(_: AdminPrincipal, fleet: Fleet) -> WorkerList:
    """List the workers, by model. Workers that have died or were drained are listed for an hour."""
    workers, pauses = await fleet.workers(), await fleet.pauses()
    return WorkerList(
        data=[WorkerView.of(worker) for worker in workers],
        paused=[PauseView(model=model, paused_at=since) for model, since in sorted(pauses.items())],
    )


@router.post("/workers/{worker_id:path}/drain", responses={**ADMIN_ERRORS, **NOT_FOUND, **NOT_ALIVE})
async def drain(worker_id: str, principal: AdminPrincipal, fleet: Fleet) -> WorkerView:
    """Drain a worker: it takes no more jobs, finishes those that it has, and stops.

    Its state is `draining` until then, and `drained` afterwards.
    """
    return WorkerView.of(await fleet.drain(principal, worker_id))


@router.post("/models/{name:path}/pause", responses={**ADMIN_ERRORS, **NOT_FOUND, **ADAPTER})
async def pause(name: str, principal: AdminPrincipal, fleet: Fleet) -> QueueView:
    """Pause the queue of a model: jobs are accepted and wait, until their deadlines. Running jobs continue."""
    return QueueView(model=name, paused_at=await fleet.pause(principal, name))


@router.post("/models/{name:path}/resume", responses={**ADMIN_ERRORS, **NOT_FOUND, **ADAPTER})
async def resume(name: str, principal: AdminPrincipal, fleet: Fleet) -> QueueView:
    """Resume the queue of a model."""
    await fleet.resume(principal, name)
    return QueueView(model=name, paused_at=None)
