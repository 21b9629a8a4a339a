"""Rolling upgrades: rows, event logs and messages of the previous version, and of a newer one.

`tests/fixtures/versions` has a recording of each supported version, by the revision of its schema; a newer version is
imitated by members and event types that this one does not know.
"""

from __future__ import annotations

import copy
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.database import drop_database
from tests.support.recorded_version import MODELS, VERSIONS, restore
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually

RECORDINGS = sorted(VERSIONS.glob("*.json"))


def load(path: Path) -> dict[str, Any]:
    recording: dict[str, Any] = json.loads(path.read_text())
    return recording


@pytest.fixture
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Servers, without processes."""
    stack = make_stack(servers, tmp_path_factory, "upgrade", MODELS, HEADRACE_LEASE_S=2, HEADRACE_HEARTBEAT_S=0.5)
    try:
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_upgrade")


@pytest.fixture
async def database(stack: Stack) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(stack.environment["DATABASE_URL"].replace("postgresql:", "postgresql+asyncpg:"))
    yield engine
    await engine.dispose()


@pytest.fixture
async def redis(stack: Stack) -> AsyncIterator[Any]:
    async with Redis.from_url(stack.environment["REDIS_URL"], decode_responses=True) as client:
        yield client


async def view(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    body: dict[str, Any] = (await client.get(f"/v1/jobs/{job_id}")).raise_for_status().json()
    return body


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any] | None:
    body = await view(client, job_id)
    return body if body["finished_at"] is not None else None


@pytest.mark.parametrize("path", RECORDINGS, ids=lambda path: path.stem)
async def test_jobs_of_a_supported_version(path: Path, stack: Stack, database: AsyncEngine, redis: Any) -> None:
    """Ended jobs and their streams look as they did; queued jobs run; running ones continue at the next token."""
    recording = load(path)
    await restore(recording, database, redis)
    stack.start_api()
    stack.start_worker("slow")
    async with stack.client() as client:
        for job_id, recorded in recording["views"].items():
            assert await view(client, job_id) == recorded
            assert (await client.get(f"/v1/jobs/{job_id}/stream")).text == recording["streams"][job_id]
        response = recording["response"]
        assert (await client.get(f"/v1/responses/{response['id']}")).json() == response

        running = recording["running"]
        before = [json.loads(fields["e"]) for _, fields in recording["logs"][running]["entries"]]
        events = await follow(client, running)
        assert [event.event for event in events if event.event != "job.delta"] == [
            "job.started", "job.started", "job.incomplete",
        ]  # fmt: skip
        assert text_of(events).startswith("".join(payload.get("text", "") for payload in before))
        job = await view(client, running)
        assert (job["usage"]["completion_tokens"], job["output"][0]["text"]) == (200, text_of(events))
        queued = await eventually(lambda: ended(client, recording["queued"]), "the queued job ends")
        assert queued["status"] == "incomplete"


def of_a_newer_version(recording: dict[str, Any]) -> dict[str, Any]:
    """Add members and an event type that this version does not know. The waiting job's request cannot be read."""
    newer = copy.deepcopy(recording)
    for row in newer["rows"]["jobs"]:
        for attempt in row["attempts"]:
            attempt["novel"] = 1
        for choice in row["output"] or ():
            choice["novel"] = 1
            for call in choice.get("tool_calls", ()):
                call["novel"] = 1
        if row["usage"]:
            row["usage"]["novel_tokens"] = 1
        if row["log"]:
            lines = row["log"].split("\n")
            last = int(lines[-1].split(" ")[0])
            row["log"] = "\n".join(
                [*lines[:-1], f'{last} novel {{"a":1}}', lines[-1].replace(str(last), str(last + 1), 1)]
            )
        if row["id"] == newer["queued"]:
            row["request"]["novel"] = 1
    entries = newer["logs"][newer["running"]]["entries"]
    for _, fields in entries:
        fields["e"] = fields["e"].replace("{", '{"novel":1,', 1)
    last = int(entries[-1][0].split("-")[0])
    entries.append([f"{last + 1}-0", {"t": "novel", "e": '{"a":1}'}])
    newer["logs"][newer["running"]]["fence"]["seq"] = str(last + 1)
    return newer


@pytest.mark.parametrize("path", RECORDINGS[-1:], ids=lambda path: path.stem)
async def test_jobs_of_a_newer_version(path: Path, stack: Stack, database: AsyncEngine, redis: Any) -> None:
    """Unknown members and events are skipped. A job that cannot be read waits, and no process ends."""
    recording = of_a_newer_version(load(path))
    await restore(recording, database, redis)
    stack.start_api()
    stack.start_worker("slow")
    async with stack.client() as client:
        for job_id, recorded in recording["views"].items():
            assert await view(client, job_id) == recorded
            events = await follow(client, job_id)
            assert "job.novel" not in [event.event for event in events]
            assert events[-1].event == f"job.{recorded['status']}"
        job = await eventually(lambda: ended(client, recording["running"]), "the running job ends")
        assert job["usage"]["completion_tokens"] == 200

        async def withheld() -> bool:
            return 'headrace_jobs_unreadable{model="slow"} 1.0' in (await client.get("/metrics")).text

        await eventually(withheld, "the waiting job is withheld")
        assert recording["queued"] in stack.command("api.failed", "list").stdout
        assert (await view(client, recording["queued"]))["status"] == "queued"
        assert recording["running"] in [job["id"] for job in (await client.get("/v1/jobs")).json()["data"]]
        # The upgrade: from now on the row can be read.
        async with database.begin() as connection:
            await connection.execute(
                text(
                    "UPDATE jobs SET request = (request::jsonb - 'novel')::json,"
                    " unreadable_at = unreadable_at - interval '1 hour' WHERE id = :id"
                ),
                {"id": recording["queued"]},
            )
        queued = await eventually(lambda: ended(client, recording["queued"]), "the waiting job ends")
        assert (queued["status"], [attempt["outcome"] for attempt in queued["attempts"]]) == (
            "incomplete",
            ["incomplete"],
        )
    assert all(process.poll() is None for process in stack.processes.values())
