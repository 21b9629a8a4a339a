"""Interactive before batch, always: an engine full of batch jobs makes room at once, and no token is lost."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.test_jobs import ended, running, submit
from tests.support.sse import follow, text_of

BATCH = 9
SLOTS = 2


def set_aside(job: dict[str, Any]) -> int:
    return [attempt["outcome"] for attempt in job["attempts"]].count("set_aside")


async def test_an_engine_full_of_batch_jobs_makes_room(sim: httpx.AsyncClient) -> None:
    batch = [await submit(sim, model="small", max_tokens=250, priority=BATCH) for _ in range(SLOTS + 3)]
    for job in batch[:SLOTS]:
        await running(sim, job["id"])
    urgent = [await submit(sim, model="small", max_tokens=5) for _ in range(2 * SLOTS)]
    done_urgent = [await ended(sim, job["id"]) for job in urgent]
    assert {job["status"] for job in done_urgent} == {"incomplete"}

    whole = await ended(sim, (await submit(sim, model="sim", max_tokens=250))["id"])
    done_batch = [await ended(sim, job["id"]) for job in batch]
    assert {job["output_text"] for job in done_batch} == {whole["output_text"]}
    first_end = min(job["finished_at"] for job in done_batch)
    assert max(job["finished_at"] for job in done_urgent) < first_end, "no batch job had to end first"
    assert sum(map(set_aside, done_batch)) >= SLOTS
    for job in done_batch:
        events = await follow(sim, job["id"])
        assert "job.restarted" not in [event.event for event in events]
        assert text_of(events) == whole["output_text"]


async def test_a_batch_job_waits_for_room_and_then_comes_at_once(sim: httpx.AsyncClient) -> None:
    """Nothing urgent comes that would make the worker look at its queue."""
    urgent = [await submit(sim, model="small", max_tokens=4000) for _ in range(SLOTS)]
    for job in urgent:
        await running(sim, job["id"])
    batch = [await submit(sim, model="small", max_tokens=3, priority=BATCH) for _ in range(20)]
    await sim.post(f"/v1/jobs/{urgent[0]['id']}/cancel")
    done = [await ended(sim, job["id"]) for job in batch]
    assert [job["status"] for job in done] == ["incomplete"] * len(batch)
    assert [job["started_at"] for job in done] == sorted(job["started_at"] for job in done), "in their order"
    await sim.post(f"/v1/jobs/{urgent[1]['id']}/cancel")
    for job in urgent:
        assert (await ended(sim, job["id"]))["status"] == "cancelled"
