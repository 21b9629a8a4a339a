"""Which models answer the conversations that routes serve. Redis may lose them: the next requests are routed anew."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.redis import keys

logger = logging.getLogger(__name__)

_REMEMBER = files("shared.redis").joinpath("conversation_models_remember.lua").read_text(encoding="utf-8")


class ConversationModels:
    """The model that answered each conversation last, by the conversation's id (`RouteDecision.conversation`)."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._remember = redis.register_script(_REMEMBER)

    async def read(self, conversations: Sequence[str]) -> list[str | None]:
        """The models of these conversations, in order; None if unknown."""
        values = await self._redis.mget([keys.conversation_model(conversation) for conversation in conversations])
        return [value.decode() if isinstance(value, bytes) else value for value in values]

    async def remember(
        self, conversations: Sequence[str], model: str, ttl_s: int, *, better: Sequence[str] = ()
    ) -> None:
        """Note which model answers a conversation, under each of its ids, unless one of the `better` ones is noted."""
        names = [keys.conversation_model(conversation) for conversation in conversations]
        await self._remember(keys=names, args=[model, ttl_s, *better])

    async def move(self, conversation: str | None, model: str) -> None:
        """Note that another model than the chosen one answers a conversation, if it is remembered.

        If Redis is unavailable, the conversation's next request is routed as if the chosen one had answered.
        """
        if conversation is None:
            return
        try:
            await self._redis.set(keys.conversation_model(conversation), model, xx=True, keepttl=True)
        except (RedisError, OSError) as error:
            logger.warning("model=%s cannot record that it answers a conversation: %s", model, error)
