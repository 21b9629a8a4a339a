"""The rate limits of an API process, for tests that create its parts themselves."""

from __future__ import annotations

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine

from api.context.window import ContextWindow
from api.limits.estimate import TokenEstimator
from api.limits.limiter import RateLimiter
from api.limits.rules import LimitBook
from api.limits.settlement import Settlement
from api.limits.store import LimitStore
from shared.config.models.loader import Registry
from shared.redis.rate_limits import RateWindows
from shared.telemetry.metrics import Metrics


def settlement_of(database: AsyncEngine, redis: Redis, registry: Registry, metrics: Metrics) -> Settlement:
    """The settlement of a process without limits."""
    estimator = TokenEstimator(registry, ContextWindow(registry))
    limiter = RateLimiter(LimitBook(), RateWindows(redis), estimator, metrics, without_redis="allow")
    return Settlement(limiter, LimitStore(database))
