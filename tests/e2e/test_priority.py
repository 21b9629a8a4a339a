"""Interactive jobs preempt batch jobs: an engine full of batch jobs frees slots at once, and no token is lost."""

from __future__ import annotations

from typing import Any

import httpx

from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support.sse import follow, text_of

BATCH = 9
SLOTS = 2


def set_aside(job: dict[str, Any]) -> int:
    return [attempt["outcome"] for attempt in job["attempts"]].count("set_aside")


async def test_urgent_jobs_preempt_batch_jobs(sim: httpx.AsyncClient) -> None:
    batch = [await submit(sim, model="small", max_tokens=250, priority=BATCH) for _ in range(SLOTS + 3)]
    for job in batch[:SLOTS]:
        await wait_until_running(sim, job["id"])
    urgent = [await submit(sim, model="small", max_tokens=5) for _ in range(2 * SLOTS)]
    done_urgent = [await wait_for_end(sim, job["id"]) for job in urgent]
    assert {job["status"] for job in done_urgent} == {"incomplete"}

    complete = await wait_for_end(sim, (await submit(sim, model="sim", max_tokens=250))["id"])
    done_batch = [await wait_for_end(sim, job["id"]) for job in batch]
    assert {job["output_text"] for job in done_batch} == {complete["output_text"]}
    first_end = min(job["finished_at"] for job in done_batch)
    assert max(job["finished_at"] for job in done_urgent) < first_end, "urgent jobs ended before any batch job"
    assert sum(map(set_aside, done_batch)) >= SLOTS
    for job in done_batch:
        events = await follow(sim, job["id"])
        assert "job.restarted" not in [event.event for event in events]
        assert text_of(events) == complete["output_text"]


async def test_batch_jobs_start_as_soon_as_a_slot_is_free(sim: httpx.AsyncClient) -> None:
    """No urgent job is submitted that would cause the worker to check its queue."""
    urgent = [await submit(sim, model="small", max_tokens=4000) for _ in range(SLOTS)]
    for job in urgent:
        await wait_until_running(sim, job["id"])
    batch = [await submit(sim, model="small", max_tokens=3, priority=BATCH) for _ in range(20)]
    await sim.post(f"/v1/jobs/{urgent[0]['id']}/cancel")
    done = [await wait_for_end(sim, job["id"]) for job in batch]
    assert [job["status"] for job in done] == ["incomplete"] * len(batch)
    assert [job["started_at"] for job in done] == sorted(job["started_at"] for job in done), (
        "in the order of submission"
    )
    await sim.post(f"/v1/jobs/{urgent[1]['id']}/cancel")
    for job in urgent:
        assert (await wait_for_end(sim, job["id"]))["status"] == "cancelled"
