"""The models of conversations in Redis, and what happens if Redis does not answer."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from api.routing import conversations as module
from api.routing.conversations import Conversations
from shared.redis import keys
from shared.redis.connection import connect_redis
from shared.redis.conversation_models import ConversationModels
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics


async def test_models_are_remembered_for_a_time(redis: Redis) -> None:
    models = ConversationModels(redis)
    await models.remember(["a", "b"], "large", 100)
    assert await models.read(["b", "unknown", "a"]) == ["large", None, "large"]
    assert 90 < await redis.ttl(keys.conversation_model("a")) <= 100
    await models.remember(["a", "c"], "small", 200, better=["middle", "large"])
    assert await models.read(["a", "b", "c"]) == ["large", "large", "small"], "a better model stays"
    assert 190 < await redis.ttl(keys.conversation_model("a")) <= 200
    await models.move("a", "middle")
    await models.move("unknown", "middle")
    assert await models.read(["a", "unknown"]) == ["middle", None], "only a remembered conversation moves"
    assert 190 < await redis.ttl(keys.conversation_model("a")) <= 200


async def test_a_server_that_does_not_answer_delays_no_request_for_long() -> None:
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    redis = connect_redis(f"redis://127.0.0.1:{port}/0")
    conversations = Conversations(ConversationModels(redis), Metrics(Exporter.API, []))
    try:
        async with asyncio.timeout(20 * module.TIMEOUT_S):
            assert await conversations.models(["a", "b"]) == [None, None]
        async with asyncio.timeout(module.TIMEOUT_S / 2):  # it is not asked again for now
            for _ in range(100):
                await conversations.remember(["a"], "m", 10, better=())
                assert await conversations.models(["a"]) == [None]
    finally:
        await redis.aclose()
        for writer in accepted:
            writer.close()
            await writer.wait_closed()
        silent.close()
