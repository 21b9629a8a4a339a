"""Records what a version leaves behind: rows, event logs, messages and the API's views of them.

Tests replay the recordings of earlier versions against the current one (`tests/e2e/test_upgrade.py`). Before a release,
record it:

    python -m tests.support.recorded_version tests/fixtures/versions/REVISION.json
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from shared.redis import keys as redis_keys
from tests.support.demo_servers import demo_servers
from tests.support.stack import Stack, write_models
from tests.support.waiting import eventually

VERSIONS = Path(__file__).parents[1] / "fixtures" / "versions"
TABLES = ("jobs", "responses", "files", "batches", "idempotency_keys")
# `slow` has one slot and takes minutes, so that its first job is running and its second waits.
MODELS: list[dict[str, Any]] = [
    {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 1, "itl_ms": 1, "fail_on": "<<fail>>"}},
    {"name": "slow", "engine": "simulated", "slots": 1, "options": {"ttft_ms": 1, "itl_ms": 20}},
]
SCHEMA = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": SCHEMA}}
ENDED: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("/v1/jobs", {"model": "sim", "prompt": "a b c", "max_tokens": 5}),
    "choices and logprobs": (
        "/v1/jobs",
        {"model": "sim", "prompt": "a b", "max_tokens": 6, "n": 2, "logprobs": 3, "metadata": {"k": "v"}},
    ),
    "chat": ("/v1/jobs", {"model": "sim", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}),
    "failure": ("/v1/jobs", {"model": "sim", "prompt": "<<fail>>"}),
    "chat completion": (
        "/v1/chat/completions",
        {"model": "sim", "messages": [{"role": "user", "content": "x"}], "tools": [TOOL], "tool_choice": "required"},
    ),
    "structured": (
        "/v1/chat/completions",
        {
            "model": "sim",
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
        },
    ),
    "message": (
        "/v1/messages",
        {"model": "sim", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5},
    ),
    "response": ("/v1/responses", {"model": "sim", "input": "x", "max_output_tokens": 5}),
}
RUNNING = {"model": "slow", "prompt": "tell me", "max_tokens": 200, "seed": 7}
QUEUED = {"model": "slow", "messages": [{"role": "user", "content": "x"}], "max_tokens": 3, "tools": [TOOL]}


async def record(stack: Stack, database_url: str, redis_url: str) -> dict[str, Any]:
    """Run the jobs, kill the worker of `slow` within a job, and return the recording."""
    redis: Any = Redis.from_url(redis_url, decode_responses=True)
    async with stack.client() as client, redis:
        bodies = {name: await _post(client, path, body) for name, (path, body) in ENDED.items()}
        jobs = {name: body["id"] for name, body in bodies.items() if body["id"].startswith("job_")}
        streams = {job_id: (await client.get(f"/v1/jobs/{job_id}/stream")).text for job_id in jobs.values()}
        views = {job_id: (await client.get(f"/v1/jobs/{job_id}")).json() for job_id in jobs.values()}
        response_id = bodies["response"]["id"]
        response = (await client.get(f"/v1/responses/{response_id}")).json()
        running = (await _post(client, "/v1/jobs", RUNNING))["id"]
        await eventually(lambda: _has_events(redis, running, 8), "the running job has output")
        for name in stack.workers("slow"):
            stack.kill(name)
        queued = (await _post(client, "/v1/jobs", QUEUED))["id"]
        messages = await eventually(lambda: _messages(redis), "the message is on the queue")
        stack.stop()
        database = create_async_engine(database_url)
        rows = {table: await _rows(database, table) for table in TABLES}
        await database.dispose()
        return {
            "jobs": jobs,
            "running": running,
            "queued": queued,
            "views": views,
            "streams": streams,
            "response": response,
            "rows": rows,
            "logs": {running: await _log(redis, running)},
            "messages": messages,
        }


async def restore(recording: dict[str, Any], database: AsyncEngine, redis: Any) -> None:
    """Write the rows, logs and messages of a recording; the database has the stack's project and key."""
    async with database.begin() as connection:
        for table, rows in recording["rows"].items():
            if rows:
                columns = ", ".join(f'"{name}"' for name in rows[0])
                records = f"json_populate_recordset(NULL::{table}, :rows)"
                insert = f"INSERT INTO {table} ({columns}) SELECT {columns} FROM {records}"  # noqa: S608
                await connection.execute(text(insert), {"rows": json.dumps(rows)})
    for job_id, log in recording["logs"].items():
        for entry_id, fields in log["entries"]:
            await redis.xadd(redis_keys.log(job_id), fields, id=entry_id)
        await redis.hset(redis_keys.fence(job_id), mapping=log["fence"])
    for queue, messages in recording["messages"].items():
        await redis.lpush(queue, *reversed(messages))


async def _post(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(path, json=body)
    assert answer.is_success, f"{path} {body}: {answer.status_code} {answer.text}"
    result: dict[str, Any] = answer.json()
    return result


async def _has_events(redis: Any, job_id: str, count: int) -> bool:
    return int(await redis.xlen(redis_keys.log(job_id))) >= count


async def _messages(redis: Any) -> dict[str, list[str]]:
    """The messages on Celery's queues, by queue."""
    return {key: await redis.lrange(key, 0, -1) async for key in redis.scan_iter("headrace.*", _type="list")}


async def _rows(database: AsyncEngine, table: str) -> list[dict[str, Any]]:
    async with database.connect() as connection:
        statement = text(f"SELECT row_to_json(t)::text FROM {table} AS t")  # noqa: S608
        return [json.loads(row) for row in (await connection.execute(statement)).scalars()]


async def _log(redis: Any, job_id: str) -> dict[str, Any]:
    fence = await redis.hgetall(redis_keys.fence(job_id))
    return {"fence": fence, "entries": await redis.xrange(redis_keys.log(job_id))}


def main(path: Path) -> None:
    with demo_servers() as (url, redis_url, folder):
        stack = Stack(url, redis_url, write_models(folder / "models.yaml", MODELS), folder)
        try:
            stack.start_api()
            stack.start_worker("sim")
            stack.start_worker("slow")
            recording = asyncio.run(record(stack, url, redis_url))
        finally:
            stack.stop()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(recording, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
