"""Flower shows jobs under their ids and workers with their load."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support.ports import free_port
from tests.support.stack import KEY, Stack
from tests.support.waiting import eventually, eventually_sync


@pytest.fixture(scope="module")
def flower(sim_stack: Stack) -> Iterator[str]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    process = sim_stack.start(
        "flower",
        "workers.flower",
        f"--port={port}",
        "--address=127.0.0.1",
        FLOWER_UNAUTHENTICATED_API="true",
    )

    def shows_jobs() -> bool:
        """Whether Flower shows jobs of both workers. It enables their events some seconds after its start."""
        try:
            return all(_shown(url, _run(sim_stack, model)) for model in ("sim", "small"))
        except (httpx.TransportError, ValueError):
            return False

    eventually_sync(shows_jobs, "the workers' events reach Flower", within_s=60)
    yield url
    del sim_stack.processes["flower"]
    process.terminate()
    process.wait(20)


def _run(stack: Stack, model: str) -> str:
    """Run a job of a few hundred milliseconds. Returns its id."""
    body = {"model": model, "prompt": "the mill", "max_tokens": 20}
    headers = {"Authorization": f"Bearer {KEY}", "Prefer": "wait=10"}
    job: dict[str, Any] = httpx.post(f"{stack.url}/v1/jobs", json=body, headers=headers, timeout=20).json()
    return str(job["id"])


def _shown(url: str, job_id: str) -> bool:
    return httpx.get(f"{url}/api/task/info/{job_id}", timeout=5).status_code == 200


async def wait_for_task(client: httpx.AsyncClient, url: str, job_id: str, state: str) -> dict[str, Any]:
    async def probe() -> dict[str, Any] | None:
        response = await client.get(f"{url}/api/task/info/{job_id}")
        return response.json() if response.status_code == 200 and response.json()["state"] == state else None

    return await eventually(probe, f"Flower shows {job_id} as {state}")


async def test_jobs_are_shown_under_their_ids_with_model_and_state(flower: str, sim: httpx.AsyncClient) -> None:
    done = await submit(sim, max_tokens=3)
    await wait_for_end(sim, done["id"])
    failed = await submit(sim, prompt="<<fail>>")
    await wait_for_end(sim, failed["id"])
    async with httpx.AsyncClient(timeout=10) as client:
        shown = await wait_for_task(client, flower, done["id"], "SUCCESS")
        assert "'model': 'sim'" in shown["kwargs"]
        assert done["id"] in shown["args"]
        assert shown["result"] == "'incomplete'"
        await wait_for_task(client, flower, failed["id"], "FAILURE")


async def test_workers_are_shown_with_their_load(flower: str, sim: httpx.AsyncClient) -> None:
    job = await submit(sim, model="small", max_tokens=3000)
    await wait_until_running(sim, job["id"])
    async with httpx.AsyncClient(timeout=10) as client:

        async def busy() -> bool:
            shown = (await client.get(f"{flower}/workers", params={"json": "1"})).json()["data"]
            return {item["hostname"].split("-")[0]: item["active"] for item in shown if item["status"]}.get(
                "small"
            ) == 1

        await eventually(busy, "Flower shows the running job on its worker")
    await sim.post(f"/v1/jobs/{job['id']}/cancel")
    await wait_for_end(sim, job["id"])


async def test_revoking_a_queued_task_cancels_its_job(flower: str, sim_stack: Stack, sim: httpx.AsyncClient) -> None:
    blockers = [await submit(sim, model="small", max_tokens=4000) for _ in range(6)]  # two run, two are reserved
    for blocker in blockers[:2]:
        await wait_until_running(sim, blocker["id"])
    waiting = await submit(sim, model="small", max_tokens=3)
    async with httpx.AsyncClient(timeout=10) as client:
        await client.post(f"{flower}/api/task/revoke/{waiting['id']}")

    async def is_revoked() -> bool:
        listed = await asyncio.to_thread(sim_stack.command, "celery", "-A", "workers.app", "inspect", "revoked")
        return listed.stdout.count(waiting["id"]) == 2

    await eventually(is_revoked, "both workers have received the revoke")
    for blocker in blockers:
        await sim.post(f"/v1/jobs/{blocker['id']}/cancel")
    assert (await wait_for_end(sim, waiting["id"]))["status"] == "cancelled"


async def test_terminate_cancels_the_job(flower: str, sim: httpx.AsyncClient) -> None:
    job = await submit(sim, max_tokens=4000)
    await wait_until_running(sim, job["id"])
    async with httpx.AsyncClient(timeout=10) as client:
        response = await client.post(f"{flower}/api/task/revoke/{job['id']}", params={"terminate": "true"})
        assert response.status_code == 200, response.text
    done = await wait_for_end(sim, job["id"])
    assert done["status"] == "cancelled"
    assert 0 < done["usage"]["completion_tokens"] < 4000


async def test_only_expected_hosts_are_answered(flower: str) -> None:
    """Other names may belong to a web page that wants to read Flower in a visitor's browser."""
    async with httpx.AsyncClient(timeout=10) as client:
        for host, status in (
            ("localhost:5555", 200),
            ("[::1]:5555", 200),
            ("LOCALHOST", 200),
            ("attacker.example", 421),
            ("localhost.attacker.example:5555", 421),
            ("10.0.0.1:5555", 421),
            ("", 421),
        ):
            response = await client.get(f"{flower}/api/workers", headers={"Host": host})
            assert response.status_code == status, host
        assert (await client.get(f"{flower}/healthcheck", headers={"Host": "10.0.0.1:5555"})).status_code == 200
