"""Fails queued jobs of models that models.yaml no longer declares and that no worker runs: nothing else would end them.

A worker of a removed model runs the jobs that are left. Jobs are left without one if it is killed, or if the model was
removed while nothing ran. API processes may have read different versions of the file, so each one declares its models
in Redis, and the jobs of a model that any of them declares stay queued.
"""

from __future__ import annotations

import logging
import time

from redis.asyncio import Redis

from shared.config.models.loader import Registry
from shared.domain.errors import ErrorCode
from shared.domain.fallback import FallbackReason
from shared.domain.job import Failure
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis import keys
from shared.runtime.faulty_items import FaultyItems
from shared.runtime.periodic import run_periodically

logger = logging.getLogger(__name__)

INTERVAL_S = 10.0
# For how long a model must have had neither a worker nor an API process that declares it: processes are restarted one
# after the other, and a declaration is repeated several times in this time.
GRACE_S = 60.0
# Jobs ended at a time.
LIMIT = 500


class RemovedModels:
    """Declares the models of this process, and fails the jobs of models that are declared nowhere."""

    def __init__(
        self,
        registry: Registry,
        store: RecoveryStore,
        terminator: JobTerminator,
        redis: Redis,
        *,
        grace_s: float = GRACE_S,
    ) -> None:
        self._registry = registry
        self._store = store
        self._terminator = terminator
        self._redis = redis
        self._grace_s = grace_s
        # Since when a model with queued jobs has been served nowhere, on the monotonic clock.
        self._since: dict[str, float] = {}
        self._faulty = FaultyItems("job")

    async def run(self) -> None:
        """Check until cancelled."""
        await run_periodically(self.check, "check for jobs of removed models", interval_s=INTERVAL_S, immediately=True)

    async def check(self) -> int:
        """Declare the models and fail or move jobs, once. Returns the number of these."""
        await self._declare()
        now = time.monotonic()
        self._since = {model: self._since.get(model, now) for model in await self._unserved()}
        count = 0
        for model, since in self._since.items():
            if now - since >= self._grace_s:
                count += await self._fail_jobs(model)
            elif since == now:
                logger.warning("model=%s has queued jobs, but no worker, and models.yaml does not declare it", model)
        return count

    async def _declare(self) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for name in self._registry.models:
                pipeline.set(keys.declared_model(name), 1, px=max(1, int(self._grace_s * 1000)))
            await pipeline.execute()

    async def _unserved(self) -> list[str]:
        """The models with queued jobs that no API process declares and no live worker runs."""
        unknown = [model for model in await self._store.queued_models() if model not in self._registry]
        if not unknown:
            return []
        served = await self._store.served_models()
        declared = await self._redis.mget([keys.declared_model(model) for model in unknown])
        return [
            model
            for model, value in zip(unknown, declared, strict=True)
            if value is None and model not in served and model not in self._registry
        ]

    async def _fail_jobs(self, model: str) -> int:
        failure = Failure(
            ErrorCode.MODEL_NOT_FOUND,
            f"The model `{model}` was removed, and no worker of it is left; submit the job with another model.",
        )
        count = 0
        for job in await self._store.queued_of(model, limit=LIMIT, without=self._faulty.ids()):
            with self._faulty.isolated(job.id):
                count += await self._terminator.fail(job, failure, FallbackReason.MODEL_REMOVED)
        if count:
            logger.warning(
                "model=%s failed %d queued jobs, or moved them to fallbacks: the model was removed, and has no worker",
                model, count,
            )  # fmt: skip
        return count
