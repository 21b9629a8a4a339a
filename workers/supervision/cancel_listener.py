"""Listens for cancels: job ids on this worker's own channel."""

from __future__ import annotations

import asyncio
import logging

from redis.asyncio import Redis

from shared.redis import keys as redis_keys
from shared.runtime.outages import is_redis_outage
from workers.execution.attempt import StopReason
from workers.execution.runner import Runner

logger = logging.getLogger(__name__)


class CancelListener:
    """Stops a job as soon as its cancel is asked for. What is missed here, the next heartbeat finds."""

    def __init__(self, redis: Redis, runner: Runner, worker: str) -> None:
        self._redis = redis
        self._runner = runner
        self._channel = redis_keys.worker_channel(worker)

    async def run(self) -> None:
        """Listen for ever; cancel to stop."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        message = await pubsub.get_message(timeout=1)
                        if message is not None:
                            self._runner.stop(message["data"].decode(), StopReason.CANCELLED)
            except Exception as error:
                if not is_redis_outage(error):
                    raise
                logger.warning("the control channel is away, trying again: %s", error)
                await asyncio.sleep(1)
