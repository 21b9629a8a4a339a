"""Hints are sent as the messages that Celery itself would send."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from redis.asyncio import Redis

from shared.domain.priorities import PRIORITY_STEPS, Hint
from shared.redis.job_queue import RETRY_S, TASK, HintSender, celery_app, depths, queue_name
from shared.runtime.aio import cancel_and_wait
from tests.conftest import TEST_REDIS_DB, Servers
from tests.support.waiting import eventually

JOB = "job_0123456789abcdef0123456789abcdef"


async def lists(redis: Redis) -> dict[Any, list[dict[str, Any]]]:
    found = {}
    for key in await redis.keys("headrace*"):
        found[key] = [json.loads(item) for item in await redis.lrange(key, 0, -1)]
    return found


@pytest.mark.parametrize("priority", range(10))
async def test_a_message_equals_that_of_send_task(servers: Servers, redis: Redis, priority: int) -> None:
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
            # Without a result backend, nothing reads the reply queue or the sender.
            message["properties"].pop("reply_to")
            message["headers"].pop("origin")
    assert ours == theirs


async def test_a_batch_keeps_its_order_and_each_message_has_its_own_tag(servers: Servers, redis: Redis) -> None:
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


async def test_a_hint_put_during_a_flush_is_sent_next(servers: Servers, redis: Redis) -> None:
    """It does not wait for the retry delay of an outage."""

    class Pausing(HintSender):
        """Puts a second hint while the first is being sent."""

        async def flush(self) -> bool:
            sending = asyncio.create_task(super().flush())
            await asyncio.sleep(0)
            if not second_put.is_set():
                second_put.set()
                self.put(Hint(f"job_{2:032x}", "m", 0))
            return await sending

    second_put = asyncio.Event()
    sender = Pausing(celery_app(servers.redis(TEST_REDIS_DB)), redis)
    sending = asyncio.create_task(sender.run())
    sender.put(Hint(f"job_{1:032x}", "m", 0))
    await second_put.wait()
    before = asyncio.get_running_loop().time()

    async def both() -> bool:
        return (await depths(redis, "m"))[0] == 2

    await eventually(both, "both are sent")
    assert asyncio.get_running_loop().time() - before < RETRY_S
    await cancel_and_wait(sending)


async def test_no_hint_is_lost_if_redis_refuses_writes(servers: Servers, redis: Redis) -> None:
    """For example with a full disk: Redis replies with an error, and the connection stays up."""
    sender = HintSender(celery_app(servers.redis(TEST_REDIS_DB)), redis)
    await redis.set(queue_name("m"), "not a list")  # so that LPUSH returns an error
    sender.put(Hint(JOB, "m", 0))
    assert not await sender.flush()
    await redis.delete(queue_name("m"))
    assert await sender.flush()
    assert (await depths(redis, "m"))[0] == 1
