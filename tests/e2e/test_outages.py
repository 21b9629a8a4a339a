"""Outages of servers and processes only pause a stream: no job is lost and no text is repeated.

Each test has its own stack, on servers that it can stop. Leases are short, so recovery takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.sse import Sse, read_events
from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Sampling
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support.database import TEMPLATE, create_database, drop_database, migrate, switch_database
from tests.support.servers import OwnServers
from tests.support.sse import text_of
from tests.support.stack import Process, Stack, stack_template, write_models
from tests.support.waiting import eventually, eventually_sync
from workers.engines.simulated.engine import SimulatedEngine

pytestmark = pytest.mark.timeout(90)

MODELS: list[dict[str, object]] = [
    {"name": "sim", "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 10}},
    {"name": "single", "engine": "simulated", "slots": 1, "options": {"ttft_ms": 5, "itl_ms": 10}},
]
PROMPT = "the mill by the river"
RECOVERY_S = 40.0  # upper limit of any recovery, also on a busy machine


@pytest.fixture(scope="module")
def own_servers() -> Iterator[OwnServers]:
    # Not in pytest's folder: if root starts another run, other users, including PostgreSQL's, lose access to it.
    with tempfile.TemporaryDirectory(prefix="headrace-tests-") as folder:
        servers = OwnServers(Path(folder))
        create_database(servers.postgres_url, TEMPLATE)
        migrate(switch_database(servers.postgres_url, TEMPLATE))
        yield servers
        servers.stop()


@pytest.fixture
def stack(own_servers: OwnServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API process on an empty database and Redis; each test starts its own workers."""
    own_servers.start()
    own_servers.flush_redis()
    create_database(own_servers.postgres_url, "outages", template=stack_template(own_servers.postgres_url))
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack(
        switch_database(own_servers.postgres_url, "outages"),
        own_servers.redis_url,
        write_models(folder / "models.yaml", MODELS),
        folder,
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_RESYNC_S=1,
    )
    try:
        stack.start_api()
        yield stack
    finally:
        own_servers.start()
        stack.stop()
        drop_database(own_servers.postgres_url, "outages")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


class Reader:
    """An SSE connection to a job, opened immediately, and the events that it has received."""

    def __init__(self, client: httpx.AsyncClient, job: dict[str, Any]) -> None:
        self.job_id: str = job["id"]
        self.events: list[Sse] = []
        self.opened = False
        self._task = asyncio.create_task(self._read(client))

    async def _read(self, client: httpx.AsyncClient) -> None:
        async with client.stream("GET", f"/v1/jobs/{self.job_id}/stream") as response:
            assert response.status_code == 200
            self.opened = True
            async for event in read_events(response):
                self.events.append(event)

    async def wait_until_open(self) -> None:
        async def probe() -> bool:
            return self.opened

        await eventually(probe, "the stream opens", within_s=RECOVERY_S)

    async def wait_for_events(self, kind: str, count: int = 1) -> None:
        """Wait until `count` events of a kind have been received."""

        async def probe() -> bool:
            return sum(item.event == kind for item in self.events) >= count

        await eventually(probe, f"{count} events {kind}", within_s=RECOVERY_S)

    async def read_to_end(self) -> list[Sse]:
        """Wait for the end of the stream; returns all events."""
        await asyncio.wait_for(self._task, RECOVERY_S)
        return self.events

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def reading(client: httpx.AsyncClient, job: dict[str, Any]) -> AsyncIterator[Reader]:
    reader = Reader(client, job)
    try:
        yield reader
    finally:
        await reader.close()


async def assert_unbroken(client: httpx.AsyncClient, reader: Reader, tokens: int) -> dict[str, Any]:
    """The connection got each event once, and its text equals that of the row and of an uninterrupted run."""
    events = await reader.read_to_end()
    done = await wait_for_end(client, reader.job_id)
    ids = [item.id for item in events if item.id is not None]
    assert ids == list(range(1, len(ids) + 1)), "a gap or a repeat"
    assert events[-1].event == f"job.{done['status']}" == "job.incomplete"
    assert "job.restarted" not in {item.event for item in events}
    assert text_of(events) == done["output_text"]
    assert done["usage"]["completion_tokens"] == tokens
    assert done["output_text"] == await uninterrupted(tokens)
    return done


