"""Redaction's dry run and the erasure of end users' data, over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.postgres.engine import connect
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_projects import bearer, create_key
from tests.support.command_line import run
from tests.support.database import drop_database
from tests.support.stack import Stack
from tests.support.waiting import eventually

CARD = "4111 1111 1111 1111"
USER = "canary/user|1"
CANARY = "canary-4711"
CHAT = "/v1/chat/completions"
PREVIEW = "/v1/admin/redaction/preview"


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The API, and a worker for `sim`; `orphan` has none."""
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 20}},
        {"name": "orphan", "engine": "simulated"},
    ]
    stack = make_stack(servers, tmp_path_factory, "privacy", models, HEADRACE_BATCH_POLL_S=0.2)
    try:
        stack.start_api()
        stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_privacy")


@pytest.fixture(scope="module")
def admin_key(stack: Stack) -> str:
    return create_key(stack, "officer", "--scope", "admin")


@pytest.fixture
async def admin(stack: Stack, admin_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(stack, admin_key) as client:
        yield client


@pytest.fixture(scope="module")
def app_key(stack: Stack) -> str:
    return create_key(stack, "app", "--project", "erasing", "--scope", "inference", "--scope", "erase")


@pytest.fixture
async def app(stack: Stack, app_key: str) -> AsyncIterator[httpx.AsyncClient]:
    async with bearer(stack, app_key) as client:
        yield client


@pytest.fixture
async def database(stack: Stack) -> AsyncIterator[AsyncEngine]:
    engine = connect(stack.environment["DATABASE_URL"], pool_size=2)
    yield engine
    await engine.dispose()


async def rows_with(database: AsyncEngine, word: str) -> dict[str, int]:
    """The tables with a word in any column of a row, and how many rows have it."""
    found = {}
    async with database.connect() as connection:
        tables = await connection.execute(
            text("SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
        )
        for table in sorted(tables.scalars()):
            query = f'SELECT count(*) FROM "{table}" t WHERE position(:word IN t::text) > 0'  # noqa: S608 a name
            if count := (await connection.execute(text(query), {"word": word})).scalar_one():
                found[table] = int(count)
    return found


async def keys_with(redis: Redis, word: str) -> list[bytes]:
    """The keys of Redis with a word in their values."""
    found = []
    async for key in redis.scan_iter():
        dumped = await redis.dump(key)
        if dumped is not None and (word.encode() in dumped or word.encode() in key):
            found.append(key)
    return found


def files_with(stack: Stack, word: str) -> list[str]:
    return [path.name for path in (stack.folder / "files").iterdir() if word.encode() in path.read_bytes()]


async def submit(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post(
        "/v1/jobs", json={"model": "sim", "prompt": f"about {CANARY}", "max_tokens": 3, "user": USER, **body}
    )
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


async def ended(client: httpx.AsyncClient, job_id: str) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        response = await client.get(f"/v1/jobs/{job_id}")
        return response.json() if response.status_code == 200 else None

    return await eventually(probe, "the job ends")


def line(custom_id: str, user: str, prompt: str) -> dict[str, Any]:
    body = {"model": "sim", "messages": [{"role": "user", "content": prompt}], "max_tokens": 3, "user": user}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body}


async def run_batch(client: httpx.AsyncClient, *lines: dict[str, Any]) -> dict[str, Any]:
    content = "".join(json.dumps(one) + "\n" for one in lines)
    file = await client.post("/v1/files", files={"purpose": (None, "batch"), "file": ("in.jsonl", content)})
    assert file.status_code == 200, file.text
    body = {"input_file_id": file.json()["id"], "endpoint": CHAT, "completion_window": "24h"}
    batch = (await client.post("/v1/batches", json=body)).json()

    async def probe() -> dict[str, Any] | None:
        found: dict[str, Any] = (await client.get(f"/v1/batches/{batch['id']}")).json()
        return found if found["status"] == "completed" else None

    return await eventually(probe, "the batch completes")


def path_of(user: str) -> str:
    return f"/v1/users/{httpx.QueryParams({'u': user})!s}".replace("u=", "").replace("+", "%20") + "/data"


async def test_all_data_of_an_end_user_is_erased(
    stack: Stack, app: httpx.AsyncClient, database: AsyncEngine, servers: Servers
) -> None:
    redis = Redis.from_url(stack.environment["REDIS_URL"])
    others = await submit(app, user="other", prompt="about the mill")
    done = await submit(app, metadata={"name": CANARY})
    response = await app.post("/v1/responses", json={"model": "sim", "input": CANARY, "user": USER})
    assert response.status_code == 200, response.text
    cached = {"model": "sim", "prompt": CANARY, "user": USER, "cache": {"ttl": 600}, "max_tokens": 3}
    idempotent = {"Idempotency-Key": f"of {CANARY}"}
    for _ in range(2):
        assert (await app.post("/v1/jobs", json=cached, headers=idempotent | {"Prefer": "wait=30"})).status_code == 200
    batch = await run_batch(
        app, line("1", "other", "the mill"), line(f"2 {CANARY}", USER, CANARY), line("3", USER, "x")
    )
    queued = await submit(app, model="orphan")
    running = await submit(app, max_tokens=2000)
    for job in (others, done):
        await ended(app, job["id"])

    async def started() -> bool:
        job: dict[str, Any] = (await app.get(f"/v1/jobs/{running['id']}")).json()
        return str(job["status"]) == "in_progress"

    await eventually(started, "the long job runs")
    assert await rows_with(database, CANARY)
    assert len(files_with(stack, CANARY)) == 2, "the input and the output of the batch"

    erased = await app.delete(path_of(USER))
    assert erased.status_code == 200, erased.text
    result = erased.json()
    assert (result["id"], result["complete"], result["unended_batches"]) == (USER, True, [])
    counts = result["erased"]
    assert counts["cancelled_jobs"] == 2
    assert counts["jobs"] >= 6
    assert counts["file_lines"] == 4
    assert counts["ledger_entries"] >= 5

    # The long job may end after the erasure. Then its content is deleted within a minute.
    async def has_ended() -> bool:
        finished_at = text("UPDATE jobs SET finished_at = finished_at - interval '1 minute' WHERE id = :id RETURNING 1")
        async with database.connect() as connection:
            condition = text("SELECT finished_at IS NOT NULL FROM jobs WHERE id = :id")
            if not (await connection.execute(condition, {"id": running["id"]})).scalar_one():
                return False
            return bool((await connection.execute(finished_at, {"id": running["id"]})).first())

    await eventually(has_ended, "the long job is cancelled")

    async def purged() -> bool:
        return (await app.get(f"/v1/jobs/{running['id']}")).status_code == 404

    await eventually(purged, "the purge of jobs of which nothing is kept")
    for word in (CANARY, USER):
        assert await rows_with(database, word) == {}, word
        assert await keys_with(redis, word) == [], word
        assert files_with(stack, word) == [], word
    await redis.aclose()
    assert (await app.get(f"/v1/jobs/{done['id']}")).status_code == 404
    assert (await app.get(f"/v1/responses/{response.json()['id']}")).status_code == 404
    assert (await app.get(f"/v1/jobs/{queued['id']}")).status_code == 404
    kept = (await app.get(f"/v1/jobs/{others['id']}")).json()
    assert kept["user"] == "other"
    assert kept["output"]
    output = (await app.get(f"/v1/files/{batch['output_file_id']}/content")).text
    lines = [json.loads(one) for one in output.splitlines()]
    assert lines[0]["custom_id"] == "1"
    assert lines[0]["response"]["status_code"] == 200
    assert [one["error"]["code"] for one in lines[1:]] == ["erased"] * 2

    again = (await app.delete(path_of(USER))).json()
    assert (again["complete"], again["erased"]) == (True, {})


async def test_amounts_remain_in_the_ledger_and_its_sums(
    app: httpx.AsyncClient, admin: httpx.AsyncClient, database: AsyncEngine
) -> None:
    job = await ended(app, (await submit(app, user="spender", max_tokens=7))["id"])
    tokens = "SELECT sum(total_tokens) FROM {} WHERE project_id = (SELECT id FROM projects WHERE name = 'erasing')"
    values = "input_fresh + input_cache_read + output_text + output_reasoning"

    async def totals() -> tuple[int, int, int]:
        async with database.connect() as connection:
            ledger = (await connection.execute(text(tokens.format("usage_events")))).scalar_one()
            sums = text(f"SELECT sum({values}), count(*) FILTER (WHERE end_user = 'spender') FROM usage_sums")  # noqa: S608
            summed, named = (await connection.execute(sums)).one()
        return int(ledger), int(summed or 0), int(named)

    async def summed() -> bool:
        return (await totals())[2] == 1

    await eventually(summed, "the entry is in the sums")
    before = await totals()
    result = (await app.delete(path_of("spender"))).json()
    assert result["erased"]["ledger_entries"] == 1
    assert await totals() == (before[0], before[1], 0)
    assert job["usage"]["completion_tokens"] == 7


async def test_who_may_erase(stack: Stack, app: httpx.AsyncClient, admin: httpx.AsyncClient) -> None:
    mine = await ended(app, (await submit(app, user="ann"))["id"])
    async with bearer(stack, create_key(stack, "client", "--project", "erasing")) as client:
        refused = await client.delete(path_of("ann"))
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "insufficient_permissions")
    foreign = await app.delete(path_of("ann"), params={"project": "officer"})
    assert foreign.status_code == 403
    other = await admin.delete(path_of("ann"))
    assert (other.status_code, other.json()["erased"]) == (200, {}), "that user of another project is somebody else"
    unknown = await admin.delete(path_of("ann"), params={"project": "nobody"})
    assert (unknown.status_code, unknown.json()["error"]["param"]) == (400, "project")
    erased = await admin.delete(path_of("ann"), params={"project": "erasing"})
    assert erased.json()["erased"]["jobs"] == 1
    assert (await app.get(f"/v1/jobs/{mine['id']}")).status_code == 404
    log = (await admin.get("/v1/admin/audit", params={"action": "user.erase"})).json()["data"]
    assert log[0]["project"] == "erasing"
    assert log[0]["after"]["jobs"] == 1
    assert log[0]["object_id"].startswith("user_"), "a pseudonym"
    await ended(app, (await submit(app, user="ann"))["id"])
    assert (await app.delete(path_of("ann"))).json()["erased"]["jobs"] == 1
    again = (await admin.get("/v1/admin/audit", params={"action": "user.erase"})).json()["data"]
    assert again[0]["id"] != log[0]["id"]
    assert again[0]["object_id"] == log[0]["object_id"], "the same user has the same one"


async def test_a_batch_that_runs_is_erased_when_it_has_ended(app: httpx.AsyncClient) -> None:
    content = json.dumps(line("1", "waiting", "x") | {"body": {"model": "orphan", "prompt": "x", "user": "waiting"}})
    content = content.replace(CHAT, "/v1/completions")
    file = await app.post("/v1/files", files={"purpose": (None, "batch"), "file": ("in.jsonl", content)})
    body = {"input_file_id": file.json()["id"], "endpoint": "/v1/completions", "completion_window": "24h"}
    batch = (await app.post("/v1/batches", json=body)).json()

    async def submitted() -> bool:
        jobs = await app.get("/v1/jobs", params={"user": "waiting"})
        return bool(jobs.json()["data"])

    await eventually(submitted, "the line has a job")
    await app.post(f"/v1/batches/{batch['id']}/cancel")
    first = await app.delete(path_of("waiting"))
    if first.status_code == 202:
        assert first.json()["unended_batches"] == [batch["id"]]

    async def complete() -> dict[str, Any] | None:
        response = await app.delete(path_of("waiting"))
        return response.json() if response.status_code == 200 else None

    result = await eventually(complete, "the batch has ended and is erased")
    assert result["unended_batches"] == []
    assert (await app.get(f"/v1/files/{file.json()['id']}/content")).text.strip() == ""


async def test_a_dry_run_of_the_redaction(admin: httpx.AsyncClient, app: httpx.AsyncClient) -> None:
    redacted = await admin.post(PREVIEW, json={"text": f"Card {CARD}, a@b.de, +49 30 901820"})
    assert redacted.status_code == 200, redacted.text
    assert redacted.json() == {
        "object": "redaction.preview",
        "text": "Card [CARD], [EMAIL], [PHONE]",
        "counts": {"email": 1, "card": 1, "phone": 1},
    }
    rules = {"kinds": ["email"], "own": [{"name": "badge", "pattern": r"\bE-[0-9]{6}\b"}]}
    own = await admin.post(PREVIEW, json={"text": f"{CARD} E-123456 a@b.de", "rules": rules})
    assert own.json()["text"] == f"{CARD} [BADGE] [EMAIL]"
    nested = await admin.post(
        PREVIEW, json={"text": "x", "rules": {"own": [{"name": "a", "pattern": "(a{1,9}){1,9}"}]}}
    )
    assert (nested.status_code, nested.json()["error"]["param"]) == (400, "rules.own[0].pattern")
    assert "nested quantifiers" in nested.json()["error"]["message"]
    assert (await admin.post(PREVIEW, json={"text": CARD, "project": "erasing"})).json()["text"] == "[CARD]"
    assert (await admin.post(PREVIEW, json={"text": CARD, "project": "nobody"})).status_code == 400
    assert (await app.post(PREVIEW, json={"text": CARD})).status_code == 403


async def test_the_rules_of_a_project_are_set_on_the_command_line(
    stack: Stack, admin_key: str, admin: httpx.AsyncClient, tmp_path: Path
) -> None:
    create_key(stack, "ruled")
    rules = tmp_path / "rules.json"
    rules.write_text(json.dumps({"own": [{"name": "badge", "pattern": r"\bE-[0-9]{6}\b"}]}))
    sentence = tmp_path / "text"
    sentence.write_text(f"{CARD} E-123456\n")
    headrace = partial(run, stack.url, key=admin_key)
    assert headrace("redact", str(sentence), "--rules", str(rules)).stdout == "[CARD] [BADGE]\n"
    assert headrace("redact", str(sentence), "--project", "ruled").stdout == "[CARD] E-123456\n", "a dry run"
    result = headrace("projects", "set", "ruled", "--redaction", str(rules))
    assert result.exit_code == 0, result.stderr
    assert headrace("redact", str(sentence), "--project", "ruled").stdout == "[CARD] [BADGE]\n"
    audit = await admin.get("/v1/admin/audit", params={"action": "project.change", "object": "ruled"})
    (entry,) = audit.json()["data"]
    assert entry["after"]["options"]["redaction"]["own"][0]["name"] == "badge"
    rules.write_text(json.dumps({"own": [{"name": "badge", "pattern": "(a{1,9}){1,9}"}]}))
    assert headrace("projects", "set", "ruled", "--redaction", str(rules)).exit_code != 0
    assert headrace("projects", "set", "ruled", "--redaction", "unset").exit_code == 0
    assert headrace("redact", str(sentence), "--project", "ruled").stdout == "[CARD] E-123456\n"
