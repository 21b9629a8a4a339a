"""The requests of new jobs beside their hints, for workers that start them before their claims are committed.

A request is in a key of its own for `TTL_S` seconds, and whoever takes it deletes it. It is never the only copy: the
row has the request, and a worker compares both before it publishes anything. See "A worker may start a new job before
its claim is committed" in docs/decisions/queue.md.

Each worker has a list of the jobs whose requests it took last: one of them may kill it before any row says that it has
the job.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import orjson
from redis.asyncio import Redis

from shared.domain.job import Job
from shared.domain.log_level import LogLevel
from shared.domain.priorities import is_batch
from shared.domain.request import GenerateRequest
from shared.redis import keys as redis_keys

logger = logging.getLogger(__name__)

# A job whose hint waited longer gains nothing by an early start, and may have been cancelled meanwhile.
TTL_S = 2
MAX_BYTES = 16 * 1024
# How many jobs are in the list of a worker, which claims them within milliseconds, and for how long.
TAKEN = 256
TAKEN_TTL_S = 3600
_TAKE = files("shared.redis").joinpath("carried_requests_take.lua").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class CarriedRequest:
    """The request of a project's job for a model."""

    project_id: int
    model: str
    request: GenerateRequest


def carried(job: Job, *, start_within_s: float | None = None, stored: str | None = None) -> bytes | None:
    """Encode the request of a new job; None if it is not to be started early.

    Those of batches gain nothing. A job that may expire while its request is in Redis would be started in vain. One of
    which nothing is to be kept has no other copies of its request than its row. `stored`: the request as the row has
    it, if that is known.
    """
    request = job.request
    if job.log_level is LogLevel.NONE or is_batch(job.priority):
        return None
    if start_within_s is not None and start_within_s <= TTL_S:
        return None
    if stored is None:
        if request.size + request.options_size > MAX_BYTES:
            return None
        stored = request.stored()
    elif len(stored) > MAX_BYTES:
        return None
    encoded = orjson.dumps([job.owner.project_id, job.model]) + b"\n" + stored.encode()
    return encoded if len(encoded) <= MAX_BYTES else None


class CarriedRequests:
    """Takes requests. Methods raise `redis.exceptions.RedisError` if Redis is unavailable."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._take = redis.register_script(_TAKE)

    async def take(self, job_id: str, worker: str) -> CarriedRequest | None:
        """Return and delete the request of a job; None if there is none any more, or this version cannot read it."""
        keys = [redis_keys.carried_request(job_id), redis_keys.taken_requests(worker)]
        encoded: Any = await self._take(keys=keys, args=[job_id, TAKEN, TAKEN_TTL_S])
        if encoded is None or len(encoded) > MAX_BYTES:
            return None
        try:
            header, _, request = encoded.partition(b"\n")
            project_id, model = orjson.loads(header)
            return CarriedRequest(project_id, model, GenerateRequest.model_validate(orjson.loads(request)))
        except (ValueError, TypeError) as error:  # including those of JSON and of the model's validation
            logger.info("job=%s cannot read the request beside its hint: %s", job_id, type(error).__name__)
            return None

    async def taken_by(self, worker: str) -> list[str]:
        """The jobs whose requests this worker took last."""
        found: Any = await self._redis.lrange(redis_keys.taken_requests(worker), 0, -1)
        return [job_id.decode() for job_id in found]
