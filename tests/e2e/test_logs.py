"""The processes' logs have one line per transition of a job and never contain a prompt, an output or a key."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
import redis as sync_redis
from sqlalchemy import select, update

from shared.config.bundled_model import bundled_model_path
from shared.postgres.engine import connect
from shared.postgres.tables import Base, JobRow
from shared.redis.job_queue import celery_app
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end, wait_until_running
from tests.support.database import drop_database
from tests.support.faulty_upstream import Answer, End, error_answer, faulty_upstream
from tests.support.metrics import addresses
from tests.support.ports import free_port
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually

MARKER = "xylophone-7391"
UPSTREAM_KEY = "sk-canary-7Qx9Lm2Vt5Rw8Zp3"
FAIL, DIE = "<<fail>>", "<<die>>"
PORT = free_port()


@pytest.fixture(scope="module", params=["json", "text"])
def stack(
    request: pytest.FixtureRequest, servers: Servers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    name = f"logs_{request.param}"
    models: list[dict[str, object]] = [
        {
            "name": "sim",
            "engine": "simulated",
            "slots": 4,
            "options": {"ttft_ms": 5, "itl_ms": 10, "fail_on": FAIL, "die_on": DIE, "max_model_len": 5000},
        },
        {
            "name": "up",
            "engine": "openai",
            "model": "theirs",
            "options": {
                "base_url": f"http://127.0.0.1:{PORT}/v1",
                "api_key_env": "UPSTREAM_API_KEY",
                "max_retries": 1,
                "max_wait_s": 0,
            },
        },
        {"name": "orphan", "engine": "simulated"},
    ]
    stack = make_stack(
        servers,
        tmp_path_factory,
        name,
        models,
        HEADRACE_LOG_FORMAT=request.param,
        HEADRACE_LOG_LEVEL="DEBUG",
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_ENGINE_BACK_OFF_MAX_S=1,
        UPSTREAM_API_KEY=UPSTREAM_KEY,
    )
    try:
        stack.start_api()
        stack.start_worker("sim")
        stack.start_worker("up")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, f"stack_{name}")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


async def submit(client: httpx.AsyncClient, **body: Any) -> str:
    response = await client.post("/v1/jobs", json={"model": "sim", "max_tokens": 5, **body})
    assert response.status_code == 202, response.text
    return str(response.json()["id"])


def logged(folder: Path) -> str:
    text = "".join(path.read_text() for path in sorted(folder.glob("*.log")))
    assert text
    return text


async def transitions(stack: Stack, job_id: str, count: int) -> list[dict[str, Any]]:
    """The logged transitions of a job, in order, once there are `count` of them."""

    async def probe() -> list[dict[str, Any]] | None:
        lines = [json.loads(line) for line in logged(stack.folder).splitlines() if f'"{job_id}"' in line]
        found = sorted((line for line in lines if "attempt" in line), key=lambda line: str(line["time"]))
        return found if len(found) >= count else None

    found = await eventually(probe, f"{count} transitions of {job_id}")
    assert len(found) == count
    return found


async def test_each_transition_is_logged_once(stack: Stack, client: httpx.AsyncClient) -> None:
    if stack.environment["HEADRACE_LOG_FORMAT"] != "json":
        pytest.skip("the text format has the same fields, which a unit test checks")
    client.headers["x-request-id"] = "mine-1"
    job_id = await submit(client, prompt=MARKER)
    await wait_for_end(client, job_id)
    queued, started, incomplete = await transitions(stack, job_id, 3)
    assert [line["message"] for line in (queued, started, incomplete)] == [
        "queued",
        "started, after 0 tokens",
        "incomplete",
    ]
    for line in (queued, started, incomplete):
        assert (line["job"], line["model"], line["request"]) == (job_id, "sim", "mine-1")
    assert (queued["attempt"], started["attempt"], incomplete["attempt"]) == (0, 1, 1)
    assert started["worker"] == incomplete["worker"]
    assert started["worker"].startswith("sim-")
    assert incomplete["output"] == 5

    # Another worker continues after the first is killed, then a cancel ends the job. All lines have the request's id.
    job_id = await submit(client, prompt=MARKER, max_tokens=4000)
    await wait_until_running(client, job_id)
    (first,) = [name for name, process in stack.processes.items() if "sim" in cast("list[str]", process.args)]
    stack.kill(first)
    stack.start_worker("sim")

    async def second() -> bool:
        return len((await client.get(f"/v1/jobs/{job_id}")).json()["attempts"]) == 2

    await eventually(second, "a second attempt")
    await client.post(f"/v1/jobs/{job_id}/cancel")
    await wait_for_end(client, job_id)
    found = await transitions(stack, job_id, 6)
    assert [(line["attempt"], line["message"].partition(",")[0]) for line in found] == [
        (0, "queued"),
        (1, "started"),
        (1, "lost its worker; queued again"),
        (2, "started"),
        (2, "cancelling"),
        (2, "cancelled"),
    ]
    assert {line["request"] for line in found} == {"mine-1"}
    assert found[2]["worker"] == found[1]["worker"] != found[3]["worker"]


async def test_logs_contain_no_prompt_output_or_key(stack: Stack, client: httpx.AsyncClient) -> None:
    """Success, failures, cancels and an engine crash, with all loggers at DEBUG."""
    chat = [{"role": "user", "content": MARKER}]
    done = await wait_for_end(client, await submit(client, messages=chat, metadata={"note": MARKER}, stop=[MARKER]))
    assert done["status"] == "incomplete"
    output = done["output_text"].strip()
    assert (await wait_for_end(client, await submit(client, prompt=f"{MARKER} {FAIL}")))["status"] == "failed"
    cancelled = await submit(client, prompt=MARKER, max_tokens=4000)
    await wait_until_running(client, cancelled)
    await client.post(f"/v1/jobs/{cancelled}/cancel")
    assert (await wait_for_end(client, cancelled))["status"] == "cancelled"
    queued_id = await submit(client, model="orphan", prompt=MARKER)
    await client.post(f"/v1/jobs/{queued_id}/cancel")
    failed_job = await wait_for_end(client, await submit(client, prompt=f"{MARKER} {DIE}"))
    assert failed_job["error"]["code"] == "attempts_exhausted"
    ignored = await client.post("/v1/jobs", json={"model": "orphan", "prompt": MARKER, MARKER: MARKER})
    assert ignored.headers["x-headrace-ignored"] == MARKER
    # A rejected value is quoted only to its client.
    for path, body in (
        ("/v1/jobs", {"model": "sim", "prompt": MARKER, "max_tokens": MARKER}),
        ("/v1/jobs", {"model": MARKER, "prompt": MARKER}),
        ("/v1/chat/completions", {"model": "sim", "messages": [{"role": MARKER, "content": MARKER}]}),
        ("/v1/jobs", {"model": "sim", "prompt": f"{MARKER}\ud800"}),
        (f"/v1/{MARKER}", {}),
    ):
        rejected = await client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})
        assert rejected.status_code in (400, 404), rejected.text
    async with client.stream("POST", "/v1/chat/completions", json={"model": "sim", "messages": chat, "stream": True}):
        pass  # disconnect
    async with faulty_upstream(PORT) as upstream:
        upstream.answers = [error_answer(500, f"cannot: {MARKER}"), error_answer(500, f"cannot: {MARKER}")]
        failed = await wait_for_end(client, await submit(client, model="up", prompt=MARKER))
        assert MARKER in failed["error"]["message"]
        upstream.answers = [error_answer(400, f"no: {MARKER}"), error_answer(401, f"no: {MARKER} for {UPSTREAM_KEY}")]
        for _ in range(2):
            assert (await wait_for_end(client, await submit(client, model="up", messages=chat)))["status"] == "failed"
    # Python's errors quote a value that cannot be parsed.
    job_id = await submit(client, model="orphan", prompt="x")
    await corrupt_row(stack, job_id)
    assert (await client.get(f"/v1/jobs/{job_id}")).status_code == 503
    assert job_id not in (await client.get("/v1/jobs")).text
    text = logged(stack.folder)
    assert "cannot be read: ValueError in _attempt" in text
    for secret in (MARKER, output, KEY, UPSTREAM_KEY):
        assert secret not in text


async def test_upstream_keys_are_nowhere(stack: Stack, client: httpx.AsyncClient) -> None:
    """Nor are their parts, whatever the upstream answers: in rows, Redis, metrics, responses, logs, command lines."""
    if stack.environment["HEADRACE_LOG_FORMAT"] != "json":
        pytest.skip("the text format has the same values")
    async with faulty_upstream(PORT) as upstream:
        echo = f"Incorrect API key provided: {UPSTREAM_KEY}; ends in {UPSTREAM_KEY[-8:]}"
        upstream.answers = [error_answer(status, echo) for status in (401, 402, 403, 400, 404, 302)]
        upstream.answers += [error_answer(500, echo)] * 2 + [Answer(2, End.INVALID_JSON), Answer(1, End.ERROR)]
        jobs = [await wait_for_end(client, await submit(client, model="up", prompt="x")) for _ in range(9)]
        assert {seen.headers["authorization"] for seen in upstream.seen} == {f"Bearer {UPSTREAM_KEY}"}
        assert {job["status"] for job in jobs} == {"failed"}
        worker = jobs[0]["attempts"][0]["worker"]
        pids = [process.pid for process in stack.processes.values()]
        for process in stack.processes.values():
            if "workers" in cast("list[str]", process.args):
                process.send_signal(signal.SIGUSR1)  # Celery prints the stacks of all threads
        await eventually(lambda: logs_have(stack, "celery/worker"), "the stacks")
        # A core dump would contain the keys, and prompts and answers.
        assert {core_limit(pid) for pid in pids} == {"0"}
    inspect = celery_app(stack.environment["REDIS_URL"]).control.inspect([worker], timeout=10, limit=1)
    texts = {
        "responses": json.dumps(jobs) + (await client.get("/v1/models")).text + (await client.get("/readyz")).text,
        "rows": await all_rows(stack),
        "Redis": all_of_redis(stack),
        "metrics": await metrics_of(stack),
        "logs": logged(stack.folder),
        "command lines": "\n".join(command_lines(stack).values()),
        "Celery": json.dumps([await asyncio.to_thread(call) for call in (inspect.stats, inspect.conf)], default=str),
    }
    assert len(pids) >= 3
    for place, text in texts.items():
        assert len(text) > 100, place
        for fragment in (UPSTREAM_KEY, UPSTREAM_KEY[:9], UPSTREAM_KEY[-8:]):
            assert fragment not in text, place


async def logs_have(stack: Stack, text: str) -> bool:
    return text in logged(stack.folder)


def command_lines(stack: Stack) -> dict[int, str]:
    """The command lines of all processes of the stack, with their children."""
    parents = [psutil.Process(process.pid) for process in stack.processes.values()]
    processes = [*parents, *(child for parent in parents for child in parent.children(recursive=True))]
    lines = {process.pid: " ".join(process.cmdline()) for process in processes}
    # A forked process has the command line of the server that forked it.
    return lines | {process.pid: " ".join(cast("list[str]", process.args)) for process in stack.processes.values()}


def core_limit(pid: int) -> str:
    """The maximum size of a core dump."""
    lines = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return next(line.split()[4] for line in lines if line.startswith("Max core file size"))


async def all_rows(stack: Stack) -> str:
    database = connect(stack.environment["DATABASE_URL"])
    rows: list[str] = []
    async with database.connect() as connection:
        for table in Base.metadata.sorted_tables:
            rows += map(str, await connection.execute(select(table)))
    await database.dispose()
    return "\n".join(rows)


def all_of_redis(stack: Stack) -> str:
    with sync_redis.Redis.from_url(stack.environment["REDIS_URL"]) as redis:
        return "".join(f"{key!r} {redis.dump(key)!r}\n" for key in redis.scan_iter())


async def metrics_of(stack: Stack) -> str:
    async with httpx.AsyncClient(trust_env=False) as client:
        found = [address for role in ("api", "worker") for address in addresses(stack, role)]
        return "".join([(await client.get(f"http://{address}/metrics")).text for address in found])


async def corrupt_row(stack: Stack, job_id: str) -> None:
    """Make a job's row one that this version cannot parse."""
    attempts = [{"number": 1, "worker": "w", "started_at": MARKER}]
    database = connect(stack.environment["DATABASE_URL"])
    async with database.connect() as connection:
        await connection.execute(update(JobRow).where(JobRow.id == job_id).values(attempts=attempts))
    await database.dispose()


