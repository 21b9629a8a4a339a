"""The API's process ends, by `kill -9` or an ordinary stop, in an erasure, an export, or a run of judges.

Each continues, or its state says that it is not complete.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from api.erasure.store import PORTION
from shared.domain.owner import Owner
from shared.postgres.engine import connect, transaction
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_projects import bearer, create_key
from tests.support.database import drop_database
from tests.support.job_rows import add_job
from tests.support.stack import Stack
from tests.support.waiting import eventually

RUBRICS = "rubrics:\n  - {name: helpful, question: 'Does it help?', judge: judge}\n"
WAITS = text("SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'")
Interruption = Callable[[Stack], None]


def _kill(stack: Stack) -> None:
    stack.replace_api(stack.url)


def _stop(stack: Stack) -> None:
    stack.restart_api(stack.url)


@pytest.fixture(params=[_kill, _stop], ids=["killed", "stopped"])
def interruption(request: pytest.FixtureRequest) -> Interruption:
    found: Interruption = request.param
    return found


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API, which keeps bodies in full, and a worker for `sim`. That of `judge` is started by a test."""
    models: list[dict[str, object]] = [
        {"name": name, "engine": "simulated", "slots": 8, "options": {"ttft_ms": 1, "itl_ms": 1}}
        for name in ("sim", "judge")
    ]
    key = b64encode(secrets.token_bytes(32)).decode()
    found = make_stack(
        servers, tmp_path_factory, "interrupted", models, HEADRACE_REQUEST_LOG_LEVEL="full", HEADRACE_LOG_KEY=key
    )
    found.environment["HEADRACE_RUBRICS"] = str(found.folder / "rubrics.yaml")
    (found.folder / "rubrics.yaml").write_text(RUBRICS)
    try:
        found.start_api()
        found.start_worker("sim")
        yield found
    finally:
        found.stop()
        drop_database(servers.postgres_url, "stack_interrupted")


@pytest.fixture
async def database(stack: Stack) -> AsyncIterator[AsyncEngine]:
    engine = connect(stack.environment["DATABASE_URL"], pool_size=3)
    yield engine
    await engine.dispose()


@pytest.fixture(scope="module")
def key(stack: Stack) -> str:
    scopes = [word for scope in ("inference", "erase", "logs", "admin") for word in ("--scope", scope)]
    return create_key(stack, "interrupted", *scopes)


