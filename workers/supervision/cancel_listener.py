"""Receives messages on the worker's channel: ids of jobs to cancel, and requests for a heartbeat."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from redis.asyncio import Redis

from shared.domain.job import is_job_id
from shared.redis import keys as redis_keys
from shared.runtime.outages import is_redis_outage
from shared.telemetry.metrics import Metrics
from workers.execution.attempts.context import InterruptReason
from workers.execution.runner import Runner

logger = logging.getLogger(__name__)

RETRY_S = 1.0


class CancelListener:
    """Stops jobs as soon as their cancellation is requested. The next heartbeat stops those missed here."""

    def __init__(
        self,
        redis: Redis,
        runner: Runner,
        worker: str,
        metrics: Metrics,
        on_heartbeat: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_heartbeat` is called when the worker is to read its orders from the database."""
        self._on_heartbeat = on_heartbeat
        self._malformed = metrics.malformed_messages.labels("cancel")
        self._redis = redis
        self._runner = runner
        self._channel = redis_keys.worker_channel(worker)

    async def run(self) -> None:
        """Listen for cancellations of jobs until this task is cancelled."""
        while True:
            try:
                async with self._redis.pubsub(ignore_subscribe_messages=True) as pubsub:
                    await pubsub.subscribe(self._channel)
                    while True:
                        message = await pubsub.get_message(timeout=1)
                        if message is not None:
                            self._receive(message["data"].decode(errors="replace"))
            except Exception as error:
                if not is_redis_outage(error):
                    raise
                logger.warning("cannot listen for cancellations, retrying: %s", error)
                await asyncio.sleep(RETRY_S)

    def _receive(self, job_id: str) -> None:
        if job_id == redis_keys.HEARTBEAT:
            self._on_heartbeat()
        elif is_job_id(job_id):
            self._runner.stop(job_id, InterruptReason.CANCELLED)
        else:
            self._malformed.inc()
            logger.warning("a malformed message was dropped: not a job's id source=%s", "cancel")
