"""Which models answer the conversations that routes serve. Redis may lose them: the next requests are routed anew.

Each request of a conversation has an id of its own, under which its model is stored, and names, which lead to the id
and by which the conversation's next request finds it (`shared.domain.conversation`). A request that moves to another
model changes one key, whatever names lead to it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files

from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.redis import keys

logger = logging.getLogger(__name__)

# The end of a job waits for its answer to be noted for this long.
NAME_TIMEOUT_S = 0.25


@dataclass(frozen=True, slots=True)
class KnownModel:
    """The model that answered a conversation last. `floor`: the highest of the route's levels that has answered it."""

    model: str
    floor: str | None = None


class ConversationModels:
    """The models of conversations, by the id of a request (`RouteDecision.conversation`) and by names."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._find = redis.register_script(_script("find"))
        self._link = redis.register_script(_script("link"))
        self._move = redis.register_script(_script("move"))

    async def find(self, names: Sequence[str], conversation: str | None = None) -> list[KnownModel | None]:
        """The models of the request with this id, and of those to which the names lead; None where unknown."""
        of_names = [keys.conversation_name(name) for name in names]
        args = [keys.conversation_model(""), *([] if conversation is None else [conversation])]
        found = await self._find(keys=of_names, args=args)
        return [KnownModel(item[0].decode(), item[1].decode() or None) if item else None for item in found]

    async def remember(
        self, conversation: str, names: Sequence[str], known: KnownModel, ttl_s: int, *, levels: Sequence[str] = ()
    ) -> None:
        """Store the model of a request, and let names lead to it. `levels`: the route's models, the cheapest first.

        A name that leads to another request continues to do so until that one is forgotten, if it was answered by a
        higher level: whoever got that answer must not get a worse one next.
        """
        await self._named(conversation, names, [known.model, known.floor or "", " ".join(levels), ttl_s])

    async def name(self, conversation: str, names: Sequence[str]) -> None:
        """Let more names lead to a request that is remembered, such as the one with its answer in it.

        If Redis is unavailable, the conversation is found by its other names.
        """
        try:
            async with asyncio.timeout(NAME_TIMEOUT_S):
                await self._named(conversation, names, [])
        except (RedisError, OSError) as error:  # TimeoutError is an OSError
            logger.warning("cannot note the answer of a conversation: %s", error)

    async def _named(self, conversation: str, names: Sequence[str], new: Sequence[str | int]) -> None:
        found = [keys.conversation_model(conversation), *map(keys.conversation_name, names)]
        await self._link(keys=found, args=[keys.conversation_model(""), conversation, *new])

    async def move(self, conversation: str | None, model: str) -> None:
        """Note that another model than the chosen one answers a request, if it is remembered.

        If Redis is unavailable, the conversation's next request is routed as if the chosen one had answered.
        """
        if conversation is None:
            return
        try:
            await self._move(keys=[keys.conversation_model(conversation)], args=[model])
        except (RedisError, OSError) as error:
            logger.warning("model=%s cannot record that it answers a conversation: %s", model, error)


def _script(name: str) -> str:
    return files("shared.redis").joinpath(f"conversation_models_{name}.lua").read_text(encoding="utf-8")