@pytest.fixture
def crashing(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose vLLM engine fails in a step on request."""
    model: dict[str, object] = {
        "name": "smollm2",
        "engine": "vllm",
        "model": str(bundled_model_path("SmolLM2-135M-Instruct")),
        "options": {
            "dtype": "float32",
            "enforce_eager": True,
            "max_model_len": 512,
            "max_num_seqs": 4,
            "kv_cache_memory_bytes": 1 << 28,
            "logits_processors": ["tests.support.crashing:Crash"],
        },
    }
    stack = make_stack(
        servers,
        tmp_path_factory,
        "crash",
        [model],
        HEADRACE_LOG_FORMAT="json",
        HEADRACE_MAX_ATTEMPTS=1,
    )
    try:
        stack.start_api()
        stack.start_worker("smollm2", within_s=240)
        yield stack
    finally:
        stack.stop(gently=True)
        drop_database(servers.postgres_url, "stack_crash")


@pytest.mark.vllm
async def test_a_crashing_vllm_does_not_log_its_requests(crashing: Stack) -> None:
    """vLLM logs the scheduler's output when a step fails, with each request's stop strings and schemas."""
    async with crashing.client() as client:
        job_id = await submit(
            client, model="smollm2", messages=[{"role": "user", "content": MARKER}], stop=[MARKER, "<<crash>>"]
        )
        failed_job = await wait_for_end(client, job_id)
    assert failed_job["error"]["code"] == "attempts_exhausted"
    text = logged(crashing.folder)
    assert MARKER not in text
    # Apart from torch's output, each line is in our format.
    worker = (crashing.folder / "worker-1.log").read_text()
    lines = [json.loads(line) for line in worker.splitlines() if line.startswith("{")]
    (fatal,) = [line for line in lines if line["message"] == "EngineCore encountered a fatal error."]
    assert (fatal["level"], fatal["logger"]) == ("error", "vllm.v1.engine.core")
    assert "crash requested" in fatal["error"]
