"""What operators do with workers and queues. The rows decide; messages on Redis only save waiting for a heartbeat."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from datetime import datetime

from redis.asyncio import Redis
from redis.exceptions import RedisError

from api.admin.fleet.store import FleetStore, WorkerInfo
from api.keys.principal import Principal
from shared.config.models.loader import Registry
from shared.domain.errors import Conflict, NotFound
from shared.redis import keys as redis_keys

logger = logging.getLogger(__name__)


class FleetService:
    """Lists and drains workers; pauses and resumes the queues of models."""

    def __init__(self, store: FleetStore, redis: Redis, registry: Registry) -> None:
        self._store = store
        self._redis = redis
        self._registry = registry

    async def workers(self) -> list[WorkerInfo]:
        """Return all workers, by model; dead ones too, for an hour."""
        return await self._store.workers()

    async def pauses(self) -> dict[str, datetime]:
        """Return the paused models, and since when they are."""
        return await self._store.pauses()

    async def drain(self, principal: Principal, worker_id: str) -> WorkerInfo:
        """Let a worker take no more jobs, finish those that it has, and stop. Idempotent.

        Raises:
            NotFound: there is no such worker.
            Conflict: the worker is not alive.
        """
        changed = await self._store.request_drain(worker_id, by=principal.key_id)
        worker = await self._store.worker(worker_id)
        if worker is None:
            raise NotFound(f"There is no worker `{worker_id[:200]}`.", param="worker_id", code="worker_not_found")
        if not changed:
            raise Conflict(f"worker_id: the worker `{worker_id}` is not alive; it is {worker.state}.")
        logger.warning("worker=%s key=key_%d is drained", worker_id, principal.key_id)
        await self._notify([worker_id])
        return worker

    async def pause(self, principal: Principal, model: str) -> datetime | None:
        """Pause the queue of a model: jobs are accepted, and wait. Idempotent. Returns since when it is paused.

        Running jobs are not affected, and the deadlines of waiting ones apply. The model's adapters are on the same
        queue.

        Raises:
            NotFound: there is no such model.
            Conflict: the model is an adapter, which has no queue of its own.
        """
        if model not in self._registry:
            raise NotFound(f"The model `{model[:200]}` does not exist.", param="model", code="model_not_found")
        self._require_queue(model)
        await self._store.pause(self._registry.names_on(model), principal.key_id)
        logger.warning("model=%s key=key_%d the queue is paused", model, principal.key_id)
        await self._notify(await self._store.live_workers(model))
        return (await self._store.pauses()).get(model)

    async def resume(self, principal: Principal, model: str) -> None:
        """Resume the queue of a model. Idempotent.

        Raises:
            NotFound: there is no such model, and it is not paused.
            Conflict: the model is an adapter, which has no queue of its own.
        """
        if model not in self._registry and model not in await self._store.pauses():
            raise NotFound(f"The model `{model[:200]}` does not exist.", param="model", code="model_not_found")
        self._require_queue(model)
        await self._store.resume(self._registry.names_on(model), by=principal.key_id)
        logger.warning("model=%s key=key_%d the queue is resumed", model, principal.key_id)
        await self._notify(await self._store.live_workers(model))

    def _require_queue(self, model: str) -> None:
        if (queue := self._registry.queue_of(model)) != model:
            raise Conflict(
                f"model: `{model}` is an adapter, and its jobs lie on the queue of `{queue}`; pause or resume that one."
            )

    async def _notify(self, workers: Iterable[str]) -> None:
        """Let workers read their orders now."""
        for worker in workers:
            try:
                await self._redis.publish(redis_keys.worker_channel(worker), redis_keys.HEARTBEAT)
            except (RedisError, OSError) as error:
                logger.warning("cannot notify workers; they will follow at their next heartbeats: %s", error)
                return
