"""A worker whose consumer is stuck, as Celery's have been after reconnects: it ends by itself, and says so.

The fault is made with Celery's own remote control, which takes the worker's queue from its consumer. What is left
is what the reconnect faults leave: a process that lives, beats, runs its jobs, has room, and takes nothing.
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
from tests.e2e.test_jobs import ended, running, submit
from tests.support.database import drop_database
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually
from workers.supervision.process_shutdown import EXIT_FAULT

NOTICED_WITHIN_S = 15.0
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


def take_queue_away(stack: Stack) -> None:
    """Celery's consumer takes nothing more, and nothing else of the worker knows."""
    with celery_app(stack.environment["REDIS_URL"]) as app:
        answers = app.control.cancel_consumer(queue_name(MODEL), reply=True, timeout=5)
    assert len(answers) == 1, answers
    ((_, answer),) = answers[0].items()
    assert "no longer consuming" in answer["ok"], answer


async def test_a_stuck_worker_ends_and_its_jobs_go_on_elsewhere(stack: Stack, client: httpx.AsyncClient) -> None:
    stuck = stack.start_worker(MODEL)
    process, log = stack.processes[stuck], stack.folder / f"{stuck}.log"
    # A long one, and some that end one after another: each leaves more room, and is no sign of life.
    long = await submit(client, prompt="long", max_tokens=40 * SECOND)
    others = [await submit(client, prompt="short", max_tokens=(1 + 2 * count) * SECOND) for count in range(1, 6)]
    for job in (long, *others):
        await running(client, job["id"])
    await asyncio.to_thread(take_queue_away, stack)
    began = time.monotonic()
    waiting = [await submit(client, prompt=f"waiting {number}", max_tokens=5) for number in range(3)]

    async def said_so() -> bool:
        return "CRITICAL" in log.read_text()

    await eventually(said_so, "the fault is noticed", within_s=NOTICED_WITHIN_S - (time.monotonic() - began))
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
    for job in (*waiting, *others):
        assert (await ended(client, job["id"]))["status"] == "incomplete"
    await client.post(f"/v1/jobs/{long['id']}/cancel")
    events = await follow(client, long["id"])
    done = await ended(client, long["id"])
    assert text_of(events) == done["output_text"]
    assert "job.restarted" not in [item.event for item in events], "it went on at its next token"
