"""The queue: a job's Celery message on its model's queue, with the job's id as the task's id.

A message is a hint that a job may be queued; the row decides, since a worker must claim it. So any worker with free
slots may send a lost message again (see `workers.supervision.redelivery`), and a duplicate is harmless.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect

from celery import Celery
from redis.asyncio import Redis
from redis.exceptions import RedisError

from shared.config.redis_url import parse_redis_url
from shared.domain.priorities import PRIORITY_STEPS, Hint
from shared.redis import keys as redis_keys
from shared.redis.carried_requests import TTL_S
from shared.redis.message_template import HintMessages
from shared.runtime.outages import is_redis_outage

logger = logging.getLogger(__name__)

TASK = "headrace.generate"
_SEPARATOR = "\x06\x16"
RETRY_S = 1.0
MAX_PENDING = 10_000


def queue_name(model: str) -> str:
    return f"headrace.{model}"


def celery_app(redis_url: str) -> Celery:
    """The Celery application, for senders and for workers.

    Messages are acknowledged early and there is no result backend: the row is authoritative, and a broker that comes
    back must not run a job again. Task events are for Flower.
    """
    app = Celery("headrace", set_as_current=False)
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
            # Jobs lost with a worker are found by their rows: Redis need not keep a copy of unacknowledged messages.
            "ack_emulation": False,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
        },
    )
    use_broker(app, redis_url)
    return app


def use_broker(app: Celery, redis_url: str) -> None:
    """Use the Redis at a URL (`shared.config.redis_url`) as the broker of an application."""
    settings = parse_redis_url(redis_url).celery_settings()
    options = app.conf.broker_transport_options | settings.pop("broker_transport_options", {})
    app.conf.update(settings, broker_transport_options=options)


class HintSender:
    """Sends hints to their models' queues in the background, in batches."""

    def __init__(self, app: Celery, redis: Redis) -> None:
        self._messages = HintMessages(app, TASK)
        self._redis = redis
        # With what is sent beside them: a request, or nothing. None: no request may be left from an earlier hint.
        self._pending: list[tuple[Hint, bytes | None]] = []
        self._wake = asyncio.Event()

    def put(self, hint: Hint) -> None:
        """Send a hint for a job that may have had one. A request that is left from that one is deleted."""
        self._put(hint, None)

    def put_first(self, hint: Hint, request: bytes | None) -> None:
        """Send the first hint for a new job, with its request beside it (`shared.redis.carried_requests`)."""
        self._put(hint, request or b"")

    def _put(self, hint: Hint, beside: bytes | None) -> None:
        self._pending.append((hint, beside))
        self._wake.set()

    async def run(self) -> None:
        """Send until cancelled.

        While Redis is unavailable, up to `MAX_PENDING` hints are kept; workers find the rows of the others.
        """
        while True:
            await self._wake.wait()
            self._wake.clear()
            if not await self.flush():
                await asyncio.sleep(RETRY_S)
                self._wake.set()

    async def flush(self) -> bool:
        """Send the pending hints now. Returns False if Redis is unavailable; they stay pending then."""
        batch, self._pending = self._pending, []
        if not batch:
            return True
        lists: dict[tuple[str, bool], list[bytes]] = {}
        for hint, _ in batch:
            name = queue_name(hint.model)
            message = self._messages.message(hint.job_id, model=hint.model, queue=name, priority=hint.priority)
            lists.setdefault((list_name(name, hint.priority), hint.front), []).append(message)
        try:
            async with self._redis.pipeline(transaction=False) as pipe:
                for hint, request in batch:  # before the hints: a worker may have one at once
                    if request:
                        pipe.set(redis_keys.carried_request(hint.job_id), request, ex=TTL_S)
                if sent_again := [hint.job_id for hint, request in batch if request is None]:
                    pipe.delete(*map(redis_keys.carried_request, sent_again))
                for (name, front), messages in lists.items():  # workers take from the right
                    if front:
                        pipe.rpush(name, *reversed(messages))
                    else:
                        pipe.lpush(name, *messages)
                await pipe.execute()
        except (RedisError, OSError) as error:  # not only outages: workers find the rows in any case
            logger.warning("cannot send %d hints, retrying: %s", len(batch), error)
            self._pending = (_again(batch) + self._pending)[:MAX_PENDING]
            return False
        except asyncio.CancelledError:
            self._pending = _again(batch) + self._pending  # at worst they are sent twice
            raise
        return True


def _again(batch: list[tuple[Hint, bytes | None]]) -> list[tuple[Hint, bytes | None]]:
    """The hints of a batch without their requests: some may have been sent."""
    return [(hint, None) for hint, _ in batch]


async def depths(redis: Redis, model: str) -> dict[int, int]:
    """The number of messages on a model's queue, by the first priority of their list (`BANDS`).

    A key that is not a list is deleted: no message could be sent or fetched.
    """
    lists = [list_name(queue_name(model), step) for step in PRIORITY_STEPS]
    async with redis.pipeline(transaction=False) as pipe:
        for name in lists:
            pipe.llen(name)
        lengths = await pipe.execute(raise_on_error=False)
    for number, (name, length) in enumerate(zip(lists, lengths, strict=True)):
        if isinstance(length, RedisError):
            if is_redis_outage(length):
                raise length
            logger.warning("%s is not a list, deleting it: %s", name, length)
            await redis.delete(name)
            lengths[number] = 0
    return dict(zip(PRIORITY_STEPS, lengths, strict=True))


def list_name(queue: str, priority: int) -> str:
    """The list in which kombu keeps messages of a priority."""
    step = PRIORITY_STEPS[bisect(PRIORITY_STEPS, priority) - 1]
    return queue if step == 0 else f"{queue}{_SEPARATOR}{step}"
