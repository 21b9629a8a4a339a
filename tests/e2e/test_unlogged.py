"""A canary in prompts and answers of jobs of which nothing is to be kept: after their purge, nothing returns it."""

from __future__ import annotations

import base64
import json
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
import redis as sync_redis
from redis.asyncio import Redis
from sqlalchemy import text

from api.jobs.retention import Retention
from api.jobs.retention_store import RetentionStore
from api.keys.store import ApiKeyStore
from shared.domain.answer_options import KeyOptions
from shared.domain.log_level import LogLevel
from shared.postgres.engine import connect
from shared.redis.event_log import EventLog
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end
from tests.support.database import drop_database
from tests.support.metrics import api_metrics
from tests.support.otlp import Collector, collector
from tests.support.stack import Stack
from tests.support.waiting import eventually

NAME = "unlogged"
KEY = "hr_unlogged_" + "1" * 43
# Each dialect has a canary of its own. It is in the metadata and in the tools too.
CANARY = "canary-{}-5c1f"


@pytest.fixture(scope="module")
def collected() -> Iterator[Collector]:
    with collector() as collected:
        yield collected


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, collected: Collector) -> Iterator[Stack]:
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 8,
            "cache": {"ttl": 600},
            "options": {"ttft_ms": 1, "itl_ms": 1, "fail_on": "<<fail>>", "max_model_len": 5000},
        }
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        NAME,
        models,
        HEADRACE_LOG_LEVEL="DEBUG",
        HEADRACE_BATCH_POLL_S=0.1,
        OTEL_EXPORTER_OTLP_ENDPOINT=collected.url,
        OTEL_BSP_SCHEDULE_DELAY=50,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, f"stack_{NAME}")


def canary(name: str) -> str:
    return CANARY.format(name)


async def native(client: httpx.AsyncClient, how: dict[str, Any]) -> list[str]:
    mark = canary("native")
    body = {"model": "sim", "prompt": mark, "max_tokens": 5, "metadata": {"note": mark}, "stop": [mark], **how["body"]}
    headers = {**how["headers"], "Idempotency-Key": how["name"]}
    created = await client.post("/v1/jobs", json=body, headers=headers)
    assert created.status_code == 202, created.text
    await wait_for_end(client, created.json()["id"])
    failed = await client.post("/v1/jobs", json={**body, "prompt": f"{mark} <<fail>>"}, headers=how["headers"])
    await wait_for_end(client, failed.json()["id"])
    return [mark]


async def chat(client: httpx.AsyncClient, how: dict[str, Any]) -> list[str]:
    mark = canary("chat")
    body: dict[str, Any] = {
        "model": "sim", "messages": [{"role": "user", "content": mark}], "max_tokens": 5, "temperature": 0,
        "user": "somebody", **how["body"],
    }  # fmt: skip
    answer = await client.post("/v1/chat/completions", json=body, headers=how["headers"])
    assert answer.status_code == 200, answer.text
    streamed = await client.post("/v1/chat/completions", json={**body, "stream": True}, headers=how["headers"])
    assert "[DONE]" in streamed.text
    return [mark, answer.json()["choices"][0]["message"]["content"]]


async def completions(client: httpx.AsyncClient, how: dict[str, Any]) -> list[str]:
    """The answer has the prompt, too."""
    mark = canary("echo")
    body = {"model": "sim", "prompt": mark, "max_tokens": 5, "echo": True, **how["body"]}
    answer = await client.post("/v1/completions", json=body, headers=how["headers"])
    assert mark in answer.json()["choices"][0]["text"]
    return [mark]


async def responses(client: httpx.AsyncClient, how: dict[str, Any]) -> list[str]:
    mark = canary("responses")
    body = {"model": "sim", "input": mark, "instructions": mark, "max_output_tokens": 16, **how["body"]}
    answer = await client.post("/v1/responses", json=body, headers=how["headers"])
    assert answer.status_code == 200, answer.text
    return [mark]


async def anthropic(client: httpx.AsyncClient, how: dict[str, Any]) -> list[str]:
    mark = canary("anthropic")
    tool = {"name": "find", "description": mark, "input_schema": {"type": "object", "properties": {}}}
    body = {
        "model": "sim", "system": mark, "messages": [{"role": "user", "content": mark}], "max_tokens": 5,
        "tools": [tool], **how["body"],
    }  # fmt: skip
    answer = await client.post("/v1/messages", json=body, headers=how["headers"])
    assert answer.status_code == 200, answer.text
    return [mark]


