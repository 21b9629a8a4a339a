"""Remembers which models answer conversations, in Redis. Without Redis, each request is routed by itself."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from shared.redis.conversation_models import ConversationModels, KnownModel
from shared.runtime.outages import is_redis_outage
from shared.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)

T = TypeVar("T")
TIMEOUT_S = 0.25
# After an outage, Redis is not asked again for this long, so that not each request waits for the timeout.
PAUSE_S = 1.0


class Conversations:
    """The models of conversations, by the ids and names of their requests."""

    def __init__(self, models: ConversationModels, metrics: Metrics) -> None:
        self._models = models
        self._metrics = metrics
        self._paused_until = 0.0

    async def find(self, names: Sequence[str], conversation: str | None = None) -> list[KnownModel]:
        """The known models of the request with this id, and of those to which the names lead, in this order."""
        if not (names or conversation is not None) or not self._available():
            return []
        found = await self._tolerant(self._models.find(names, conversation)) or []
        return [known for known in found if known is not None]

    async def remember(
        self, conversation: str, names: Sequence[str], known: KnownModel, ttl_s: int, *, levels: Sequence[str]
    ) -> None:
        """Store the model of a request, and let names lead to it; as in `ConversationModels`."""
        if self._available():
            await self._tolerant(self._models.remember(conversation, names, known, ttl_s, levels=levels))

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
            logger.warning("cannot look up the models of conversations, routing without them: %s", error)
            return None
