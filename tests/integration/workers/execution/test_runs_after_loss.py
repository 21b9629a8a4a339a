"""Requests that an upstream runs without their connection, after their worker was lost in the middle of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from shared.domain.errors import ErrorCode
from shared.domain.events import EventType
from shared.domain.job import JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.postgres.job_store import JobStore
from shared.redis.event_log import EventLog
from tests.conftest import Workers
from tests.integration.workers.engines.answer import ASK, TEXT, WHOLE, no_backoff
from tests.integration.workers.execution.test_gate import WITHIN_S, working
from tests.support.vendors.catalog import VENDORS
from tests.support.vendors.script import Script
from tests.support.vendors.vendor import Vendor
from tests.support.waiting import eventually

__all__ = ["no_backoff"]

pytestmark = pytest.mark.usefixtures("no_backoff")
RUNNING = {name: kind for name, kind in VENDORS.items() if kind.resumes}
SENT = "".join(TEXT[:2])


@pytest.fixture(params=RUNNING)
async def vendor(request: pytest.FixtureRequest) -> AsyncIterator[Vendor]:
    async with RUNNING[request.param]().serve() as vendor:
        vendor.scripts = [Script(text=TEXT, hang_after=2)]
        vendor.default = Script(text=TEXT)
        yield vendor


@pytest.mark.parametrize(
    ("forgotten", "shown"), [(False, True), (True, False), (True, True)], ids=["resumed", "restarted", "failed"]
)
async def test_the_next_worker(
    vendor: Vendor, workers: Workers, store: JobStore, logs: EventLog, owner: Owner, forgotten: bool, shown: bool
) -> None:
    """It resumes the request. If the vendor has forgotten it, the answer starts again unless a reader may have it."""
    spec = vendor.spec().model_copy(update={"name": "m"})
    job, _ = await store.insert(NewJob(owner, "m", 3, ASK))

    async def sent() -> bool:
        return "".join(item.delta().text for item in await logs.read(job.id) if item.type is EventType.DELTA) == SENT

    async with working(workers, logs, spec, [], "first") as runner:
        run = asyncio.create_task(runner.run(job.id))
        await eventually(sent, "the first output is in the log")
        if shown:
            await logs.follow(job.id, "api", 0)
        await runner.requeue_all()
        assert await asyncio.wait_for(run, WITHIN_S) is None
    if forgotten:
        vendor.forget()
    else:
        await vendor.go_on()
    async with working(workers, logs, spec, [], "second") as runner:
        status = await asyncio.wait_for(runner.run(job.id), WITHIN_S)
    done = await store.get(job.id)
    assert done is not None
    fails = forgotten and shown
    assert status is (JobStatus.FAILED if fails else JobStatus.COMPLETED)
    assert done.output[0].text == (SENT if fails else WHOLE)
    assert (None if done.error is None else done.error.code) == (ErrorCode.CANNOT_CONTINUE if fails else None)
    assert vendor.generated == (2 if forgotten and not shown else 1)
    assert [attempt.outcome for attempt in done.attempts] == ["handed_back", status.value]
