"""What is away comes back, who dies is replaced, and the client sees a pause: no job is lost, no text twice.

Each test has a stack of its own on servers that it may stop. Leases are short, so that a rescue takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.sse import Sse, read_events
from shared.config.models.simulated import SimulatedModel, SimulatedOptions
from shared.domain.events import Delta
from shared.domain.request import GenerateRequest, Sampling
from tests.e2e.test_jobs import ended, running, submit
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
RESCUE_S = 40.0  # what anything may take here, on a busy machine


@pytest.fixture(scope="module")
def own() -> Iterator[OwnServers]:
    # Not under pytest's own folder: another run of root's closes that to all others, PostgreSQL's user too.
    with tempfile.TemporaryDirectory(prefix="headrace-tests-") as folder:
        servers = OwnServers(Path(folder))
        create_database(servers.postgres_url, TEMPLATE)
        migrate(switch_database(servers.postgres_url, TEMPLATE))
        yield servers
        servers.stop()


@pytest.fixture
def stack(own: OwnServers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """An API on an empty database and an empty Redis; workers are each test's own."""
    own.start()
    own.flush_redis()
    create_database(own.postgres_url, "outages", template=stack_template(own.postgres_url))
    folder = tmp_path_factory.mktemp("stack")
    stack = Stack(
        switch_database(own.postgres_url, "outages"),
        own.redis_url,
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
        own.start()
        stack.stop()
        drop_database(own.postgres_url, "outages")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


class Reader:
    """One SSE connection to a job, open from now on, and what it has seen."""

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

    async def is_open(self) -> None:
        async def probe() -> bool:
            return self.opened

        await eventually(probe, "the stream opens", within_s=RESCUE_S)

    async def sees(self, kind: str, count: int = 1) -> None:
        """Wait until so many events of a kind have come."""

        async def probe() -> bool:
            return sum(item.event == kind for item in self.events) >= count

        await eventually(probe, f"{count} events {kind}", within_s=RESCUE_S)

    async def whole(self) -> list[Sse]:
        """All events, once the stream has ended by itself."""
        await asyncio.wait_for(self._task, RESCUE_S)
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
    """The one connection has seen each event once, its text is the row's, and that is an uninterrupted run's."""
    events = await reader.whole()
    done = await ended(client, reader.job_id)
    ids = [item.id for item in events if item.id is not None]
    assert ids == list(range(1, len(ids) + 1)), "a gap or a repeat"
    assert events[-1].event == f"job.{done['status']}" == "job.incomplete"
    assert "job.restarted" not in {item.event for item in events}
    assert text_of(events) == done["output_text"]
    assert done["usage"]["completion_tokens"] == tokens
    assert done["output_text"] == await uninterrupted(tokens)
    return done


async def uninterrupted(tokens: int) -> str:
    """What the engine says when nothing happens."""
    engine = SimulatedEngine(
        SimulatedModel(name="sim", engine="simulated", options=SimulatedOptions(ttft_ms=0, itl_ms=0))
    )
    request = GenerateRequest(prompt=PROMPT, sampling=Sampling(max_tokens=tokens))
    return "".join([item.text async for item in engine.generate("calm", request) if isinstance(item, Delta)])


async def long_job(client: httpx.AsyncClient, tokens: int) -> dict[str, Any]:
    return await submit(client, prompt=PROMPT, max_tokens=tokens)


async def owner(stack: Stack, client: httpx.AsyncClient, job_id: str) -> str:
    """The name of the process that runs a job: a worker's name holds its pid."""
    job = await running(client, job_id)
    pid = job["attempts"][-1]["worker"].split("@")[0].split("-")[1]
    return next(name for name, process in stack.processes.items() if str(process.pid) == pid)


async def readiness(client: httpx.AsyncClient) -> tuple[int, dict[str, str]]:
    response = await client.get("/readyz")
    return response.status_code, response.json()["checks"]


def history(job: dict[str, Any]) -> list[tuple[int, str]]:
    return [(attempt["number"], attempt["outcome"]) for attempt in job["attempts"]]


class TestRedis:
    async def test_away_at_submit(self, own: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        """The job is committed, and runs when Redis is back; who reads meanwhile gets all of it."""
        stack.start_worker("sim")
        own.stop_redis()
        began = time.monotonic()
        job = await long_job(client, 50)
        assert time.monotonic() - began < 5
        assert (await client.get(job["status_url"])).json()["status"] == "queued"
        status, checks = await readiness(client)
        assert (status, checks["redis"], checks["database"]) == (503, "cannot be reached", "ok")
        async with reading(client, job) as reader:
            await reader.is_open()
            own.start_redis()
            await assert_unbroken(client, reader, 50)

    @pytest.mark.parametrize("lost", ["flushed", "restarted"])
    async def test_loses_everything_in_mid_stream(
        self, own: OwnServers, stack: Stack, client: httpx.AsyncClient, lost: str
    ) -> None:
        stack.start_worker("sim")
        job = await long_job(client, 300)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            if lost == "flushed":
                own.flush_redis()
            else:
                own.stop_redis()
                own.start_redis()
            done = await assert_unbroken(client, reader, 300)
        assert history(done) == [(1, "incomplete")], "it ran through"

    async def test_loses_the_queue(self, own: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        """Messages are hints: the rows are still there."""
        jobs = [await submit(client, model="single", max_tokens=20) for _ in range(6)]
        stack.start_worker("single")
        await running(client, jobs[0]["id"])
        own.flush_redis()
        for job in jobs:
            assert history(await ended(client, job["id"])) == [(1, "incomplete")]

    async def test_cancel_while_it_is_away(self, own: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        """The worker sees it at its next heartbeat."""
        stack.start_worker("sim")
        job = await long_job(client, 4000)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 5)
            own.stop_redis()
            response = await client.post(job["cancel_url"])
            assert (response.status_code, response.json()["status"]) == (200, "cancelling")
            done = await ended(client, job["id"])
            own.start_redis()
            events = await reader.whole()
        assert (done["status"], events[-1].event) == ("cancelled", "job.cancelled")
        assert text_of(events) == done["output_text"]


class TestDatabase:
    async def test_away(self, own: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        """Submits are refused, running jobs go on, and what they made is written when it is back."""
        stack.start_worker("sim")
        job = await long_job(client, 300)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            own.stop_database()
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
            assert (status, checks["database"], checks["redis"]) == (503, "cannot be reached", "ok")
            assert checks["model sim"] == "unknown"
            assert (await client.get("/healthz")).status_code == 200
            made = len(reader.events)
            await reader.sees("job.delta", made + 20)
            own.start_database()
            await assert_unbroken(client, reader, 300)

    async def test_away_when_a_job_ends(self, own: OwnServers, stack: Stack, client: httpx.AsyncClient) -> None:
        stack.start_worker("sim")
        job = await long_job(client, 60)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            own.stop_database()
            log = stack.folder / "worker-1.log"

            async def waits() -> bool:
                return "cannot read or write a job's result, retrying" in log.read_text()

            await eventually(waits, "the result waits for the database", within_s=RESCUE_S)
            own.start_database()
            await assert_unbroken(client, reader, 60)

    async def test_restarted_again_and_again_under_load(
        self, own: OwnServers, stack: Stack, client: httpx.AsyncClient
    ) -> None:
        """No state of a server on its way down or up is taken for a fault of ours."""
        stack.start_worker("sim")
        refused = 0

        async def load() -> list[str]:
            nonlocal refused
            ids: list[str] = []
            while len(ids) < 150:
                response = await client.post("/v1/jobs", json={"model": "sim", "prompt": "x", "max_tokens": 5})
                assert response.status_code in (202, 503), response.text
                if response.status_code == 202:
                    ids.append(response.json()["id"])
                refused += response.status_code == 503
            return ids

        loads = [asyncio.create_task(load()) for _ in range(4)]
        for _ in range(4):
            await asyncio.to_thread(own.stop_database)
            seen = refused

            async def is_refused(seen: int = seen) -> bool:
                return refused > seen or all(task.done() for task in loads)

            await eventually(is_refused, "a submit is refused")
            own.start_database()
        for ids in await asyncio.gather(*loads):
            for job_id in ids:
                assert (await ended(client, job_id))["status"] == "incomplete"
        assert all(process.poll() is None for process in stack.processes.values())
        assert "Traceback" not in (stack.folder / "api.log").read_text()

    @pytest.mark.parametrize("command", [("api",), ("workers", "sim")], ids=lambda command: command[0])
    def test_behind_its_migrations(self, stack: Stack, command: tuple[str, ...]) -> None:
        migrate(stack.environment["DATABASE_URL"], "downgrade", "base")
        answer = refuses(stack, *command)
        assert "this version needs" in answer
        assert "python -m migrations upgrade" in answer
        assert "Traceback" not in answer

    @pytest.mark.parametrize("command", [("api",), ("workers", "sim")], ids=lambda command: command[0])
    def test_away_at_start(self, own: OwnServers, stack: Stack, command: tuple[str, ...]) -> None:
        own.stop_database()
        answer = refuses(stack, *command)
        assert "DATABASE_URL" in answer
        assert "Traceback" not in answer


def refuses(stack: Stack, *command: str) -> str:
    """What a process says that does not start."""
    process = stack.start("refusing", *command, HEADRACE_PORT="0")
    try:
        assert process.wait(30) not in (0, -signal.SIGTERM)
    finally:
        del stack.processes["refusing"]
        process.kill()
    return (stack.folder / "refusing.log").read_text()


class TestWorkers:
    async def test_none_for_the_model(self, stack: Stack, client: httpx.AsyncClient) -> None:
        """The job waits; `/readyz` says for what."""
        job = await long_job(client, 20)
        assert (await readiness(client))[1]["model sim"] == "no live worker"
        async with reading(client, job) as reader:
            await reader.sees("job.queued")
            stack.start_worker("sim")
            stack.start_worker("single")
            await assert_unbroken(client, reader, 20)
        assert await readiness(client) == (
            200,
            {"database": "ok", "redis": "ok", "model sim": "ok", "model single": "ok"},
        )

    async def test_killed_in_mid_stream(self, stack: Stack, client: httpx.AsyncClient) -> None:
        stack.start_worker("sim")
        stack.start_worker("sim")
        job = await long_job(client, 300)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            stack.kill(await owner(stack, client, job["id"]))
            done = await assert_unbroken(client, reader, 300)
        assert history(done) == [(1, "worker_lost"), (2, "incomplete")]
        first, second = done["attempts"]
        assert first["worker"] != second["worker"]
        assert 0 < second["tokens"] < 300

    async def test_stopped_in_mid_stream(self, stack: Stack, client: httpx.AsyncClient) -> None:
        """SIGTERM: what does not finish in the grace is handed back at once, not after the lease."""
        stack.start_worker("sim")
        stack.start_worker("sim")
        job = await long_job(client, 400)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            leaving = stack.processes.pop(await owner(stack, client, job["id"]))
            leaving.terminate()
            assert await asyncio.to_thread(leaving.wait, 20) == 0
            done = await assert_unbroken(client, reader, 400)
        assert history(done) == [(1, "handed_back"), (2, "incomplete")]
        assert all(0 < attempt["tokens"] < 400 for attempt in done["attempts"])

    async def test_stopped_with_time_to_finish(self, stack: Stack, client: httpx.AsyncClient) -> None:
        name = stack.start_worker("sim", HEADRACE_DRAIN_S="30")
        job = await long_job(client, 100)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            leaving = stack.processes.pop(name)
            leaving.terminate()
            assert await asyncio.to_thread(leaving.wait, 20) == 0
            assert history(await ended(client, job["id"])) == [(1, "incomplete")]
            stack.start_worker("sim")
            await assert_unbroken(client, reader, 100)

    async def test_a_job_that_kills_its_workers(self, stack: Stack, client: httpx.AsyncClient) -> None:
        """Three deaths, and it does not circle."""
        job = await long_job(client, 4000)
        async with reading(client, job) as reader:
            for death in range(1, 4):
                name = stack.start_worker("sim")
                await reader.sees("job.started", death)
                await reader.sees("job.delta", 10 * death)
                stack.kill(name)
            done = await ended(client, job["id"])
            events = await reader.whole()
        assert (done["status"], done["error"]["code"]) == ("failed", "attempts_exhausted")
        assert "3 times" in done["error"]["message"]
        assert history(done) == [(1, "worker_lost"), (2, "worker_lost"), (3, "worker_lost")]
        assert events[-1].event == "job.failed"
        assert events[-1].data["error"] == done["error"]
        assert text_of(events) == done["output_text"] != ""
        stack.start_worker("sim")
        assert (await ended(client, (await long_job(client, 5))["id"]))["status"] == "incomplete"

    async def test_a_zombie_changes_nothing(self, stack: Stack, client: httpx.AsyncClient) -> None:
        """A worker that is stopped beyond its lease and wakes while another has its job."""
        stack.start_worker("sim")
        stack.start_worker("sim")
        job = await long_job(client, 600)
        async with reading(client, job) as reader:
            await reader.sees("job.delta", 10)
            name = await owner(stack, client, job["id"])
            zombie = stack.processes[name]
            with stopped(zombie):
                await reader.sees("job.started", 2)
                deltas = sum(item.event == "job.delta" for item in reader.events)
                await reader.sees("job.delta", deltas + 1)
            done = await assert_unbroken(client, reader, 600)
        log = stack.folder / f"{name}.log"
        eventually_sync(lambda: "is no longer owned by this worker" in log.read_text(), "it knows")
        assert history(done) == [(1, "worker_lost"), (2, "incomplete")]
        assert (await client.get(job["status_url"])).json() == done
        assert zombie.poll() is None, "it lives, and works on"
        stack.kill(next(other for other in stack.processes if other.startswith("worker") and other != name))
        assert (await ended(client, (await long_job(client, 5))["id"]))["status"] == "incomplete"


@contextlib.contextmanager
def stopped(process: Process) -> Iterator[None]:
    """A process that stands still meanwhile."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)
