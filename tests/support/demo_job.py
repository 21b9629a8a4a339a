"""One job with a story, for pictures of the console: routed, lost with its worker, and continued at the next token."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.owner import Owner
from shared.redis import keys as redis_keys
from tests.support.job_rows import add_job

_PROMPT = "Explain backpressure to a new colleague"
_ANSWER = """\
Backpressure is what a system does when work arrives faster than it can be finished: it tells the sender to slow down \
instead of piling work up until something breaks.

Think of a mill: when the wheel cannot take more water, the gate closes a little and the pond rises. Nothing is lost, \
and nobody downstream is flooded. In this platform the pond is the queue: a job that cannot run yet waits in the \
database, and its client learns its place."""
_LOST_AFTER_S, _CONTINUED_AFTER_S, _TOOK_S = 1.9, 7.3, 9.1


async def add_story(database: AsyncEngine, owner: Owner) -> str:
    """Insert the job; returns its id."""
    created_at = datetime.now(UTC) - timedelta(minutes=4)

    def at(seconds: float) -> str:
        return (created_at + timedelta(seconds=seconds)).isoformat()

    attempts: list[dict[str, Any]] = [
        {"number": 1, "worker": "qwen3-8b-3", "started_at": at(0.007), "ended_at": at(_CONTINUED_AFTER_S - 0.02),
         "tokens": 58, "outcome": "worker_lost", "model": "qwen3-8b"},
        {"number": 2, "worker": "qwen3-8b-1", "started_at": at(_CONTINUED_AFTER_S), "ended_at": at(_TOOK_S),
         "tokens": 56, "outcome": "completed", "model": "qwen3-8b"},
    ]  # fmt: skip
    decisions = {
        "route": {"route": "auto", "rule": "otherwise", "score": 0.12, "input_tokens": 742},
        "cache": {"outcome": "MISS", "ttl_s": 3600},
    }
    return await add_job(
        database,
        owner,
        "qwen3-8b",
        now=created_at + timedelta(seconds=_TOOK_S),
        ended_s_ago=0,
        took_s=_TOOK_S,
        wait_s=0.007,
        first_token_s=0.19,
        request={
            "messages": [
                {"role": "system", "content": "You explain software to people who are new to it. Use one picture."},
                {"role": "user", "content": _PROMPT},
            ],
            "sampling": {"max_tokens": 512, "temperature": 0.3},
        },
        metadata={"team": "docs", "page": "operations"},
        end_user="4711",
        requested_model="auto",
        attempt=2,
        deaths=1,
        attempts=attempts,
        decisions=decisions,
        usage={"prompt_tokens": 742, "cached_tokens": 640, "completion_tokens": 114},
        output=[{"index": 0, "text": _ANSWER, "finish_reason": "stop"}],
    )


async def add_log(redis: Redis, job_id: str, created_at: datetime) -> None:
    """Write the job's log as its workers have written it, at the times of its story."""
    random, seq = Random(7), 0

    async def write(kind: str, seconds: float, data: dict[str, Any], tokens: int = 0) -> None:
        nonlocal seq
        seq += 1
        fields: dict[Any, Any] = {"t": kind, "e": json.dumps(data)}
        if tokens:
            fields["k"] = str(tokens)
        fields["w"] = str(int((created_at + timedelta(seconds=seconds)).timestamp() * 1000))
        await redis.xadd(redis_keys.log(job_id), fields, id=f"{seq}-0")

    for attempt, start, first, end, tokens in (
        (1, 0.01, 0.19, _LOST_AFTER_S, 58),
        (2, _CONTINUED_AFTER_S + 0.003, _CONTINUED_AFTER_S + 0.12, _TOOK_S, 56),
    ):
        await write("started", start, {"attempt": attempt})
        count = math.ceil(tokens / 1.4)
        for index in range(count):
            seconds = first + (end - first) * index / count
            await write("delta", seconds, {"index": 0, "text": "…"}, random.choice((1, 1, 1, 2, 2)))
    await write("completed", _TOOK_S, {"usage": {}, "timings": {}})


async def created_at_of(database: AsyncEngine, job_id: str) -> datetime:
    """When a job was submitted."""
    async with database.connect() as connection:
        found: datetime = (
            await connection.execute(text("SELECT created_at FROM jobs WHERE id = :id"), {"id": job_id})
        ).scalar_one()
    return found
