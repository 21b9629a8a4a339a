"""Lost messages are detected and sent again, whatever else is queued; other jobs are left alone."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.config.models.openai import OpenAIModel
from shared.domain.job import AttemptOutcome, Job
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.job_queue import HintSender, celery_app, depths
from tests.conftest import TEST_REDIS_DB, Servers, Workers
from tests.support.metrics import worker_metrics
from tests.support.steered_engine import SteeredEngine
from workers.engines.upstream.gate import UpstreamGate
from workers.execution.attempts.context import AttemptContext
from workers.execution.runner import LastClaim, Runner
from workers.execution.slots import SlotPool
from workers.supervision.redelivery import Redelivery

pytestmark = pytest.mark.usefixtures("redis")
SLOTS = 4


class Sent(HintSender):
    """Collects hints instead of sending them."""

    @property
    def job_ids(self) -> list[str]:
        return [hint.job_id for hint, _ in self._pending]

    @property
    def priorities(self) -> list[int]:
        return [hint.priority for hint, _ in self._pending]


@pytest.fixture
def broker(servers: Servers) -> str:
    return servers.redis(TEST_REDIS_DB)


@pytest.fixture
async def sent(broker: str, redis: Redis) -> Sent:
    return Sent(celery_app(broker), redis)


@pytest.fixture
def runner(workers: Workers) -> Runner:
    store = workers("w")
    context = AttemptContext(
        worker="w",
        engine=SteeredEngine(),
        store=store,
        logs=None,  # type: ignore[arg-type]  # no job runs
        log_writer=None,  # type: ignore[arg-type]
        log_ttl_s=1,
        max_attempts=3,
        send=lambda _: None,
        on_engine_death=lambda: None,
        metrics=worker_metrics(),
    )
    return Runner(context, SlotPool(SLOTS, yields=True))


@pytest.fixture
def redelivery(runner: Runner, recovery_store: RecoveryStore, redis: Redis, sent: Sent) -> Redelivery:
    return Redelivery(runner, recovery_store, redis, sent, worker_metrics("m"), "m")


async def waiting(store: JobStore, database: AsyncEngine, owner: Owner, *priorities: int) -> list[Job]:
    """Jobs that have been queued for a minute."""
    jobs = [
        (await store.insert(NewJob(owner, "m", priority, GenerateRequest(prompt="x"))))[0] for priority in priorities
    ]
    async with database.begin() as connection:
        ago = "now() - interval '1 minute'"
        await connection.execute(text(f"UPDATE jobs SET created_at = {ago}, dispatched_at = {ago}"))  # noqa: S608
    return jobs


def younger(job: Job) -> str:
    """The id of a job that was submitted a minute after this one."""
    return f"job_{int(job.id[4:16], 16) + 60_000:012x}{job.id[16:]}"


def fill(slot_pool: SlotPool) -> None:
    """Take all slots with urgent jobs."""
    while slot_pool.urgent_room:
        slot_pool.acquire(batch=False)


async def message(broker: str, redis: Redis, job: Job) -> None:
    sender = HintSender(celery_app(broker), redis)
    sender.put(Hint(job.id, job.model, job.priority))
    await sender.flush()


async def test_an_empty_queue_with_queued_rows(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    jobs = await waiting(store, database, owner, 3, 0)
    assert await redelivery.resend_lost() == 2
    assert sent.job_ids == [jobs[1].id, jobs[0].id]


async def test_a_withheld_job_has_no_lost_message(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    """A job that a dispatcher withholds has no message to lose, however old it is."""
    withheld, lost, served = await waiting(store, database, owner, 3, 3, 3)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET dispatched_at = NULL WHERE id = :id"), {"id": withheld.id})
    redelivery._runner.last_claimed[3] = LastClaim(served.id, time.monotonic())
    await redelivery.resend_lost()
    assert withheld.id not in sent.job_ids
    assert lost.id in sent.job_ids


async def test_messages_that_wait_at_the_worker_are_not_lost(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    """However many there are, those of other jobs are found."""
    *waiting_here, lost = await waiting(store, database, owner, *[3] * (SLOTS + 1))
    redelivery._runner.waiting |= {job.id for job in waiting_here}
    assert await redelivery.resend_lost() == 1
    assert sent.job_ids == [lost.id]


async def test_an_empty_list_in_a_queue_with_messages(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner, broker: str, redis: Redis
) -> None:
    """A batch job's message is lost while urgent messages wait and the worker has no free slots."""
    interactive, batch = await waiting(store, database, owner, 3, 9)
    await message(broker, redis, interactive)
    assert await depths(redis, "m") == {0: 0, 3: 1, 6: 0, 9: 0}
    fill(redelivery._runner.slot_pool)
    assert await redelivery.resend_lost() == 1
    assert (sent.job_ids, sent.priorities) == ([batch.id], [9])
    assert await redelivery.resend_lost() == 0, "it was sent just before"


