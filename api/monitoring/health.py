"""`/healthz`: this process is alive. `/readyz`: it can serve, with what it needs. `/metrics`: how it does.

Open to whoever reaches them, as usual for Prometheus and for orchestrators.
"""

from __future__ import annotations

import logging

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from pydantic import BaseModel, Field
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from api.resources import CurrentResources

logger = logging.getLogger(__name__)

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
async def readyz(held: CurrentResources, response: Response) -> Readiness:
    """Ready: database, Redis, and a live worker for each model."""
    checks: dict[str, str] = {}
    workers: dict[str, int] | None = None
    try:
        workers = await held.store.live_workers()
        checks["database"] = "ok"
    except (SQLAlchemyError, OSError) as error:
        logger.warning("the database is away: %s", error)
        checks["database"] = "cannot be reached"
    try:
        await held.redis.ping()
        checks["redis"] = "ok"
    except (RedisError, OSError) as error:
        logger.warning("Redis is away: %s", error)
        checks["redis"] = "cannot be reached"
    for name in held.registry.models:
        if workers is None:
            checks[f"model {name}"] = "unknown"
        else:
            checks[f"model {name}"] = "ok" if workers.get(name) else "no live worker"
    ready = all(check == "ok" for check in checks.values())
    response.status_code = 200 if ready else 503
    return Readiness(status="ok" if ready else "unready", checks=checks)


@router.get("/metrics", include_in_schema=False)  # Prometheus asks it, and no client
async def show_metrics(held: CurrentResources) -> Response:
    """Metrics, in Prometheus's text format: this process's own, and the queue as the database has it."""
    await held.fleet.refresh()
    return Response(generate_latest(held.metrics), media_type=CONTENT_TYPE_PLAIN_0_0_4)