@pytest.fixture
async def client(stack: Stack, key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(stack, key) as found:
        yield found


async def interrupt(stack: Stack, locks: AsyncConnection, interruption: Interruption) -> None:
    """End the process that waits for a lock of this transaction, and start another one."""

    async def waits() -> bool:
        return (await locks.execute(WAITS)).first() is not None

    await eventually(waits, "the process waits for the lock")
    await asyncio.to_thread(interruption, stack)


def has_failed(answer: httpx.Response | BaseException) -> bool:
    """Whether the client knows that its request was not completed."""
    return isinstance(answer, httpx.HTTPError) if isinstance(answer, BaseException) else answer.status_code >= 500


async def test_an_erasure_is_continued_by_the_next_call(
    stack: Stack, client: httpx.AsyncClient, database: AsyncEngine, interruption: Interruption
) -> None:
    """The first portion of the jobs was erased when the process ends; another transaction holds one of the second."""
    user = f"ann-{interruption.__name__}"
    async with database.connect() as connection:
        row = (await connection.execute(text("SELECT id, project_id FROM api_keys WHERE name = 'interrupted'"))).one()
    owner = Owner(row.project_id, row.id)
    jobs = [await add_job(database, owner, ended_s_ago=10, end_user=user) for _ in range(PORTION + 20)]
    left = text("SELECT count(*) FROM jobs WHERE end_user = :user")

    async with transaction(database) as locks:
        await locks.execute(text("SELECT id FROM jobs WHERE id = :id FOR UPDATE"), {"id": max(jobs)})
        call = asyncio.create_task(client.delete(f"/v1/users/{user}/data"))
        await interrupt(stack, locks, interruption)
    (answer,) = await asyncio.gather(call, return_exceptions=True)
    assert has_failed(answer), "it is not reported as done"
    async with database.connect() as connection:
        assert (await connection.execute(left, {"user": user})).scalar_one() == 20
    again = (await client.delete(f"/v1/users/{user}/data")).raise_for_status().json()
    assert (again["complete"], again["erased"]["jobs"]) == (True, 20)
    async with database.connect() as connection:
        assert (await connection.execute(left, {"user": user})).scalar_one() == 0
        unpurged = text("SELECT count(*) FROM jobs WHERE id = ANY(:ids) AND deleted_at IS NULL")
        assert (await connection.execute(unpurged, {"ids": jobs})).scalar_one() == 0
        entries = text("SELECT count(*) FROM audit_log WHERE action = 'user.erase'")
        assert (await connection.execute(entries)).scalar_one() > 0


async def test_an_interrupted_export_is_not_shown_as_complete(
    stack: Stack, client: httpx.AsyncClient, database: AsyncEngine, interruption: Interruption
) -> None:
    user = f"bob-{interruption.__name__}"
    body = {"model": "sim", "prompt": "x", "max_tokens": 2, "user": user}
    for _ in range(3):
        (await client.post("/v1/jobs", json=body, headers={"Prefer": "wait=30"})).raise_for_status()

    async def are_kept() -> bool:
        found = (await client.get("/v1/requests", params={"user": user, "has_body": True})).json()["data"]
        return len(found) == 3

    await eventually(are_kept, "the bodies are in the log")
    async with transaction(database) as locks:
        await locks.execute(text("LOCK TABLE request_bodies IN ACCESS EXCLUSIVE MODE"))
        call = asyncio.create_task(client.get("/v1/requests/export", params={"user": user}))
        await interrupt(stack, locks, interruption)
    (answer,) = await asyncio.gather(call, return_exceptions=True)
    assert isinstance(answer, httpx.HTTPError), "the connection is closed in the middle of the response"
    again = await client.get("/v1/requests/export", params={"user": user})
    assert json.loads(again.text.splitlines()[-1])["metadata"]["headrace"]["rows"] == 3
    exports = (await client.get("/v1/requests/exports", params={"limit": 2})).json()["data"]
    assert [one["filters"]["end_user"] for one in exports] == [user, user]
    assert [(one["rows"], one["ended_at"] is not None) for one in exports] == [
        (3, True),
        (None if interruption is _kill else 0, False),
    ]


def item(name: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    return {"id": name, "messages": messages, "answers": [{"model": "m", "text": "Paris."}]}


async def test_a_run_of_judges_continues(
    stack: Stack, client: httpx.AsyncClient, database: AsyncEngine, interruption: Interruption
) -> None:
    """The process ends after the judgements were stored, before the job of one of them is: the client sends the items
    again, and each is judged once."""
    items = {"name": "set.jsonl", "sha256": "0" * 64, "items": 3}
    body = {"kind": "set", "rubric": "helpful", "models": ["m"], "set": items}
    run = (await client.post("/v1/evals/runs", json=body)).raise_for_status().json()
    path = f"/v1/evals/runs/{run['id']}"
    (await client.post(f"{path}/items", json={"items": [item("q0")]})).raise_for_status()
    rest = {"items": [item("q1"), item("q2")]}
    async with transaction(database) as locks:
        await locks.execute(text("LOCK TABLE idempotency_keys IN ACCESS EXCLUSIVE MODE"))
        call = asyncio.create_task(client.post(f"{path}/items", json=rest))
        await interrupt(stack, locks, interruption)
    (answer,) = await asyncio.gather(call, return_exceptions=True)
    assert has_failed(answer)
    found = (await client.get(path)).json()
    assert (found["ended_at"], found["judgements"]) == (None, {"pending": 3})
    (await client.post(f"{path}/items", json=rest)).raise_for_status()
    worker = stack.start_worker("judge")

    async def has_ended() -> dict[str, Any] | None:
        shown: dict[str, Any] = (await client.get(path)).json()
        return shown if shown["ended_at"] is not None else None

    ended = await eventually(has_ended, "the run ends", within_s=90)
    stack.kill(worker)
    assert sum(ended["judgements"].values()) == 3
    assert not ended["judgements"].keys() & {"pending", "failed", "erased"}
    judges = text("SELECT count(*) FROM idempotency_keys WHERE key LIKE :pattern")
    async with database.connect() as connection:
        count = (await connection.execute(judges, {"pattern": f"judgement-{run['id']}-%"})).scalar_one()
    assert count == 3, "each item is judged once"
