"""Requests that kill the engine or its worker fail alone: with real processes, under load, and several at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import asyncpg
import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import submit, wait_for_end
from tests.support.database import drop_database
from tests.support.sse import follow, text_of
from tests.support.stack import Stack

DIE, KILL = "<<die>>", "<<kill>>"
MAX_ATTEMPTS = 3
# Seven restarts of an engine or worker, on a busy machine.
DEATHS_S = 240


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API process; tests start the workers."""
    options = {"ttft_ms": 5, "itl_ms": 10, "die_on": DIE, "kill_on": KILL, "max_model_len": 5000}
    stack = make_stack(
        servers,
        tmp_path_factory,
        "poison",
        [{"name": "sim", "engine": "simulated", "slots": 16, "options": options}],
        HEADRACE_LEASE_S=2,
        HEADRACE_HEARTBEAT_S=0.5,
        HEADRACE_ENGINE_BACK_OFF_MAX_S=1,
        HEADRACE_MAX_ATTEMPTS=MAX_ATTEMPTS,
    )
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_poison")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


async def deaths(stack: Stack) -> dict[str, int]:
    """The deaths that each job was charged with."""
    connection = await asyncpg.connect(stack.environment["DATABASE_URL"].replace("+asyncpg", ""))
    try:
        return {row["id"]: row["deaths"] for row in await connection.fetch("SELECT id, deaths FROM jobs")}
    finally:
        await connection.close()


async def continuous_load(client: httpx.AsyncClient, jobs: list[dict[str, Any]]) -> None:
    """Submit a short job every few milliseconds until cancelled."""
    while True:
        jobs.append(await submit(client, prompt=f"load {len(jobs)}", max_tokens=20))
        await asyncio.sleep(0.05)


@contextlib.asynccontextmanager
async def supervised(stack: Stack, count: int, lease_s: int = 2) -> AsyncIterator[None]:
    """Keep so many workers running, as an orchestrator does."""

    def start() -> str:
        return stack.start_worker("sim", HEADRACE_LEASE_S=str(lease_s))

    async def supervise() -> None:
        while True:
            for name in stack.workers("sim"):
                if stack.processes[name].poll() is not None:
                    del stack.processes[name]
                    await asyncio.to_thread(start)
            await asyncio.sleep(0.1)

    for _ in range(count):
        await asyncio.to_thread(start)
    supervising = asyncio.create_task(supervise())
    try:
        yield
    finally:
        supervising.cancel()
        await asyncio.gather(supervising, return_exceptions=True)
        for name in stack.workers("sim"):
            stack.kill(name)


async def check_poisons_fail_alone(stack: Stack, client: httpx.AsyncClient, poison: str, count: int) -> None:
    """Poisons among streamed jobs and a continuous load: they fail after their own deaths, all others complete."""
    streamed = [await submit(client, prompt=f"neighbor {number}", max_tokens=250) for number in range(3)]
    readers = [asyncio.create_task(follow(client, job["id"])) for job in streamed]
    load: list[dict[str, Any]] = []
    loading = asyncio.create_task(continuous_load(client, load))
    poisons = [await submit(client, prompt=f"{poison} {number}", max_tokens=5) for number in range(count)]
    failed = [await wait_for_end(client, job["id"], within_s=DEATHS_S) for job in poisons]
    loading.cancel()
    await asyncio.gather(loading, return_exceptions=True)
    for job in failed:
        assert (job["status"], job["error"]["code"]) == ("failed", "attempts_exhausted")
    ended = [await wait_for_end(client, job["id"]) for job in (*streamed, *load)]
    assert {job["status"] for job in ended} == {"incomplete"}
    charged = await deaths(stack)
    assert {charged[job["id"]] for job in ended} == {0}, "no other job is charged with a death"
    for job, events in zip(ended, await asyncio.gather(*readers), strict=False):
        assert text_of(events) == job["output_text"]
        names = [item.event for item in events]
        # A worker that dies before it has written to the log leaves nothing that could be shown twice.
        assert "job.restarted" not in names[names.index("job.delta") :]


@pytest.mark.timeout(360)
async def test_requests_that_kill_the_engine_fail_alone(stack: Stack, client: httpx.AsyncClient) -> None:
    # The worker survives: on a busy machine it must not lose its lease either.
    async with supervised(stack, 1, lease_s=60):
        await check_poisons_fail_alone(stack, client, DIE, 2)


@pytest.mark.timeout(360)
async def test_requests_that_kill_the_worker_fail_alone(stack: Stack, client: httpx.AsyncClient) -> None:
    async with supervised(stack, 2):
        await check_poisons_fail_alone(stack, client, KILL, 2)


async def test_a_killed_worker_delays_no_job_noticeably(stack: Stack, client: httpx.AsyncClient) -> None:
    """An operator's `kill -9` among jobs without a token: all are suspects, and all run again at once."""
    async with supervised(stack, 2):
        jobs = [await submit(client, prompt=f"burst {number}", max_tokens=20) for number in range(12)]
        stack.processes[stack.workers("sim")[0]].kill()
        ended = [await wait_for_end(client, job["id"]) for job in jobs]
        assert {job["status"] for job in ended} == {"incomplete"}
