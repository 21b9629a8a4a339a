"""A worker whose event loop is busy keeps its jobs; one whose loop is stuck loses them to another worker."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from tests.conftest import Servers
from tests.e2e.conftest import make_stack
from tests.e2e.test_jobs import submit, wait_for_end, wait_until_running
from tests.support.blocking import block
from tests.support.database import drop_database
from tests.support.metrics import samples
from tests.support.sse import follow, text_of
from tests.support.stack import Stack
from tests.support.waiting import eventually
from workers.supervision.lease_keeper import EXIT_CODE

MODEL = "sim"
BLOCKING = ("tests.support.blocking",)
# The loop is blocked for much longer than a lease.
LEASE_S = 1.0
BLOCKED_S = 4.0


@pytest.fixture
def stack(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    models: list[dict[str, object]] = [
        {"name": MODEL, "engine": "simulated", "slots": 8, "options": {"ttft_ms": 5, "itl_ms": 10}}
    ]
    stack = make_stack(
        servers, tmp_path_factory, "busy", models, HEADRACE_LEASE_S=LEASE_S, HEADRACE_HEARTBEAT_S=LEASE_S / 4
    )
    try:
        stack.start_api()
        yield stack
    finally:
        stack.stop()
        drop_database(servers.postgres_url, "stack_busy")


@pytest.fixture
async def client(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    async with stack.client() as client:
        yield client


async def attempts_after_blocking(stack: Stack, client: httpx.AsyncClient) -> list[list[str]]:
    """Block the loop of the only worker beside another job; a second worker is ready meanwhile.

    Returns the outcomes of both jobs' attempts. The answers are complete in any case.
    """
    bystander = await submit(client, prompt="bystander", max_tokens=700)
    await wait_until_running(client, bystander["id"])
    blocking = await submit(client, prompt=block(BLOCKED_S), max_tokens=20)
    await wait_until_running(client, blocking["id"])
    stack.start_worker(MODEL)
    outcomes = []
    for job in (bystander, blocking):
        done = await wait_for_end(client, job["id"])
        assert done["status"] == "incomplete"
        events = await follow(client, job["id"])
        assert text_of(events) == done["output_text"]
        names = [item.event for item in events]
        # A loop that gets stuck before it has written to the log leaves nothing that could be shown twice.
        assert "job.restarted" not in names[names.index("job.delta") :]
        outcomes.append([attempt["outcome"] for attempt in done["attempts"]])
    return outcomes


async def test_a_busy_loop_keeps_its_jobs(stack: Stack, client: httpx.AsyncClient) -> None:
    first = stack.start_worker(MODEL, program=BLOCKING, HEADRACE_STALL_S="30")
    assert await attempts_after_blocking(stack, client) == [["incomplete"], ["incomplete"]]
    assert "worker_lost" not in (stack.folder / f"{first}.log").read_text()
    assert (await samples(stack, "worker"))["headrace_event_loop_lag_seconds_sum",] > BLOCKED_S / 2


async def test_a_stuck_loop_loses_its_jobs(stack: Stack, client: httpx.AsyncClient) -> None:
    stuck = stack.start_worker(MODEL, program=BLOCKING, HEADRACE_STALL_S="0.5")
    for outcomes in await attempts_after_blocking(stack, client):
        # In between, one may be set aside for the other, which may have caused the loss.
        assert (outcomes[0], outcomes[-1]) == ("worker_lost", "incomplete")
    log = stack.folder / f"{stuck}.log"

    async def recovered() -> bool:
        return "the event loop answers again" in log.read_text()

    await eventually(recovered, "the loop runs again", within_s=20)
    assert "the event loop has not answered" in log.read_text()
    assert "time.sleep(" in log.read_text(), "the place where it is stuck"


async def test_a_worker_whose_loop_stays_stuck_ends(stack: Stack, client: httpx.AsyncClient) -> None:
    """Without a liveness probe, nothing else would end it."""
    stuck = stack.start_worker(MODEL, program=BLOCKING, HEADRACE_STALL_S="0.3")
    blocking = await submit(client, prompt=block(600), max_tokens=20)
    await wait_until_running(client, blocking["id"])

    async def ended() -> bool:
        return stack.processes[stuck].poll() == EXIT_CODE

    await eventually(ended, "the worker ends", within_s=30)
    log = (stack.folder / f"{stuck}.log").read_text()
    assert "this process ends" in log
    assert "time.sleep(" in log, "the place where it is stuck"
