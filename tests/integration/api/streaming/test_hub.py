"""Following jobs and waiting for their end, also if the log and the row differ."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, update
from sqlalchemy.ext.asyncio import AsyncEngine

from api.streaming.hub import BATCH, StreamHub
from api.streaming.reader import BUFFER_BYTES, EventReader
from shared.domain.events import Delta, Event, EventType, delta_event, event
from shared.domain.job import Attempt, Choice, Job, JobStatus, Usage
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import JobResult
from shared.postgres.job_store import JobStore
from shared.postgres.tables import JobRow
from shared.redis import keys as redis_keys
from shared.redis.event_log import PAGE_BYTES, Append, EventLog
from shared.runtime.aio import cancel_and_wait
from tests.conftest import Workers
from tests.support.metrics import api_metrics
from tests.support.transcripts import output_of
from tests.support.waiting import eventually

WITHIN_S = 20
STARTED = event(1, EventType.STARTED, {"attempt": 1})
TEXT = delta_event(2, Delta(0, "ok", (7,)))
LAST = event(3, EventType.COMPLETED, {"usage": {}})


@pytest.fixture
async def hub(redis: Redis, logs: EventLog, store: JobStore) -> AsyncIterator[StreamHub]:
    hub = StreamHub(redis, logs, store, api_metrics(), resync_s=0.2)
    running = asyncio.create_task(hub.run())
    yield hub
    await cancel_and_wait(running)


@pytest.fixture
async def running(store: JobStore, workers: Workers, logs: EventLog, owner: Owner) -> Job:
    """A running job with some output."""
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("w").claim(job.id)
    await logs.append([Append(job.id, 1, [STARTED, TEXT])])
    return job


async def finish(workers: Workers, job: Job) -> None:
    """End the job in its row only, as if the worker died before it appended the last event."""
    now = datetime.now(UTC)
    ending = JobResult(
        status=JobStatus.COMPLETED,
        finished_at=now,
        output=output_of(Choice(0, "ok", "stop")),
        usage=Usage(1, 0, 1),
        error=None,
        first_token_at=now,
        attempts=(Attempt(1, "w", now, now, 1, "completed"),),
        log=b"\n".join(item.line() for item in (STARTED, TEXT, LAST)),
    )
    assert await workers("w").finish(job.id, 1, ending)


async def test_an_end_that_only_the_row_has_is_found(hub: StreamHub, workers: Workers, running: Job) -> None:
    await finish(workers, running)
    await asyncio.wait_for(hub.wait_for_end(running.id), WITHIN_S)
    followed = [item async for batch in hub.follow(running.id) for item in batch]
    assert [item.line() for item in followed] == [item.line() for item in (STARTED, TEXT, LAST)]


async def test_readers_that_are_already_waiting_find_it_too(hub: StreamHub, workers: Workers, running: Job) -> None:
    waiting = asyncio.create_task(hub.wait_for_end(running.id))
    batches = hub.follow(running.id)
    assert [item.seq for item in await anext(batches)] == [1, 2]
    await finish(workers, running)
    await asyncio.wait_for(waiting, WITHIN_S)
    assert [item.seq for item in await asyncio.wait_for(anext(batches), WITHIN_S)] == [3]


async def test_a_published_end_wakes_waiting_readers(
    redis: Redis, logs: EventLog, store: JobStore, workers: Workers, running: Job
) -> None:
    """The resync interval is too long to find it."""
    hub = StreamHub(redis, logs, store, api_metrics(), resync_s=3600)
    receiving = asyncio.create_task(hub.run())
    waiting = asyncio.create_task(hub.wait_for_end(running.id))
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    await finish(workers, running)
    await logs.append([Append(running.id, 1, [LAST])])
    await asyncio.wait_for(waiting, WITHIN_S)
    await cancel_and_wait(receiving)


async def test_events_for_workers_are_not_delivered(hub: StreamHub, logs: EventLog, running: Job) -> None:
    """Neither stored nor live; the numbers around them are consecutive, so that no reader misses an event."""
    upstream, text = event(3, EventType.UPSTREAM, {"id": "resp_1", "data": {}}), delta_event(4, Delta(0, "!", cursor=5))
    await logs.append([Append(running.id, 1, [upstream, text])])
    batches = hub.follow(running.id)
    assert [item.seq for item in await anext(batches)] == [1, 2, 4]
    late = hub.follow(running.id, 3)
    assert [item.seq for item in await anext(late)] == [4]
    live = asyncio.ensure_future(anext(late))
    last = event(7, EventType.COMPLETED, {"usage": {}})
    for seq in (5, 6):
        await logs.append([Append(running.id, 1, [event(seq, EventType.UPSTREAM, {"id": f"resp_{seq}", "data": {}})])])
    await logs.append([Append(running.id, 1, [last])])
    assert [item.line() for item in await asyncio.wait_for(live, WITHIN_S)] == [last.line()]
    assert [item.seq async for batch in batches for item in batch] == [7]
    assert await logs.shown(running.id)


async def test_a_reader_of_a_queued_job_is_recorded(
    hub: StreamHub, redis: Redis, logs: EventLog, store: JobStore, running: Job
) -> None:
    queued, _ = await store.insert(NewJob(running.owner, "m", 3, GenerateRequest(prompt="x")))
    reader = asyncio.ensure_future(anext(hub.follow(queued.id)))
    await eventually(lambda: logs.shown(queued.id), "the reader is recorded")
    await cancel_and_wait(reader)
    waiting = asyncio.create_task(hub.wait_for_end(running.id))
    await eventually(lambda: is_followed(redis, running), "the end is awaited")
    assert not await logs.shown(running.id)
    await cancel_and_wait(waiting)


async def test_the_row_of_a_new_job_is_not_read(
    redis: Redis, hub: StreamHub, logs: EventLog, store: JobStore, running: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[str] = []

    async def archive_page(job_id: str, **_: object) -> None:
        reads.append(job_id)

    job, _ = await store.insert(NewJob(running.owner, "m", 3, GenerateRequest(prompt="x")))
    monkeypatch.setattr(store, "archive_page", archive_page)
    batches = hub.follow(job.id, new=True)
    first = asyncio.ensure_future(anext(batches))
    await eventually(lambda: is_followed(redis, job), "the reader follows the job")
    await logs.append([Append(job.id, 1, [STARTED, TEXT])])
    assert [item.seq for item in await asyncio.wait_for(first, WITHIN_S)] == [1, 2]
    assert not reads
    await logs.append([Append(job.id, 1, [LAST])])
    assert [item.seq async for batch in batches for item in batch] == [3]


async def test_the_last_event_removes_all_subscribers(
    redis: Redis, hub: StreamHub, logs: EventLog, running: Job
) -> None:
    readers = [asyncio.create_task(read(hub, running)) for _ in range(2)]
    waiting = asyncio.create_task(hub.wait_for_end(running.id))
    await eventually(lambda: is_followed(redis, running), "the readers follow the job")
    await logs.append([Append(running.id, 1, [LAST])])
    assert [await asyncio.wait_for(reader, WITHIN_S) for reader in readers] == [[1, 2, 3], [1, 2, 3]]
    await asyncio.wait_for(waiting, WITHIN_S)
    assert not await redis.exists(redis_keys.followers(running.id))
    assert await read(hub, running) == [1, 2, 3]
    assert not await redis.exists(redis_keys.followers(running.id)), "a late reader unsubscribes"


async def test_the_last_of_the_readers_unsubscribes_one_that_came_after_the_end(
    redis: Redis, hub: StreamHub, logs: EventLog, running: Job
) -> None:
    slow = hub.follow(running.id)
    assert [item.seq for item in await anext(slow)] == [1, 2]
    await logs.append([Append(running.id, 1, [LAST])])
    assert [item.seq for item in await anext(slow)] == [3]
    assert await read(hub, running) == [1, 2, 3]
    assert await is_followed(redis, running)
    assert [batch async for batch in slow] == []
    assert not await is_followed(redis, running)


LONG = [STARTED, *(delta_event(seq, Delta(0, f"é{seq}" * (1 + seq % 50), (seq,))) for seq in range(2, 3000))]
LONG_LAST = event(3000, EventType.COMPLETED, {"usage": {}})


async def archive(database: AsyncEngine, job: Job, events: Sequence[Event]) -> None:
    """End the job in its row only."""
    values = {"log": "\n".join(item.line().decode() for item in events), "status": "completed"}
    async with database.connect() as connection:
        await connection.execute(
            update(JobRow).where(JobRow.id == job.id).values(finished_at=func.now(), worker=None, **values)
        )


@pytest.mark.parametrize("after", [0, 1, 2, 1500, 2998, 2999])
@pytest.mark.parametrize("store_of_the_log", ["redis", "row"])
async def test_a_long_log_is_read_in_pages(
    hub: StreamHub, logs: EventLog, running: Job, database: AsyncEngine, after: int, store_of_the_log: str
) -> None:
    if store_of_the_log == "redis":
        await logs.append([Append(running.id, 1, [*LONG, LONG_LAST], force=True)])
    else:
        await logs.delete(running.id)
        await archive(database, running, [*LONG, LONG_LAST])
    batches = [batch async for batch in hub.follow(running.id, after)]
    assert [item.line() for batch in batches for item in batch] == [item.line() for item in [*LONG, LONG_LAST][after:]]
    assert max(len(batch) for batch in batches) <= BATCH
    assert max(sum(len(item.data) for item in batch) for batch in batches) <= 2 * PAGE_BYTES


async def test_live_events_follow_the_pages_of_the_log(hub: StreamHub, logs: EventLog, running: Job) -> None:
    await logs.append([Append(running.id, 1, LONG[:1000], force=True)])
    batches = hub.follow(running.id)
    received = [item.seq for item in await anext(batches)]
    assert len(received) < 1000
    for start in range(1000, len(LONG), 100):
        await logs.append([Append(running.id, 1, LONG[start : start + 100])])
        received += [item.seq for item in await anext(batches)]
    await logs.append([Append(running.id, 1, [LONG_LAST])])
    received += [item.seq async for batch in batches for item in batch]
    assert received == list(range(1, 3001))


async def test_an_event_that_is_longer_than_a_page_is_delivered(
    hub: StreamHub, logs: EventLog, running: Job, database: AsyncEngine
) -> None:
    events = [STARTED, delta_event(2, Delta(0, "x" * 2_000_000)), LONG_LAST]
    await logs.delete(running.id)
    await archive(database, running, events)
    assert [item.line() async for batch in hub.follow(running.id) for item in batch] == [item.line() for item in events]


async def test_a_cursor_that_redis_lost_is_followed_by_the_events_after_it(
    hub: StreamHub, logs: EventLog, running: Job, database: AsyncEngine
) -> None:
    await logs.delete(running.id)
    later = [event(1_000_001, EventType.RESTARTED, {"attempt": 1}), event(1_000_002, EventType.FAILED, {})]
    await archive(database, running, later)
    assert [item.seq async for batch in hub.follow(running.id, 7) for item in batch] == [1_000_001, 1_000_002]


async def test_the_last_number_of_an_archived_log(hub: StreamHub, running: Job, database: AsyncEngine) -> None:
    assert await hub.last_seq(running.id) == 2
    await archive(database, running, [*LONG, LONG_LAST])
    assert await hub.last_seq(running.id) == 3000
    async with database.connect() as connection:
        await connection.execute(update(JobRow).where(JobRow.id == running.id).values(log=None))
    assert await hub.last_seq(running.id) == 0


def test_a_reader_that_does_not_read_buffers_a_bounded_number_of_bytes() -> None:
    reader = EventReader(0, api_metrics())
    reader.behind = False
    large = [delta_event(seq, Delta(0, "x" * 10_000)) for seq in range(1, 100)]
    for item in large:
        reader.offer("job_1", [item])
        assert sum(len(buffered.data) for buffered in reader.live) <= BUFFER_BYTES
    assert reader.behind


async def read(hub: StreamHub, job: Job) -> list[int]:
    return [item.seq async for batch in hub.follow(job.id) for item in batch]


async def is_followed(redis: Redis, job: Job) -> bool:
    return bool(await redis.exists(redis_keys.followers(job.id)))