async def uninterrupted(tokens: int) -> str:
    """The engine's output in an uninterrupted run."""
    engine = SimulatedEngine(
        SimulatedModel(name="sim", engine="simulated", options=SimulatedOptions(ttft_ms=0, itl_ms=0))
    )
    request = GenerateRequest(prompt=PROMPT, sampling=Sampling(max_tokens=tokens))
    return "".join([item.text async for item in engine.generate("calm", request) if isinstance(item, Delta)])


async def long_job(client: httpx.AsyncClient, tokens: int) -> dict[str, Any]:
    return await submit(client, prompt=PROMPT, max_tokens=tokens)


async def process_of(stack: Stack, client: httpx.AsyncClient, job_id: str) -> str:
    """The name of the process that runs a job, found by the pid in the worker's name."""
    job = await wait_until_running(client, job_id)
    pid = job["attempts"][-1]["worker"].split("@")[0].split("-")[1]
    return next(name for name, process in stack.processes.items() if str(process.pid) == pid)


async def readiness(client: httpx.AsyncClient) -> tuple[int, dict[str, str]]:
    response = await client.get("/readyz")
    return response.status_code, response.json()["checks"]


def first_token_at(job: dict[str, Any]) -> datetime:
    """When the first token was generated."""
    return datetime.fromisoformat(job["created_at"]) + timedelta(milliseconds=job["timings"]["ttft_ms"])


def history(job: dict[str, Any]) -> list[tuple[int, str]]:
    return [(attempt["number"], attempt["outcome"]) for attempt in job["attempts"]]


