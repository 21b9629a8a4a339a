"""The Celery side of a job: a message on its model's queue, by task name, with the job's id as the task's id.

A message is a hint that a job may be waiting. The row decides: a worker must claim it. So a lost message is
sent again by any worker with room (see `workers.supervision.redelivery`), and a doubled one is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect

from celery import Celery
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.domain.priorities import PRIORITY_STEPS, Hint
from shared.redis.message_template import HintMessages

logger = logging.getLogger(__name__)

TASK = "headrace.generate"
_SEPARATOR = "\x06\x16"
RETRY_S = 1.0
KEPT = 10_000


def queue_name(model: str) -> str:
    return f"headrace.{model}"


def celery_app(redis_url: str) -> Celery:
    """The Celery application, for sending as well as for working.

    Early acknowledgement, no result backend: the row is the truth, and a broker that comes back does not run
    a job again. Task events are for Flower.
    """
    app = Celery("headrace", broker=redis_url, set_as_current=False)
    app.conf.update(
        task_acks_late=False,
        task_ignore_result=True,
        task_store_errors_even_if_ignored=False,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "priority_steps": list(PRIORITY_STEPS),
            "sep": _SEPARATOR,
            "queue_order_strategy": "priority",
            # What is lost with a worker is found by its row; Redis need not keep a copy of each message in hand.
            "ack_emulation": False,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    return app


class HintSender:
    """Puts hints on their models' queues: after the answer, and many together."""

    def __init__(self, app: Celery, redis: Redis) -> None:
        self._messages = HintMessages(app, TASK)
        self._redis = redis
        self._waiting: list[Hint] = []
        self._wake = asyncio.Event()

    def put(self, hint: Hint) -> None:
        self._waiting.append(hint)
        self._wake.set()

    async def run(self) -> None:
        """Send for ever; cancel to stop. While Redis is away hints wait, up to `KEPT`; workers find other rows."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> bool:
        """Send what waits now. False: Redis is away, and it waits on."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return True
        lists: dict[tuple[str, bool], list[bytes]] = {}
        for hint in batch:
            name = queue_name(hint.model)
            message = self._messages.message(hint.job_id, model=hint.model, queue=name, priority=hint.priority)
            lists.setdefault((list_name(name, hint.priority), hint.front), []).append(message)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for (name, front), messages in lists.items():  # workers take from the right
                    if front:
                        pipe.rpush(name, *reversed(messages))
                    else:
                        pipe.lpush(name, *messages)
                await pipe.execute()
        except (RedisError, OSError) as error:  # whatever it is: the rows are there, and workers look for them
            logger.warning("Redis takes no hints, %d wait: %s", len(batch), error)
            self._waiting = (batch + self._waiting)[:KEPT]
            return False
        except asyncio.CancelledError:
            self._waiting = batch + self._waiting  # sent twice at worst
            raise
        return True


async def depths(redis: Redis, model: str) -> dict[int, int]:
    """Messages that wait on a model's queue, by the first priority of their list (`BANDS`)."""
    async with redis.pipeline(transaction=False) as pipe:
        for step in PRIORITY_STEPS:
            pipe.llen(list_name(queue_name(model), step))
        return dict(zip(PRIORITY_STEPS, await pipe.execute(), strict=True))


def list_name(queue: str, priority: int) -> str:
    """kombu's list for the messages of a priority."""
    step = PRIORITY_STEPS[bisect(PRIORITY_STEPS, priority) - 1]
    return queue if step == 0 else f"{queue}{_SEPARATOR}{step}"
