"""The Celery side of a job: a message on its model's queue, by task name, with the job's id as the task's id.

A message is a hint that a job may be waiting. The row decides: a worker must claim it. So a lost message is
sent again by any worker with room (see `workers.healing`), and a doubled one is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from dataclasses import dataclass

from celery import Celery
from kombu.exceptions import OperationalError
from redis.asyncio import Redis
from redis.exceptions import RedisError

logger = logging.getLogger(__name__)

TASK = "headrace.generate"
# kombu's Redis transport keeps one list for each of these steps; 0 is served first.
PRIORITY_STEPS = (0, 3, 6, 9)
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
        task_send_sent_event=True,
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


def resumed(job_id: str, model: str) -> Hint:
    """A hint for a job that was running: it goes first, for its reader waits in mid-sentence."""
    return Hint(job_id, model, PRIORITY_STEPS[0])


def send(app: Celery, hints: Iterable[Hint]) -> None:
    """Put hints on their models' queues, over one connection. Blocks.

    Raises:
        kombu.exceptions.OperationalError: Redis is away; some hints may have been sent.
    """
    with app.producer_pool.acquire(block=True, timeout=5) as producer:
        for hint in hints:
            app.send_task(
                TASK,
                args=(hint.job_id,),
                kwargs={"model": hint.model},
                task_id=hint.job_id,
                queue=queue_name(hint.model),
                priority=hint.priority,
                producer=producer,
                retry=False,
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
        except (OperationalError, RedisError, OSError) as error:
            logger.warning("Redis is away, %d hints wait: %s", len(batch), error)
            self._waiting = (batch + self._waiting)[:KEPT]


async def depth(redis: Redis, model: str) -> int:
    """Messages that wait on a model's queue, over all priorities."""
    name = queue_name(model)
    async with redis.pipeline(transaction=False) as pipe:
        for step in PRIORITY_STEPS:
            pipe.llen(name if step == 0 else f"{name}{_SEPARATOR}{step}")
        return sum(await pipe.execute())
