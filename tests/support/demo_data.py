"""An installation in the middle of a busy hour, for pictures of the console: made-up rows, the same at each run."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from shared.domain.owner import Owner
from shared.postgres.engine import connect
from tests.support.database import make_owner
from tests.support.demo_batches import insert_batches
from tests.support.demo_job import add_log, add_story, created_at_of
from tests.support.job_rows import job_id

_SERVER = {"engine": "openai", "preset": "vllm", "options": {"base_url": "http://127.0.0.1:9/v1"}}
MODELS: list[dict[str, object]] = [
    {"name": "llama-3-70b", "model": "llama-3-70b-instruct", **_SERVER},
    {"name": "qwen3-8b", "model": "qwen3-8b", **_SERVER},
    {"name": "claude-sonnet", "engine": "anthropic", "model": "claude-sonnet-5-5"},
    {"name": "smollm2", "engine": "simulated"},
]
# Model, share of the jobs, its first token in seconds, workers, slots of each, KV use of the fullest.
_FLEET = (
    ("llama-3-70b", 0.53, 0.115, 4, 64, 0.71),
    ("qwen3-8b", 0.42, 0.06, 3, 64, 0.83),
    ("claude-sonnet", 0.02, 0.34, 1, 64, None),
    ("smollm2", 0.03, 0.05, 1, 32, 0.06),
)
_RUNNING = {("llama-3-70b", 3): 176, ("llama-3-70b", 9): 48, ("qwen3-8b", 3): 150, ("qwen3-8b", 9): 39,
            ("claude-sonnet", 3): 9}  # fmt: skip
_QUEUED = {("llama-3-70b", 3): 33, ("qwen3-8b", 3): 4, ("llama-3-70b", 9): 640}
_TOKENS_PER_S = {"llama-3-70b": 1280.0, "qwen3-8b": 1290.0, "claude-sonnet": 310.0, "smollm2": 110.0}
_PROMPTS = (
    "Explain backpressure to a new colleague",
    "Summarize the incident of last night in three sentences",
    "Write a query that finds customers without an order this year",
    "Which of these two contracts has the longer notice period?",
    "Translate the release notes to Portuguese",
)
# The worker that was lost, how many minutes ago, and how many of its jobs continued elsewhere.
_LOST, _LOST_MINUTES_AGO, _RESCUED = "llama-3-70b-3", 17, 41
_JOBS_A_MINUTE = 60
_PROJECTS = ("team-docs", "team-search")
_INSERT = """
    INSERT INTO jobs (id, project_id, key_id, end_user, model, status, priority, request, metadata, created_at,
        attempt, worker, attempt_started_at, deaths, attempts, started_at, first_token_at, finished_at, usage,
        error_code, error_message)
    VALUES (:id, :project_id, :key_id, :end_user, :model, :status, :priority, CAST(:request AS json), '{}',
        :created_at, :attempt, :worker, :attempt_started_at, :deaths, CAST(:attempts AS jsonb), :started_at,
        :first_token_at, :finished_at, CAST(:usage AS jsonb), :error_code, :error_message)
"""
# The id of a job begins with the time of its submission.
_RENEW = """
    UPDATE jobs SET created_at = renewed.at, started_at = renewed.start, attempt_started_at = renewed.start,
        id = 'job_' || lpad(to_hex((extract(epoch FROM renewed.at) * 1000)::bigint), 12, '0') || substr(jobs.id, 17)
    FROM (
        SELECT id, at, CASE WHEN status = 'in_progress' THEN at END AS start FROM (
            SELECT id, status,
                now() - random() * CASE status WHEN 'queued' THEN interval '0.4 s' ELSE interval '9 s' END AS at
            FROM jobs WHERE status IN ('queued', 'in_progress') AND priority < 9
        ) AS drawn
    ) AS renewed
    WHERE renewed.id = jobs.id
"""
_INSERT_WORKER = """
    INSERT INTO workers (id, model, slots, running, state, state_since, started_at, lease_expires_at, version,
        kv_cache_usage, tokens_per_s)
    VALUES (:id, :model, :slots, :running, 'ready', :started_at, :started_at, :lease, '0.1.0', :kv, :rate)
