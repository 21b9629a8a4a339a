"""`/healthz`: the process is alive. `/readyz`: it can serve requests. `/metrics`: Prometheus metrics.

None requires a key, as is usual for Prometheus and for orchestrators.
"""

from __future__ import annotations

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel, Field

from api.monitoring.dependencies import CurrentMetrics, CurrentQueueMetrics, CurrentReadiness
from api.monitoring.readiness import OK

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: str = "ok"


class Readiness(BaseModel):
    """What the service needs, one by one: "ok", or what is missing."""

    status: str = Field(description="ok, or unready")
    checks: dict[str, str]


@router.get("/healthz")
async def healthz() -> Alive:
    """Alive: the process answers."""
    return Alive()


@router.get("/readyz", responses={503: {"model": Readiness, "description": "Something is missing."}})
async def readyz(check: CurrentReadiness, response: Response) -> Readiness:
    """Ready: database, Redis, and a live worker for each model."""
    checks = await check.run()
    ready = all(state == OK for state in checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(status=OK if ready else "unready", checks=checks)


@router.get("/metrics", include_in_schema=False)  # for Prometheus, not for clients
async def show_metrics(queue_metrics: CurrentQueueMetrics, metrics: CurrentMetrics) -> Response:
    """This process's metrics and those of the queue in the database, in Prometheus's text format."""
    await queue_metrics.refresh()
    return Response(generate_latest(metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)
