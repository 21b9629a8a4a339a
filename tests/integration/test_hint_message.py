"""The messages that hints become are Celery's own."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.queue import PRIORITY_STEPS, TASK, Hint, HintSender, celery_app, depths, queue_name
from tests.conftest import TEST_REDIS_DB, Servers

JOB = "job_0123456789abcdef0123456789abcdef"


async def lists(redis: Redis) -> dict[Any, list[dict[str, Any]]]:
    found = {}
    for key in await redis.keys("headrace*"):
        found[key] = [json.loads(item) for item in await redis.lrange(key, 0, -1)]
    return found


@pytest.mark.parametrize("priority", range(10))
async def test_equal_to_what_send_task_puts_there(servers: Servers, redis: Redis, priority: int) -> None:
    app = celery_app(servers.redis(TEST_REDIS_DB))
    sender = HintSender(app, redis)
    sender.put(Hint(JOB, "a/model:1", priority))
    await sender.flush()
    ours = await lists(redis)
    await redis.flushdb()
    app.send_task(
        TASK,
        args=(JOB,),
        kwargs={"model": "a/model:1"},
        task_id=JOB,
        queue=queue_name("a/model:1"),
        priority=priority,
        ignore_result=True,
    )
    theirs = await lists(redis)
    app.close()
    for messages in (*ours.values(), *theirs.values()):
        for message in messages:
            assert message["properties"].pop("delivery_tag")
            # No result backend: nobody replies, and nobody reads who sent it.
            message["properties"].pop("reply_to")
            message["headers"].pop("origin")
    assert ours == theirs


async def test_many_at_once_keep_their_order_and_have_tags_of_their_own(servers: Servers, redis: Redis) -> None:
    sender = HintSender(celery_app(servers.redis(TEST_REDIS_DB)), redis)
    ids = [f"job_{number:032x}" for number in range(20)]
    for number, job_id in enumerate(ids):
        sender.put(Hint(job_id, "m", PRIORITY_STEPS[number % 2]))
    await sender.flush()
    assert await depths(redis, "m") == {0: 10, 3: 10, 6: 0, 9: 0}
    queued = await lists(redis)
    assert [item["headers"]["id"] for item in reversed(queued[b"headrace.m"])] == ids[::2], "the oldest is taken first"
    tags = {item["properties"]["delivery_tag"] for messages in queued.values() for item in messages}
    assert len(tags) == 20