"""


async def fill(database_url: str, redis_url: str) -> str:
    """Fill a migrated database; returns the id of the job with a story."""
    engine, redis = connect(database_url), Redis.from_url(redis_url)
    try:
        owners = [await make_owner(engine, name) for name in _PROJECTS]
        await _insert(engine, owners)
        async with engine.begin() as connection:
            # Of the project whose key takes the pictures.
            await insert_batches(connection, await make_owner(engine, "default"), datetime.now(UTC))
        story = await add_story(engine, owners[0])
        await add_log(redis, story, await created_at_of(engine, story))
        return story
    finally:
        await redis.aclose()
        await engine.dispose()


async def go_on(connection: AsyncConnection) -> datetime:
    """Let the busy hour last until now, because pictures are taken for minutes; returns until when it lasted.

    Jobs have ended since, and interactive ones that wait or run were submitted just now: no worker takes them, so they
    would age.
    """
    await connection.execute(text(_RENEW))
    projects = await connection.execute(
        text("SELECT k.id, k.project_id FROM api_keys k JOIN projects p ON p.id = k.project_id"
             " WHERE k.name = p.name AND p.name = ANY(:names)"),
        {"names": list(_PROJECTS)},
    )  # fmt: skip
    owners = [Owner(row.project_id, row.id) for row in projects]
    since: datetime = (await connection.execute(text("SELECT max(finished_at) FROM jobs"))).scalar_one()
    now, random = datetime.now(UTC), Random(int(since.timestamp()))
    seconds = (now - since).total_seconds()
    count = int(_JOBS_A_MINUTE * seconds / 60)
    if count:
        ends = (now - timedelta(seconds=(number + random.random()) * seconds / count) for number in range(count))
        await connection.execute(text(_INSERT), [_ended_at(now, end, random, owners) for end in ends])
        # The minutes that were counted without these jobs.
        await connection.execute(
            text("DELETE FROM job_statistics WHERE minute >= date_trunc('minute', CAST(:since AS timestamptz))"),
            {"since": since},
        )
    return since


async def _insert(engine: AsyncEngine, owners: list[Owner]) -> None:
    now, random = datetime.now(UTC), Random(5)
    async with engine.begin() as connection:
        rows = [*_ended(now, random, owners), *_open(now, random, owners), *_rescued(now, random, owners)]
        await connection.execute(text(_INSERT), rows)
        await _insert_workers(connection, now)
        await connection.execute(text("INSERT INTO model_pauses (model, paused_at) VALUES ('smollm2', :at)"),
                                 {"at": now - timedelta(minutes=48)})  # fmt: skip


async def _insert_workers(connection: AsyncConnection, now: datetime) -> None:
    workers = []
    for model, _, _, count, slots, kv in _FLEET:
        for number in range(1, count + 1):
            name = f"{model}-{number}"
            age = timedelta(minutes=_LOST_MINUTES_AGO - 1) if name == _LOST else timedelta(hours=9, minutes=number)
            workers.append(
                {
                    "id": f"{name}b" if name == _LOST else name,
                    "model": model,
                    "slots": slots,
                    "running": 0,
                    "started_at": now - age,
                    "lease": now + timedelta(hours=12),
                    "kv": None if kv is None else kv - 0.03 * (count - number),
                    "rate": _TOKENS_PER_S[model],
                }
            )
    lost_at = now - timedelta(minutes=_LOST_MINUTES_AGO)
    workers.append({**workers[2], "id": _LOST, "started_at": now - timedelta(hours=9), "lease": lost_at})
    await connection.execute(text(_INSERT_WORKER), workers)


def _job(random: Random, owners: list[Owner], model: str, created_at: datetime, **values: Any) -> dict[str, Any]:
    owner = random.choice(owners)
    prompt = random.choice(_PROMPTS)
    return {
        "id": job_id(created_at),
        "project_id": owner.project_id,
        "key_id": owner.key_id,
        "end_user": str(random.randint(4000, 4999)),
        "model": model,
        "status": "completed",
        "priority": 3,
        "request": json.dumps({"messages": [{"role": "user", "content": prompt}], "max_tokens": 512}),
        "created_at": created_at,
        "attempt": 1,
        "worker": None,
        "attempt_started_at": None,
        "deaths": 0,
        "attempts": "[]",
        "started_at": None,
        "first_token_at": None,
        "finished_at": None,
        "usage": None,
        "error_code": None,
        "error_message": None,
        **values,
    }


def _first_token_s(random: Random, base_s: float, minutes_ago: float) -> float:
    """A time to the first token: a long tail, and a peak while a worker was missing."""
    peak = 1 + 1.5 * math.exp(-(((minutes_ago - _LOST_MINUTES_AGO) / 3) ** 2))
    return base_s * random.lognormvariate(0, 0.28) * peak


def _ended(now: datetime, random: Random, owners: list[Owner]) -> Iterator[dict[str, Any]]:
    for minute in range(62):
        for _ in range(int(_JOBS_A_MINUTE * (1 + 0.15 * math.sin(minute / 7)))):
            yield _ended_at(now, now - timedelta(minutes=minute + random.random()), random, owners)


def _ended_at(now: datetime, finished_at: datetime, random: Random, owners: list[Owner]) -> dict[str, Any]:
    model, _, base_s, *_ = random.choices(_FLEET, [share for _, share, *_ in _FLEET])[0]
    first_token_s = _first_token_s(random, base_s, (now - finished_at).total_seconds() / 60)
    tokens = random.randint(40, 9000)
    created_at = finished_at - timedelta(seconds=first_token_s + random.uniform(1, 9))
    failed = random.random() < 0.002
    return _job(
        random,
        owners,
        model,
        created_at,
        status="failed" if failed else "completed",
        error_code="upstream_error" if failed else None,
        error_message="The upstream returned 502." if failed else None,
        started_at=created_at + timedelta(seconds=first_token_s * 0.3),
        first_token_at=None if failed else created_at + timedelta(seconds=first_token_s),
        finished_at=finished_at,
        usage=json.dumps({"prompt_tokens": 742, "completion_tokens": tokens, "total_tokens": 742 + tokens}),
    )


def _open(now: datetime, random: Random, owners: list[Owner]) -> Iterator[dict[str, Any]]:
    for (model, priority), count in _RUNNING.items():
        for number in range(count):
            created_at = now - timedelta(seconds=random.uniform(1, 9))
            workers = next(row[3] for row in _FLEET if row[0] == model)
            yield _job(
                random,
                owners,
                model,
                created_at,
                status="in_progress",
                priority=priority,
                worker=f"{model}-{number % workers + 1}".replace(_LOST, f"{_LOST}b"),
                attempt_started_at=created_at,
                started_at=created_at,
            )
    for (model, priority), count in _QUEUED.items():
        for _ in range(count):
            waited_s = random.uniform(0, 1.8 if priority < 9 else 900)
            created_at = now - timedelta(seconds=waited_s)
            yield _job(random, owners, model, created_at, status="queued", priority=priority, attempt=0)


def _rescued(now: datetime, random: Random, owners: list[Owner]) -> Iterator[dict[str, Any]]:
    lost_at = now - timedelta(minutes=_LOST_MINUTES_AGO)
    for number in range(_RESCUED):
        created_at = lost_at - timedelta(seconds=random.uniform(2, 8))
        continued_at = lost_at + timedelta(seconds=random.uniform(0.1, 1.4))
        ended_at = continued_at + timedelta(seconds=random.uniform(1, 6))
        attempts = [
            {"number": 1, "worker": _LOST, "started_at": created_at, "ended_at": lost_at, "tokens": 58,
             "outcome": "worker_lost"},
            {"number": 2, "worker": f"llama-3-70b-{number % 2 + 1}", "started_at": continued_at, "ended_at": ended_at,
             "tokens": 56, "outcome": "completed"},
        ]  # fmt: skip
        yield _job(
            random,
            owners,
            "llama-3-70b",
            created_at,
            attempt=2,
            deaths=1,
            attempts=json.dumps(attempts, default=lambda moment: moment.isoformat()),
            started_at=created_at + timedelta(seconds=0.02),
            first_token_at=created_at + timedelta(seconds=0.2),
            finished_at=ended_at,
            usage=json.dumps({"prompt_tokens": 742, "completion_tokens": 114, "total_tokens": 856}),
        )
