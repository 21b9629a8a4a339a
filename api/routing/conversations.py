"""Remembers which models answer conversations, in Redis. Without Redis, each request is routed by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from shared.redis.conversation_models import ConversationModels
from shared.runtime.outages import is_redis_outage
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")
TIMEOUT_S = 0.25
# After an outage, Redis is not asked again for this long, so that not each request waits for the timeout.
PAUSE_S = 1.0


class Conversations:
    """The models of conversations, by their ids."""

    def __init__(self, models: ConversationModels, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._paused_until = 0.0

    async def models(self, ids: Sequence[str]) -> list[str | None]:
        """The models of these conversations; None if unknown."""
        found = await self._tolerant(self._models.read(ids)) if ids and self._available() else None
        return found if found is not None else [None] * len(ids)

    async def remember(self, ids: Sequence[str], model: str, ttl_s: int, *, better: Sequence[str]) -> None:
        """Note the model of a conversation, unless one of the better ones has answered the same request before."""
        if ids and self._available():
            await self._tolerant(self._models.remember(ids, model, ttl_s, better=better))

    def _available(self) -> bool:
        if time.monotonic() >= self._paused_until:
            return True
        self._metrics.route_conversation_errors.inc()
        return False

    async def _tolerant(self, call: Awaitable[T]) -> T | None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await call
        except Exception as error:
            if not (isinstance(error, TimeoutError) or is_redis_outage(error)):
                raise
            self._paused_until = time.monotonic() + PAUSE_S
            self._metrics.route_conversation_errors.inc()
            logger.warning("cannot look up the models of conversations; requests are routed without: %s", error)
            return None