async def test_a_job_older_than_a_claimed_one(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner, broker: str, redis: Redis
) -> None:
    """The worker is full and the queue is never empty: the message goes to its front."""
    lost, queued = await waiting(store, database, owner, 3, 3)
    await message(broker, redis, queued)
    fill(redelivery._runner.slot_pool)
    redelivery._runner.last_claimed[3] = LastClaim(younger(lost), time.monotonic())
    await redelivery.resend_lost()
    assert lost.id in sent.job_ids
    assert set(sent.priorities) == {0}


@pytest.mark.parametrize("how", ["requeued", "deferred", "released"])
async def test_a_message_on_the_queue_of_a_worker_that_fetches_none_is_not_lost(
    redelivery: Redelivery,
    sent: Sent,
    store: JobStore,
    workers: Workers,
    database: AsyncEngine,
    owner: Owner,
    broker: str,
    redis: Redis,
    how: str,
) -> None:
    """An upstream's limit or breaker holds it back: a younger job was claimed, but before this one was queued again."""
    (job,) = await waiting(store, database, owner, 3)
    claims = workers("w")
    assert how == "released" or await claims.claim(job.id)
    if how == "deferred":
        await claims.defer(job.id, 1, 0)
    elif how == "requeued":
        await claims.requeue(job.id, 1, tokens=0, outcome=AttemptOutcome.HANDED_BACK)
    async with database.begin() as connection:
        await connection.execute(
            text(
                "UPDATE jobs SET dispatched_at = now() - interval '60 s',"
                " not_before = not_before - interval '60 s', attempts = CASE WHEN attempts = '[]'"
                " THEN attempts ELSE jsonb_set(attempts, '{0,ended_at}', to_jsonb(now() - interval '60 s')) END"
            )
        )
    await message(broker, redis, job)
    for arrived_s_ago, resent in ((3600, 0), (55, 0), (0, 1)):
        redelivery._runner.last_claimed[3] = LastClaim(younger(job), time.monotonic() - arrived_s_ago)
        assert await redelivery.resend_lost() == resent
    assert sent.job_ids == [job.id]


async def test_a_worker_that_the_upstream_holds_back_resends_nothing(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    """The queue may be empty because workers hold messages."""
    (job,) = await waiting(store, database, owner, 3)
    options = {"base_url": "http://127.0.0.1:1", "requests_per_minute": 0.5}
    spec = OpenAIModel.model_validate({"name": "m", "engine": "openai", "model": "theirs", "options": options})
    gate = UpstreamGate(spec, worker_metrics("m"))
    redelivery._runner.context.engine.gate = gate  # type: ignore[misc]
    assert await redelivery.resend_lost() == 0, "another worker may hold it for two minutes"
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET created_at = now() - interval '3 minutes'"))
    for priority in (3, 3):
        held = asyncio.create_task(gate.enter(priority))
        await asyncio.sleep(0)
    assert gate.holding
    assert await redelivery.resend_lost() == 0
    gate.stop()
    assert await held is None
    assert await redelivery.resend_lost() == 1
    assert sent.job_ids == [job.id]


async def test_messages_of_jobs_without_a_free_slot_are_not_resent(
    redelivery: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    """Batch jobs fill the worker, which still accepts urgent jobs."""
    urgent, _ = await waiting(store, database, owner, 3, 9)
    for _ in range(SLOTS):
        redelivery._runner.slot_pool.acquire(batch=True)
    await redelivery.resend_lost()
    assert sent.job_ids == [urgent.id]


async def test_a_paused_worker_resends_nothing(
    redelivery: Redelivery, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    await waiting(store, database, owner, 3)
    redelivery._runner.pause()
    assert await redelivery.resend_lost() == 0
