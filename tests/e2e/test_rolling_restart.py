"""A rolling restart of all API and worker processes under load loses nothing and only pauses streams."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from chaos.sse import Sse, read_events
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.support.database import drop_database
from tests.support.sse import text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually

WORKERS = 3
TOKENS = 150
WITHIN_S = 120.0


@pytest.fixture(scope="module", params=[15, pytest.param(40, marks=pytest.mark.long)])
def clients(request: pytest.FixtureRequest) -> int:
    """The number of clients, each of which waits for one job at a time."""
    return int(request.param)


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory, clients: int) -> Iterator[Stack]:
    """Workers whose slots are enough for all clients, unless one of them is stopped."""
    slots = clients * 2 // 5
    assert (WORKERS - 1) * slots < clients < WORKERS * slots
    models: list[dict[str, object]] = [
        {"name": "sim", "engine": "simulated", "slots": slots, "options": {"ttft_ms": 5, "itl_ms": 10}}
    ]
    stack = make_stack(servers, tmp_path_factory, "rolling", models, HEADRACE_DRAIN_S=0.3)
    try:
        stack.start_api()
        for _ in range(WORKERS):
            stack.start_worker("sim")
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_rolling")


class Client:
    """A client that retries on either API process: submits with an idempotency key and resumes from its cursor."""

    def __init__(self, clients: list[httpx.AsyncClient]) -> None:
        self._clients = itertools.cycle(clients)
        self.done: dict[str, list[Sse]] = {}

    async def run(self, number: int) -> None:
        job_id = await self._submit(number)
        events: list[Sse] = []
        while not events or events[-1].event in ("job.started", "job.delta"):
            after = {"starting_after": events[-1].id} if events else {}
            try:
                url = f"/v1/jobs/{job_id}/stream"
                async with next(self._clients).stream("GET", url, params=after) as response:
                    assert response.status_code in (200, 503), await response.aread()
                    events += [item async for item in read_events(response) if item.event != "job.queued"]
            except httpx.TransportError:
                await asyncio.sleep(0.02)
        self.done[job_id] = events

    async def _submit(self, number: int) -> str:
        body = {"model": "sim", "prompt": f"rolling {number}", "max_tokens": TOKENS}
        while True:
            try:
                response = await next(self._clients).post(
                    "/v1/jobs", json=body, headers={"Idempotency-Key": f"rolling-{number}"}
                )
            except httpx.TransportError:
                await asyncio.sleep(0.02)
                continue
            if response.status_code == 202:
                job: dict[str, Any] = response.json()
                return str(job["id"])
            assert response.status_code in (409, 503), response.text


async def test_a_rolling_restart_loses_nothing(stack: Stack, clients: int) -> None:
    with stack.second_api() as second:
        async with stack.client() as one, stack.client(base_url=second) as other:
            client = Client([one, other])
            numbers = itertools.count()
            stopping = False

            async def keep_busy() -> None:
                while not stopping:
                    await client.run(next(numbers))

            load = asyncio.gather(*(keep_busy() for _ in range(clients)))
            try:
                await wait_for_more_jobs(client, clients)
                workers = [name for name in stack.processes if name.startswith("worker")]
                for name in workers:
                    process = stack.processes.pop(name)
                    process.terminate()
                    assert await asyncio.to_thread(process.wait, 30) == 0
                    await asyncio.to_thread(stack.start_worker, "sim")
                    await wait_for_more_jobs(client, clients)
                for url in (stack.url, second):
                    await asyncio.to_thread(stack.restart_api, url)
                    await wait_for_more_jobs(client, clients)
                stopping = True
                await asyncio.wait_for(load, WITHIN_S)
            finally:
                load.cancel()
            handed_back = 0
            for job_id, events in client.done.items():
                job = (await one.get(f"/v1/jobs/{job_id}")).json()
                assert job["status"] == "incomplete", job
                assert [item.id for item in events] == list(range(1, len(events) + 1))
                assert text_of(events) == job["output_text"]
                assert "job.restarted" not in [item.event for item in events]
                assert job["usage"]["completion_tokens"] == TOKENS
                assert sum(attempt["tokens"] for attempt in job["attempts"]) == TOKENS
                outcomes = [attempt["outcome"] for attempt in job["attempts"]]
                assert set(outcomes) <= {"handed_back", "incomplete"}
                handed_back += "handed_back" in outcomes
    assert len(client.done) == next(numbers), "every submitted job has ended"
    assert handed_back >= WORKERS, "running jobs moved to other workers"


async def wait_for_more_jobs(client: Client, count: int) -> None:
    """Wait until so many more jobs have ended."""
    before = len(client.done)

    async def ended() -> bool:
        return len(client.done) >= before + count

    await eventually(ended, "jobs end", within_s=WITHIN_S)
