"""The models of conversations in Redis, and what happens if Redis does not answer."""

from __future__ import annotations

import asyncio

from redis.asyncio import Redis

from api.routing import conversations as module
from api.routing.conversations import Conversations
from shared.redis import keys
from shared.redis.connection import connect_redis
from shared.redis.conversation_models import ConversationModels, KnownModel
from shared.telemetry.instruments import Exporter
from shared.telemetry.metrics import Metrics

SMALL, LARGE = KnownModel("small", "small"), KnownModel("large", "large")
LEVELS = ["small", "middle", "large"]


async def test_models_are_remembered_for_a_time(redis: Redis) -> None:
    models = ConversationModels(redis)
    await models.remember("1", ["a", "b"], KnownModel("large"), 100)
    assert await models.find(["b", "unknown", "a"], "1") == [
        KnownModel("large"),
        KnownModel("large"),
        None,
        KnownModel("large"),
    ]
    assert await models.find([], "2") == [None]
    for key in (keys.conversation_model("1"), keys.conversation_name("a")):
        assert 90 < await redis.ttl(key) <= 100
    await models.name("1", ["answer"])
    await models.name("unknown", ["nothing"])
    assert await models.find(["answer", "nothing"]) == [KnownModel("large"), None]
    assert 90 < await redis.ttl(keys.conversation_name("answer")) <= 100


async def test_a_move_applies_to_all_names(redis: Redis) -> None:
    models = ConversationModels(redis)
    await models.remember("1", ["instructed", "rough"], SMALL, 100, levels=LEVELS)
    await models.move("1", "trial")
    await models.move("unknown", "trial")
    await models.move(None, "trial")
    moved = KnownModel("trial", "small")
    assert await models.find(["instructed", "rough"]) == [moved, moved]
    assert await models.find([], "unknown") == [None], "only a remembered request moves"
    assert 90 < await redis.ttl(keys.conversation_model("1")) <= 100


async def test_a_name_leads_to_the_highest_level(redis: Redis) -> None:
    """It does so for no longer than the request of that level is remembered."""
    models = ConversationModels(redis)
    await models.remember("1", ["opening"], SMALL, 200, levels=LEVELS)
    await models.remember("2", ["opening"], LARGE, 100, levels=LEVELS)
    await models.remember("3", ["opening", "other"], SMALL, 200, levels=LEVELS)
    assert await models.find(["opening", "other"], "3") == [SMALL, LARGE, SMALL]
    assert await redis.ttl(keys.conversation_name("opening")) <= 100
    await models.move("3", "large")
    await models.name("3", ["opening"])
    assert await redis.get(keys.conversation_name("opening")) == b"3"
    await models.remember("4", ["opening"], KnownModel("trial", "middle"), 200, levels=LEVELS)
    assert await redis.get(keys.conversation_name("opening")) == b"3"
    await redis.delete(keys.conversation_model("3"))
    await models.remember("5", ["opening"], SMALL, 200, levels=LEVELS)
    assert await models.find(["opening"]) == [SMALL]


async def test_a_server_that_does_not_answer_delays_no_request_for_long() -> None:
    accepted: list[asyncio.StreamWriter] = []
    silent = await asyncio.start_server(lambda reader, writer: accepted.append(writer), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    redis = connect_redis(f"redis://127.0.0.1:{port}/0")
    conversations = Conversations(ConversationModels(redis), Metrics(Exporter.API, []))
    try:
        async with asyncio.timeout(20 * module.TIMEOUT_S):
            assert await conversations.find(["a", "b"]) == []
        async with asyncio.timeout(module.TIMEOUT_S / 2):  # it is not asked again for now
            for _ in range(100):
                await conversations.remember("1", ["a"], SMALL, 10, levels=())
                assert await conversations.find(["a"]) == []
    finally:
        await redis.aclose()
        for writer in accepted:
            writer.close()
            await writer.wait_closed()
        silent.close()
