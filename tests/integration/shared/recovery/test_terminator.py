"""Jobs that end while nobody owns them: what earlier attempts made is kept, and readers learn it."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from shared.domain.events import Delta, EventType, delta_event, event, parse_archive
from shared.domain.job import AttemptOutcome, Job, JobStatus
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED
from shared.postgres.job_store import JobStore, NewJob
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import Append, EventLog
from tests.conftest import Workers


@pytest.fixture
def unowned(recovery_store: RecoveryStore, logs: EventLog) -> JobTerminator:
    return JobTerminator(recovery_store, logs, 60)


@pytest.fixture
async def handed_back(store: JobStore, workers: Workers, logs: EventLog, owner: Owner) -> Job:
    """A job that waits for its second attempt; the first one made some text."""
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("w").claim(job.id)
    events = [event(1, EventType.STARTED, {"attempt": 1}), delta_event(2, Delta(0, "so far", (7, 8)))]
    await logs.append([Append(job.id, 1, events)])
    await workers("w").requeue(job.id, 1, tokens=2, outcome=AttemptOutcome.HANDED_BACK)
    found = await store.get(job.id)
    assert found is not None
    return found


async def test_the_text_so_far_is_kept(
    unowned: JobTerminator, store: JobStore, logs: EventLog, handed_back: Job
) -> None:
    assert await unowned.end(handed_back, JobStatus.CANCELLED, CANCELLED)
    done = await store.get(handed_back.id)
    assert done is not None
    assert done.usage is not None
    assert (done.output[0].text, done.usage.completion_tokens) == ("so far", 2)
    assert [(item.seq, item.type) for item in await logs.read(handed_back.id)][-1] == (3, EventType.CANCELLED)
    assert not await unowned.end(handed_back, JobStatus.CANCELLED, CANCELLED), "it has moved on"


async def test_a_lost_log_ends_above_all_that_a_reader_may_have_seen(
    unowned: JobTerminator, store: JobStore, logs: EventLog, redis: Redis, handed_back: Job
) -> None:
    """A reader at any cursor of the lost log gets the end, and is told to discard what it has."""
    await redis.flushdb()
    assert await unowned.end(handed_back, JobStatus.CANCELLED, CANCELLED)
    done = await store.get(handed_back.id)
    archived = await store.archived_log(handed_back.id)
    assert done is not None
    assert archived is not None
    assert done.output[0].text == ""
    events = parse_archive(archived)
    assert [(item.seq, item.type) for item in events] == [
        (1_000_001, EventType.RESTARTED),
        (1_000_002, EventType.CANCELLED),
    ]
    assert await logs.read(handed_back.id) == events


async def test_a_worker_that_lives_after_all_keeps_its_log(
    unowned: JobTerminator, store: JobStore, workers: Workers, logs: EventLog, owner: Owner
) -> None:
    """Its lease was over when the job was read, and is renewed before the job is ended: nothing has changed."""
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("w").claim(job.id)
    await logs.append([Append(job.id, 1, [event(1, EventType.STARTED, {"attempt": 1})])])
    read = await store.get(job.id)
    assert read is not None
    await workers("w").heartbeat("m", slots=1, running=1, lease_s=60)
    assert not await unowned.end(read, JobStatus.FAILED, CANCELLED)
    assert await logs.append([Append(job.id, 1, [delta_event(2, Delta(0, "on", (7,)))])]) == [2], "it is not fenced"
    (held,) = await workers("w").list_claims()
    assert held.status is JobStatus.IN_PROGRESS


async def test_what_a_lost_attempt_made_is_counted(
    unowned: JobTerminator, store: JobStore, workers: Workers, logs: EventLog, owner: Owner
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("dead").claim(job.id)
    started = event(1, EventType.STARTED, {"attempt": 1})
    await logs.append([Append(job.id, 1, [started, delta_event(2, Delta(0, "so far", (7, 8)))])])
    read = await store.get(job.id)
    assert read is not None
    assert await unowned.end(read, JobStatus.FAILED, CANCELLED)
    done = await store.get(job.id)
    assert done is not None
    assert [(item.worker, item.tokens, item.outcome) for item in done.attempts] == [("dead", 2, "worker_lost")]
    assert done.attempts[0].ended_at is not None
