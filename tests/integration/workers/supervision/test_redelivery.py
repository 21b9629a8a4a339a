"""Jobs whose message was lost are found, whatever else waits; those that have one are left alone."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from shared.domain.job import Job
from shared.domain.owner import Owner
from shared.domain.priorities import Hint
from shared.domain.request import GenerateRequest
from shared.postgres.job_store import JobStore, NewJob
from shared.postgres.recovery_store import RecoveryStore
from shared.redis.job_queue import HintSender, celery_app, depths
from tests.conftest import TEST_REDIS_DB, Servers, Workers
from tests.support.steered_engine import SteeredEngine
from workers.execution.attempt import AttemptContext
from workers.execution.runner import Runner
from workers.execution.slots import SlotPool
from workers.supervision.redelivery import Redelivery

pytestmark = pytest.mark.usefixtures("redis")
SLOTS = 4


class Sent(HintSender):
    """Hints that are kept, not sent."""

    @property
    def job_ids(self) -> list[str]:
        return [hint.job_id for hint in self._waiting]

    @property
    def priorities(self) -> list[int]:
        return [hint.priority for hint in self._waiting]


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
        logs=None,  # type: ignore[arg-type]  # nothing runs here
        log_writer=None,  # type: ignore[arg-type]
        log_ttl_s=1,
        max_attempts=3,
        send=lambda _: None,
        on_engine_death=lambda: None,
    )
    return Runner(context, SlotPool(SLOTS, yields=True))


@pytest.fixture
def healer(runner: Runner, recovery_store: RecoveryStore, redis: Redis, sent: Sent) -> Redelivery:
    return Redelivery(runner, recovery_store, redis, sent, "m")


async def waiting(store: JobStore, database: AsyncEngine, owner: Owner, *priorities: int) -> list[Job]:
    """Jobs that have waited for a minute."""
    jobs = [
        (await store.insert(NewJob(owner, "m", priority, GenerateRequest(prompt="x"))))[0] for priority in priorities
    ]
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET created_at = now() - interval '1 minute'"))
    return jobs


def fill(slot_pool: SlotPool) -> None:
    """Every slot has an urgent job."""
    while slot_pool.urgent_room:
        slot_pool.take(batch=False)


async def message(broker: str, redis: Redis, job: Job) -> None:
    sender = HintSender(celery_app(broker), redis)
    sender.put(Hint(job.id, job.model, job.priority))
    await sender.flush()


async def test_an_empty_queue_while_rows_wait(
    healer: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    jobs = await waiting(store, database, owner, 3, 0)
    assert await healer.heal() == 2
    assert sent.job_ids == [jobs[1].id, jobs[0].id]


async def test_a_withheld_job_has_no_lost_message(
    healer: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    """A job that a dispatcher has not released is no job whose message was lost, however old it is."""
    withheld, lost, served = await waiting(store, database, owner, 3, 3, 3)
    async with database.begin() as connection:
        await connection.execute(text("UPDATE jobs SET dispatched_at = NULL WHERE id = :id"), {"id": withheld.id})
    healer._runner.last_claimed[3] = served.id
    await healer.heal()
    assert withheld.id not in sent.job_ids
    assert lost.id in sent.job_ids


async def test_an_empty_list_of_a_queue_that_is_not(
    healer: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner, broker: str, redis: Redis
) -> None:
    """The batch job's message is lost while interactive ones wait, and the worker has no room."""
    interactive, batch = await waiting(store, database, owner, 3, 9)
    await message(broker, redis, interactive)
    assert await depths(redis, "m") == {0: 0, 3: 1, 6: 0, 9: 0}
    fill(healer._runner.slot_pool)
    assert await healer.heal() == 1
    assert (sent.job_ids, sent.priorities) == ([batch.id], [9])
    assert await healer.heal() == 0, "it has just been sent"


async def test_one_that_is_older_than_what_is_served(
    healer: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner, broker: str, redis: Redis
) -> None:
    """A full worker and a queue that never runs dry: it goes first."""
    lost, queued = await waiting(store, database, owner, 3, 3)
    await message(broker, redis, queued)
    fill(healer._runner.slot_pool)
    later = f"job_{int(lost.id[4:16], 16) + 60_000:012x}{lost.id[16:]}"
    healer._runner.last_claimed[3] = later
    await healer.heal()
    assert lost.id in sent.job_ids
    assert set(sent.priorities) == {0}


async def test_rows_that_there_is_no_room_for_are_left(
    healer: Redelivery, sent: Sent, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    """Batch jobs fill the worker, which takes urgent jobs all the same."""
    urgent, _ = await waiting(store, database, owner, 3, 9)
    for _ in range(SLOTS):
        healer._runner.slot_pool.take(batch=True)
    await healer.heal()
    assert sent.job_ids == [urgent.id]


async def test_a_worker_that_takes_nothing_sends_nothing(
    healer: Redelivery, store: JobStore, database: AsyncEngine, owner: Owner
) -> None:
    await waiting(store, database, owner, 3)
    healer._runner.pause()
    assert await healer.heal() == 0
