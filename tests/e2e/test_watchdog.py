"""A worker whose consumer is stuck, as after failed reconnects of Celery, logs the fault and exits.

The test cancels the worker's consumer through Celery's remote control. The result is the same as after a failed
reconnect: a process that sends heartbeats, runs its jobs and has free slots but consumes no messages. Workers drop this
command, except in the program that the test runs.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from shared.redis.job_queue import celery_app, queue_name
from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support.database import drop_database
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually
from workers.supervision.process_shutdown import EXIT_FAULT

DETECTED_WITHIN_S = 15.0
REMOTE_CONTROLLED = ("tests.support.remote_controlled",)
MODEL = "sim"
ITL_MS = 10
SECOND = 1000 // ITL_MS  # tokens


@pytest.fixture
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models: list[dict[str, object]] = [
        {"name": MODEL, "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": ITL_MS}}
    ]
    stack = make_stack(servers, tmp_path_factory, "watchdog", models)
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_watchdog")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


def cancel_consumer(stack: Stack) -> None:
    """Cancel the worker's consumer, without notice to the rest of the worker."""
    with celery_app(stack.environment["REDIS_URL"]) as app:
        answers = app.control.cancel_consumer(queue_name(MODEL), reply=True, timeout=5)
    assert len(answers) == 1, answers
    ((_, answer),) = answers[0].items()
    assert "no longer consuming" in answer["ok"], answer


async def test_a_stuck_worker_exits_and_its_jobs_are_requeued(stack: Stack, client: httpx.AsyncClient) -> None:
    stuck = stack.start_worker(MODEL, program=REMOTE_CONTROLLED)
    process, log = stack.processes[stuck], stack.folder / f"{stuck}.log"
    # One long job, and others that end one after another. The slots that they free must not count as activity.
    long = await submit(client, prompt="long", max_tokens=40 * SECOND)
    others = [await submit(client, prompt="short", max_tokens=(1 + 2 * count) * SECOND) for count in range(1, 6)]
    for job in (long, *others):
        await wait_until_running(client, job["id"])
    await asyncio.to_thread(cancel_consumer, stack)
    began = time.monotonic()
    queued = [await submit(client, prompt=f"waiting {number}", max_tokens=5) for number in range(3)]

    async def is_logged() -> bool:
        return "CRITICAL" in log.read_text()

    await eventually(is_logged, "the fault is logged", within_s=DETECTED_WITHIN_S - (time.monotonic() - began))
    assert re.search(
        rf"model={MODEL} \d+ messages are waiting and none is consumed although slots are free", log.read_text()
    )
    assert await asyncio.to_thread(process.wait, 30) == EXIT_FAULT
    del stack.processes[stuck]

    handed_back = (await client.get(f"/v1/jobs/{long['id']}")).json()
    assert handed_back["status"] == "queued"
    assert [attempt["outcome"] for attempt in handed_back["attempts"]] == ["handed_back"]
    assert handed_back["attempts"][0]["tokens"] > 0
    assert (await client.get("/readyz")).json()["checks"][f"model {MODEL}"] == "no live worker"

    stack.start_worker(MODEL)
    for job in (*queued, *others):
        assert (await wait_for_end(client, job["id"]))["status"] == "incomplete"
    await client.post(f"/v1/jobs/{long['id']}/cancel")
    events = await follow(client, long["id"])
    done = await wait_for_end(client, long["id"])
    assert text_of(events) == done["output_text"]
    assert "job.restarted" not in [item.event for item in events], "the job resumed at its next token"