async def batch(client: httpx.AsyncClient, how: dict[str, Any]) -> list[str]:
    """Its files have it until they are deleted: they are the client's own."""
    mark = canary("batch")
    body = {"model": "sim", "messages": [{"role": "user", "content": mark}], "max_tokens": 5, **how["body"]}
    lines = [{"custom_id": f"{n}", "method": "POST", "url": "/v1/chat/completions", "body": body} for n in range(3)]
    content = "\n".join(map(json.dumps, lines)).encode()
    uploaded = await client.post("/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)})
    created = await client.post(
        "/v1/batches",
        json={
            "input_file_id": uploaded.json()["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    )
    assert created.status_code == 200, created.text

    async def ended() -> Any:
        found = (await client.get(f"/v1/batches/{created.json()['id']}")).json()
        return found if found["status"] == "completed" else None

    done = await eventually(ended, "the batch is completed")
    assert done["request_counts"]["completed"] == 3
    assert mark in (await client.get(f"/v1/files/{done['input_file_id']}/content")).text
    for name in ("input_file_id", "output_file_id"):
        assert (await client.delete(f"/v1/files/{done[name]}")).status_code == 200
    return [mark]


Dialect = Callable[[httpx.AsyncClient, dict[str, Any]], Awaitable[list[str]]]
DIALECTS: dict[str, Dialect] = {
    "native": native,
    "chat": chat,
    "completions": completions,
    "responses": responses,
    "anthropic": anthropic,
    "batch": batch,
}


@pytest.mark.parametrize("how", ["store", "header", "key"])
async def test_nothing_returns_what_is_not_to_be_kept(stack: Stack, collected: Collector, how: str) -> None:
    """`store` false in the body, the header, and the level of the key."""
    ways: dict[str, dict[str, Any]] = {
        "store": {"body": {"store": False}, "headers": {}},
        "header": {"body": {}, "headers": {"x-headrace-log": "none"}},
        "key": {"body": {}, "headers": {}},
    }
    unable = ("batch",) if how == "header" else ()  # its lines have no headers
    database = connect(stack.environment["DATABASE_URL"])
    redis = Redis.from_url(stack.environment["REDIS_URL"])
    headers = {}
    if how == "key":
        await ApiKeyStore(database).create("unlogged", KEY, options=KeyOptions(log_level=LogLevel.NONE))
        headers = {"Authorization": f"Bearer {KEY}"}
    try:
        async with stack.client(headers=headers) as client:
            asked = [ask for name, ask in DIALECTS.items() if name not in unable]
            marks = [mark for ask in asked for mark in await ask(client, {"name": how, **ways[how]})]
        before = await rows_of_all_tables(stack)
        for mark in marks:
            assert found_in(mark, before), f"{mark}: the search finds what is there"
        retention = Retention(RetentionStore(database), EventLog(redis), api_metrics(), retention_s=0)

        async def purged() -> bool:
            await retention.purge(unlogged_s=0)
            return await count(stack, "jobs WHERE log_level = 'none' AND deleted_at IS NULL") == 0

        await eventually(purged, "the jobs are purged")
        places = await rows_of_all_tables(stack) | all_of_redis(stack) | files_of(stack)
        places["traces"] = b"\n".join(collected.bodies)
        for place in ("jobs", "usage_events", "api.log", "traces"):
            assert places[place], place
        for mark in marks:
            assert found_in(mark, places) == [], mark
        assert await count(stack, "request_log") == 0
        assert await count(stack, "usage_events") > 0, "what was used is still known"
    finally:
        await redis.aclose()
        await database.dispose()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/jobs", {"prompt": "x"}),
        ("/v1/completions", {"prompt": "x"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
        ("/v1/responses", {"input": "x"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}),
    ],
)
async def test_an_unknown_level_is_refused(stack: Stack, path: str, body: dict[str, Any]) -> None:
    async with stack.client() as client:
        refused = await client.post(path, json={"model": "sim", **body}, headers={"x-headrace-log": "some"})
        assert refused.status_code == 400, refused.text
        message = refused.json()["error"]["message"]
        assert message == "x-headrace-log: must be one of none, metadata, redacted, full, got 'some'"


def found_in(mark: str, places: dict[str, bytes]) -> list[str]:
    """The places that have a text: as it is, as PostgreSQL shows bytes, or as a body is encoded in JSON and base64."""
    plain = mark.encode()
    forms = (plain, plain.hex().encode(), base64.b64encode(plain)[:-4])
    return [place for place, content in places.items() if any(form in content for form in forms)]


async def count(stack: Stack, rows: str) -> int:
    database = connect(stack.environment["DATABASE_URL"])
    try:
        async with database.connect() as connection:
            found = await connection.execute(text(f"SELECT count(*) FROM {rows}"))  # noqa: S608
            return int(found.scalar_one())
    finally:
        await database.dispose()


async def rows_of_all_tables(stack: Stack) -> dict[str, bytes]:
    """All columns of all rows, also of tables that this test does not know."""
    database = connect(stack.environment["DATABASE_URL"])
    tables = """
        SELECT quote_ident(relname) FROM pg_class
        WHERE relkind = 'r' AND relnamespace = CAST(current_schema() AS regnamespace)
    """
    try:
        async with database.connect() as connection:
            names = (await connection.execute(text(tables))).scalars().all()
            found = {}
            for name in names:
                rows = await connection.execute(text(f"SELECT CAST(t AS text) FROM {name} AS t"))  # noqa: S608
                found[name] = "\n".join(rows.scalars()).encode()
            return found
    finally:
        await database.dispose()


def all_of_redis(stack: Stack) -> dict[str, bytes]:
    """All keys with their values; not `DUMP`, which compresses."""
    found: dict[str, bytes] = {}
    with sync_redis.Redis.from_url(stack.environment["REDIS_URL"]) as redis:
        for key in redis.scan_iter():
            kind = redis.type(key)
            value: Any = {
                b"string": lambda key=key: redis.get(key),
                b"hash": lambda key=key: redis.hgetall(key),
                b"list": lambda key=key: redis.lrange(key, 0, -1),
                b"set": lambda key=key: redis.smembers(key),
                b"zset": lambda key=key: redis.zrange(key, 0, -1),
                b"stream": lambda key=key: redis.xrange(key),
            }.get(kind, lambda: None)()  # none: it has expired
            found[f"redis {key.decode()}"] = key + repr(value).encode()
    return found


def files_of(stack: Stack) -> dict[str, bytes]:
    """Logs, and uploaded and written files."""
    files = (path for path in stack.folder.rglob("*") if path.is_file() and path.name != "models.yaml")
    return {str(path.relative_to(stack.folder)): path.read_bytes() for path in files}