class TestRedis:
    async def test_unavailable_at_submit(
        self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """The job is committed and runs when Redis is available again; an open stream gets all events."""
        stack.start_worker("sim")
        own_servers.stop_redis()
        began = time.monotonic()
        job = await long_job(client, 50)
        assert time.monotonic() - began < 5
        assert (await client.get(job["status_url"])).json()["status"] == "queued"
        status, checks = await readiness(client)
        assert (status, checks["redis"], checks["database"]) == (503, "unavailable", "ok")
        async with reading(client, job) as reader:
            await reader.wait_until_open()
            own_servers.start_redis()
            await assert_unbroken(client, reader, 50)

    @pytest.mark.parametrize("loss", ["flushed", "restarted"])
    async def test_loses_all_data_during_a_stream(
        self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient, loss: str
    ) -> None:
        stack.start_worker("sim")
        job = await long_job(client, 300)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            if loss == "flushed":
                own_servers.flush_redis()
            else:
                own_servers.stop_redis()
                own_servers.start_redis()
            done = await assert_unbroken(client, reader, 300)
        assert history(done) == [(1, "incomplete")], "one attempt"

    async def test_loses_the_queue(self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        """Queue messages are redelivered from the database."""
        jobs = [await submit(client, model="single", max_tokens=20) for _ in range(6)]
        stack.start_worker("single")
        await wait_until_running(client, jobs[0]["id"])
        own_servers.flush_redis()
        for job in jobs:
            assert history(await wait_for_end(client, job["id"])) == [(1, "incomplete")]

    async def test_cancel_while_unavailable(
        self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """The worker detects the cancel at its next heartbeat."""
        stack.start_worker("sim")
        job = await long_job(client, 4000)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 5)
            own_servers.stop_redis()
            response = await client.post(job["cancel_url"])
            assert (response.status_code, response.json()["status"]) == (200, "cancelling")
            done = await wait_for_end(client, job["id"])
            own_servers.start_redis()
            events = await reader.read_to_end()
        assert (done["status"], events[-1].event) == ("cancelled", "job.cancelled")
        assert text_of(events) == done["output_text"]


class TestDatabase:
    async def test_unavailable(self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        """Submits are rejected, running jobs continue, and results are written when the database is back."""
        stack.start_worker("sim")
        job = await long_job(client, 300)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            own_servers.stop_database()
            for call in (
                client.post("/v1/jobs", json={"model": "sim", "prompt": "x"}),
                client.post(
                    "/v1/chat/completions", json={"model": "sim", "messages": [{"role": "user", "content": "x"}]}
                ),
                client.get(job["status_url"]),
                client.get(job["stream_url"]),
                client.post(job["cancel_url"]),
            ):
                response = await call
                assert response.status_code == 503, response.text
                assert int(response.headers["retry-after"]) > 0
                error = response.json()["error"]
                assert (error["type"], error["code"]) == ("server_error", "unavailable")
                assert "database" in error["message"]
            status, checks = await readiness(client)
            assert (status, checks["database"], checks["redis"]) == (503, "unavailable", "ok")
            assert checks["model sim"] == "unknown"
            assert (await client.get("/healthz")).status_code == 200
            seen = len(reader.events)
            await reader.wait_for_events("job.delta", seen + 20)
            own_servers.start_database()
            await assert_unbroken(client, reader, 300)

    async def test_unavailable_when_a_job_ends(
        self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        stack.start_worker("sim")
        job = await long_job(client, 60)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            own_servers.stop_database()
            log = stack.folder / "worker-1.log"

            async def is_retrying() -> bool:
                return "cannot read or write a job's result, retrying" in log.read_text()

            await eventually(is_retrying, "the worker retries to write the result", within_s=RECOVERY_S)
            own_servers.start_database()
            await assert_unbroken(client, reader, 60)

    async def test_restarted_repeatedly_under_load(
        self, own_servers: OwnServers, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """A server that is stopping or starting never causes an internal error."""
        stack.start_worker("sim")
        rejected = 0

        async def load() -> list[str]:
            nonlocal rejected
            ids: list[str] = []
            while len(ids) < 150:
                response = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 5})
                assert response.status_code in (202, 503), response.text
                if response.status_code == 202:
                    ids.append(response.json()["id"])
                rejected += response.status_code == 503
            return ids

        loads = [asyncio.create_task(load()) for _ in range(4)]
        for _ in range(4):
            await asyncio.to_thread(own_servers.stop_database)
            seen = rejected

            async def is_rejected(seen: int = seen) -> bool:
                return rejected > seen or all(task.done() for task in loads)

            await eventually(is_rejected, "a submit is rejected")
            own_servers.start_database()
        for ids in await asyncio.gather(*loads):
            for job_id in ids:
                assert (await wait_for_end(client, job_id))["status"] == "incomplete"
        assert all(process.poll() is None for process in stack.processes.values())
        assert "Traceback" not in (stack.folder / "api.log").read_text()

    @pytest.mark.parametrize("command", [("api",), ("workers", "sim")], ids=lambda command: command[0])
    def test_schema_behind_migrations(self, stack: Stack, command: tuple[str, ...]) -> None:
        migrate(stack.environment["DATABASE_URL"], "downgrade", "base")
        answer = log_of_failed_start(stack, *command)
        assert "this version needs" in answer
        assert "python -m migrations upgrade" in answer
        assert "Traceback" not in answer

    @pytest.mark.parametrize("command", [("api",), ("workers", "sim")], ids=lambda command: command[0])
    def test_unavailable_at_start(self, own_servers: OwnServers, stack: Stack, command: tuple[str, ...]) -> None:
        own_servers.stop_database()
        answer = log_of_failed_start(stack, *command)
        assert "DATABASE_URL" in answer
        assert "Traceback" not in answer


def log_of_failed_start(stack: Stack, *command: str) -> str:
    """The log of a process that fails to start."""
    process = stack.start("refusing", *command, HEADRACE_PORT="0")
    try:
        assert process.wait(30) not in (0, -signal.SIGTERM)
    finally:
        del stack.processes["refusing"]
        process.kill()
    return (stack.folder / "refusing.log").read_text()


class TestWorkers:
    async def test_none_for_the_model(self, stack: Stack, client: httpx.AsyncClient) -> None:
        """The job stays queued, and `/readyz` names the model without a worker."""
        job = await long_job(client, 20)
        assert (await readiness(client))[1]["model sim"] == "no live worker"
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.queued")
            stack.start_worker("sim")
            stack.start_worker("single")
            await assert_unbroken(client, reader, 20)
        assert await readiness(client) == (
            200,
            {"database": "ok", "redis": "ok", "model sim": "ok", "model single": "ok"},
        )

    async def test_killed_during_a_stream(self, stack: Stack, client: httpx.AsyncClient) -> None:
        stack.start_worker("sim")
        stack.start_worker("sim")
        job = await long_job(client, 300)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            killed = datetime.now(UTC)
            stack.kill(await process_of(stack, client, job["id"]))
            done = await assert_unbroken(client, reader, 300)
        assert history(done) == [(1, "worker_lost"), (2, "incomplete")]
        first, second = done["attempts"]
        assert first["worker"] != second["worker"]
        assert 0 < second["tokens"] < 300
        assert first_token_at(done) <= killed, "the killed worker generated the first token"

    async def test_stopped_during_a_stream(self, stack: Stack, client: httpx.AsyncClient) -> None:
        """After SIGTERM, jobs that do not finish in the grace period are requeued immediately, not after the lease."""
        stack.start_worker("sim")
        stack.start_worker("sim")
        job = await long_job(client, 400)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            worker = stack.processes.pop(await process_of(stack, client, job["id"]))
            worker.terminate()
            assert await asyncio.to_thread(worker.wait, 20) == 0
            done = await assert_unbroken(client, reader, 400)
        assert history(done) == [(1, "handed_back"), (2, "incomplete")]
        assert all(0 < attempt["tokens"] < 400 for attempt in done["attempts"])

    async def test_stopped_with_time_to_finish(self, stack: Stack, client: httpx.AsyncClient) -> None:
        name = stack.start_worker("sim", HEADRACE_DRAIN_S="30")
        job = await long_job(client, 100)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            worker = stack.processes.pop(name)
            worker.terminate()
            assert await asyncio.to_thread(worker.wait, 20) == 0
            assert history(await wait_for_end(client, job["id"])) == [(1, "incomplete")]
            stack.start_worker("sim")
            await assert_unbroken(client, reader, 100)

    async def test_a_job_that_crashes_its_workers_fails_after_three_attempts(
        self, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """The job fails after three lost workers and is not retried forever."""
        job = await long_job(client, 4000)
        async with reading(client, job) as reader:
            for attempt in range(1, 4):
                name = stack.start_worker("sim")
                await reader.wait_for_events("job.started", attempt)
                await reader.wait_for_events("job.delta", 10 * attempt)
                stack.kill(name)
            done = await wait_for_end(client, job["id"])
            events = await reader.read_to_end()
        assert (done["status"], done["error"]["code"]) == ("failed", "attempts_exhausted")
        assert "3 times" in done["error"]["message"]
        assert history(done) == [(1, "worker_lost"), (2, "worker_lost"), (3, "worker_lost")]
        assert events[-1].event == "job.failed"
        assert events[-1].data["error"] == done["error"]
        assert text_of(events) == done["output_text"] != ""
        stack.start_worker("sim")
        assert (await wait_for_end(client, (await long_job(client, 5))["id"]))["status"] == "incomplete"

    async def test_a_suspended_worker_cannot_change_a_job_it_has_lost(
        self, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """A worker is suspended beyond its lease and resumes while another worker runs its job."""
        stack.start_worker("sim")
        stack.start_worker("sim")
        job = await long_job(client, 600)
        async with reading(client, job) as reader:
            await reader.wait_for_events("job.delta", 10)
            name = await process_of(stack, client, job["id"])
            suspended_worker = stack.processes[name]
            with suspended(suspended_worker):
                await reader.wait_for_events("job.started", 2)
                deltas = sum(item.event == "job.delta" for item in reader.events)
                await reader.wait_for_events("job.delta", deltas + 1)
            done = await assert_unbroken(client, reader, 600)
        log = stack.folder / f"{name}.log"
        eventually_sync(lambda: "is no longer owned by this worker" in log.read_text(), "the worker has noticed")
        assert history(done) == [(1, "worker_lost"), (2, "incomplete")]
        assert (await client.get(job["status_url"])).json() == done
        assert suspended_worker.poll() is None, "the worker is still running"
        stack.kill(next(other for other in stack.processes if other.startswith("worker") and other != name))
        assert (await wait_for_end(client, (await long_job(client, 5))["id"]))["status"] == "incomplete"


@contextlib.contextmanager
def suspended(process: Process) -> Iterator[None]:
    """Suspend a process."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
