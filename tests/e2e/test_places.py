"""Streams of queued jobs report the position in the queue and its changes, with real processes and servers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from chaos.sse import Sse, read_events
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import wait_for_end, wait_until_running
from tests.support.database import drop_database
from tests.support.stack import Stack
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """One API process on a model with one slot, with a short lease."""
    models: list[dict[str, object]] = [
        {"name": "one", "engine": "simulated", "slots": 1, "options": {"ttft_ms": 5, "itl_ms": 20}}
    ]
    stack = make_stack(servers, tmp_path_factory, "places", models, HEADRACE_LEASE_S=2, HEADRACE_HEARTBEAT_S=0.5)
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_places")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


class Reader:
    """Reads the stream of a job to its end."""

    def __init__(self, client: httpx.AsyncClient, job_id: str) -> None:
        self.events: list[Sse] = []
        self._task = asyncio.create_task(self._follow(client, job_id))

    async def _follow(self, client: httpx.AsyncClient, job_id: str) -> None:
        async with client.stream("GET", f"/v1/jobs/{job_id}/stream") as response:
            async for item in read_events(response):
                self.events.append(item)

    @property
    def positions(self) -> list[int]:
        return [item.data["position"] for item in self.events if item.event == "job.queued"]

    async def wait_for_position(self, position: int) -> None:
        async def probe() -> bool:
            return bool(self.positions) and self.positions[-1] == position

        await eventually(probe, f"the stream reports position {position}; it has reported {self.positions}")

    async def read_to_end(self) -> list[Sse]:
        await asyncio.wait_for(self._task, 60)
        return self.events


async def submit(client: httpx.AsyncClient, **body: Any) -> dict[str, Any]:
    response = await client.post("/v1/jobs", json={"model": "one", "prompt": "the mill", "max_tokens": 5, **body})
    job: dict[str, Any] = response.json()
    assert response.status_code == 202, job
    return job


async def test_the_position_changes_with_the_queue(stack: Stack, client: httpx.AsyncClient) -> None:
    first, batch, second = [await submit(client, priority=priority) for priority in (3, 9, 3)]
    assert [job["queue_position"] for job in (first, batch, second)] == [0, 1, 1]
    assert second["eta_s"] is None, "no live worker and no measurements"
    readers = {
        name: Reader(client, job["id"]) for name, job in [("first", first), ("batch", batch), ("second", second)]
    }
    for name, position in (("first", 0), ("second", 1), ("batch", 2)):
        await readers[name].wait_for_position(position)

    urgent = await submit(client, priority=0)
    for name, position in (("first", 1), ("second", 2), ("batch", 3)):
        await readers[name].wait_for_position(position)
    await client.post(f"/v1/jobs/{first['id']}/cancel")
    await readers["second"].wait_for_position(1)
    await readers["batch"].wait_for_position(2)
    await client.post(f"/v1/jobs/{urgent['id']}/cancel")
    await readers["second"].wait_for_position(0)

    worker = stack.start_worker("one")
    for name in ("second", "batch"):
        events = await readers[name].read_to_end()
        kinds = [item.event for item in events]
        assert kinds[-1] == "job.incomplete"
        assert "job.queued" not in kinds[kinds.index("job.started") :], "no position after the start"
        assert all(item.id is None for item in events if item.event == "job.queued")
        assert all(
            one != other for one, other in zip(readers[name].positions, readers[name].positions[1:], strict=False)
        )
    assert [item.event for item in await readers["first"].read_to_end()][-1] == "job.cancelled"

    # A worker is running, and wait times have been measured.
    long = await submit(client, max_tokens=4000)
    await wait_until_running(client, long["id"])
    queued_jobs = [await submit(client) for _ in range(3)]

    async def all_etas() -> list[float] | None:
        # Measurements may be published a second later.
        etas = [(await client.get(f"/v1/jobs/{job['id']}")).json()["eta_s"] for job in queued_jobs]
        return etas if all(etas) else None

    etas = await eventually(all_etas, "each queued job has an ETA")
    assert etas == sorted(etas)
    assert (await submit(client, priority=0))["eta_s"] is not None
    await client.post(f"/v1/jobs/{long['id']}/cancel")
    for job in queued_jobs:
        await wait_for_end(client, job["id"])
    stack.kill(worker)


async def test_the_job_of_a_killed_worker_is_requeued_first(stack: Stack, client: httpx.AsyncClient) -> None:
    worker = stack.start_worker("one")
    lost = await submit(client, max_tokens=200)
    await wait_until_running(client, lost["id"])
    queued = await submit(client)
    reader, queued_jobs = Reader(client, lost["id"]), Reader(client, queued["id"])
    await queued_jobs.wait_for_position(0)
    stack.kill(worker)
    await queued_jobs.wait_for_position(1)
    await reader.wait_for_position(0)
    second_worker = stack.start_worker("one")
    kinds = [item.event for item in await reader.read_to_end()]
    assert kinds.count("job.started") == 2
    assert kinds[-1] == "job.incomplete"
    ids = [item.id for item in reader.events if item.id is not None]
    assert ids == list(range(1, len(ids) + 1)), "positions have no ids and cause no gap"
    await queued_jobs.wait_for_position(0)
    assert [item.event for item in await queued_jobs.read_to_end()][-1] == "job.incomplete"
    stack.kill(second_worker)
