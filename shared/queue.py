"""The Celery side of a job: a message on its model's queue, by task name, with the job's id as the task's id.

A message is a hint that a job may be waiting. The row decides: a worker must claim it. So a lost message is
sent again by any worker with room (see `workers.healing`), and a doubled one is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass, replace

from celery import Celery
from kombu.exceptions import BatchPublishError, OperationalError
from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

TASK = "headrace.generate"
ALL_PRIORITIES = range(10)
# kombu's Redis transport keeps one list for each of these steps and the priorities after it; 0 is served first.
PRIORITY_STEPS = (0, 3, 6, 9)
BANDS = {step: range(step, end) for step, end in zip(PRIORITY_STEPS, (*PRIORITY_STEPS[1:], 10), strict=True)}
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
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_redirect_stdouts=False,
        worker_enable_remote_control=True,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "priority_steps": list(PRIORITY_STEPS),
            "sep": _SEPARATOR,
            "queue_order_strategy": "priority",
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    return app


@dataclass(frozen=True, slots=True)
class Hint:
    """What a message says: this job of this model may be waiting."""

    job_id: str
    model: str
    priority: int


def first(hint: Hint) -> Hint:
    """The hint for a job that goes first: it was running, and its reader waits in mid-sentence; or passed over."""
    return replace(hint, priority=PRIORITY_STEPS[0])


def send(app: Celery, hints: Iterable[Hint]) -> None:
    """Put hints on their models' queues, in one round trip. Blocks.

    The messages are Celery's own, made and published without what `send_task` adds to each: routing, signals,
    an event. That is four fifths of its time, and one queue a model needs no router.

    Raises:
        kombu.exceptions.OperationalError, kombu.exceptions.BatchPublishError, redis.exceptions.RedisError: Redis is
            away; some hints may have been sent.
    """
    with app.producer_pool.acquire(block=True, timeout=5) as producer, producer.batch():
        for hint in hints:
            message = app.amqp.as_task_v2(
                hint.job_id, TASK, args=(hint.job_id,), kwargs={"model": hint.model}, ignore_result=True
            )
            producer.publish(
                message.body,
                exchange="",
                routing_key=queue_name(hint.model),
                priority=hint.priority,
                serializer="json",
                headers=message.headers,
                **message.properties,
            )


class HintSender:
    """Sends hints from an event loop, after the answer and many together."""

    def __init__(self, app: Celery) -> None:
        self._app = app
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
            await self.flush()
            if self._waiting:
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> None:
        """Send what waits; what cannot be sent waits on."""
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        try:
            await asyncio.to_thread(send, self._app, batch)
        except (OperationalError, BatchPublishError, RedisError, OSError) as error:
            logger.warning("Redis is away, %d hints wait: %s", len(batch), error)
            self._waiting = (batch + self._waiting)[:KEPT]


async def depths(redis: Redis, model: str) -> dict[int, int]:
    """Messages that wait on a model's queue, by the first priority of their list (`BANDS`)."""
    name = queue_name(model)
    async with redis.pipeline(transaction=False) as pipe:
        for step in PRIORITY_STEPS:
            pipe.llen(name if step == 0 else f"{name}{_SEPARATOR}{step}")
        return dict(zip(PRIORITY_STEPS, await pipe.execute(), strict=True))
