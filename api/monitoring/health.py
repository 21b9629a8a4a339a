"""`/healthz`: the process is alive. `/readyz`: it can serve requests. `/metrics`: Prometheus metrics.

`/ping`, `/health` and `/version` are the names that vLLM's server has.

None of them requires an API key, as is usual for Prometheus and orchestrators.
"""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel, Field

from api.monitoring.dependencies import CurrentMetrics, CurrentQueueMetrics, CurrentReadiness
from api.monitoring.readiness import OK

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process is alive."""

    status: str = "ok"


class Readiness(BaseModel):
    """The state of each dependency: `ok`, or the problem. A model that was added at runtime may have no worker yet."""

    status: str = Field(description="ok, or unready")
    checks: dict[str, str]


class Version(BaseModel):
    """The version of Headrace."""

    version: str


@router.api_route("/ping", methods=["GET", "POST"], include_in_schema=False)
@router.get("/healthz")
async def healthz() -> Alive:
    """Liveness check."""
    return Alive()


@router.get("/health", include_in_schema=False)
@router.get("/readyz", responses={503: {"model": Readiness, "description": "A dependency is unavailable."}})
async def readyz(check: CurrentReadiness, response: Response) -> Readiness:
    """Readiness check: database, Redis, and a live worker for each model."""
    checks = await check.run()
    ready = all(check.is_ready(state) for state in checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(status=OK if ready else "unready", checks=checks)


@router.get("/version")
async def version(request: Request) -> Version:
    """Return the server's version."""
    return Version(version=request.app.version)


@router.get("/metrics", include_in_schema=False)  # for Prometheus, not for clients
async def show_metrics(queue_metrics: CurrentQueueMetrics, metrics: CurrentMetrics) -> Response:
    """Return the metrics of this process and of the queue, in Prometheus's text format."""
    await queue_metrics.refresh()
    return Response(generate_latest(metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)
