"""Jobs that end without an owner keep the output of earlier attempts, and readers receive the end."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from shared.domain.events import Delta, EventType, delta_event, event, parse_archive
from shared.domain.job import AttemptOutcome, Job, JobStatus
from shared.domain.new_job import NewJob
from shared.domain.owner import Owner
from shared.domain.request import GenerateRequest
from shared.domain.result import CANCELLED
from shared.postgres.job_store import JobStore
from shared.postgres.recovery_store import RecoveryStore
from shared.recovery.terminator import JobTerminator
from shared.redis.event_log import Append, EventLog
from tests.conftest import Workers
from tests.support.metrics import api_metrics


@pytest.fixture
def terminator(recovery_store: RecoveryStore, logs: EventLog) -> JobTerminator:
    return JobTerminator(recovery_store, logs, 60, api_metrics())


@pytest.fixture
async def requeued(store: JobStore, workers: Workers, logs: EventLog, owner: Owner) -> Job:
    """A job that waits for its second attempt, with text from the first."""
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("w").claim(job.id)
    events = [event(1, EventType.STARTED, {"attempt": 1}), delta_event(2, Delta(0, "so far", (7, 8)))]
    await logs.append([Append(job.id, 1, events)])
    await workers("w").requeue(job.id, 1, tokens=2, outcome=AttemptOutcome.HANDED_BACK)
    found = await store.get(job.id)
    assert found is not None
    return found


async def test_the_output_so_far_is_kept(
    terminator: JobTerminator, store: JobStore, logs: EventLog, requeued: Job
) -> None:
    assert await terminator.end(requeued, JobStatus.CANCELLED, CANCELLED)
    done = await store.get(requeued.id)
    assert done is not None
    assert done.usage is not None
    assert (done.output[0].text, done.usage.completion_tokens) == ("so far", 2)
    assert [(item.seq, item.type) for item in await logs.read(requeued.id)][-1] == (3, EventType.CANCELLED)
    assert not await terminator.end(requeued, JobStatus.CANCELLED, CANCELLED), "the job has ended"


async def test_the_end_of_a_lost_log_is_above_any_readers_cursor(
    terminator: JobTerminator, store: JobStore, logs: EventLog, redis: Redis, requeued: Job
) -> None:
    """A reader at any cursor of the lost log receives the end, after a restart that discards its text."""
    await redis.flushdb()
    assert await terminator.end(requeued, JobStatus.CANCELLED, CANCELLED)
    done = await store.get(requeued.id)
    archived = await store.archived_log(requeued.id)
    assert done is not None
    assert archived is not None
    assert done.output[0].text == ""
    events = parse_archive(archived)
    assert [(item.seq, item.type) for item in events] == [
        (1_000_001, EventType.RESTARTED),
        (1_000_002, EventType.CANCELLED),
    ]
    assert await logs.read(requeued.id) == events


async def test_a_worker_that_turns_out_to_be_alive_keeps_its_log(
    terminator: JobTerminator, store: JobStore, workers: Workers, logs: EventLog, owner: Owner
) -> None:
    """Its lease had expired when the job was read, and is renewed before the job is ended: nothing changes."""
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("w").claim(job.id)
    await logs.append([Append(job.id, 1, [event(1, EventType.STARTED, {"attempt": 1})])])
    read = await store.get(job.id)
    assert read is not None
    await workers("w").heartbeat("m", slots=1, running=1, lease_s=60)
    assert not await terminator.end(read, JobStatus.FAILED, CANCELLED)
    assert await logs.append([Append(job.id, 1, [delta_event(2, Delta(0, "on", (7,)))])]) == [2], "it is not fenced"
    (held,) = await workers("w").list_claims()
    assert held.status is JobStatus.IN_PROGRESS


async def test_the_tokens_of_a_lost_attempt_are_counted(
    terminator: JobTerminator, store: JobStore, workers: Workers, logs: EventLog, owner: Owner
) -> None:
    job, _ = await store.insert(NewJob(owner, "m", 3, GenerateRequest(prompt="x")))
    await workers("dead").claim(job.id)
    started = event(1, EventType.STARTED, {"attempt": 1})
    await logs.append([Append(job.id, 1, [started, delta_event(2, Delta(0, "so far", (7, 8)))])])
    read = await store.get(job.id)
    assert read is not None
    assert await terminator.end(read, JobStatus.FAILED, CANCELLED)
    done = await store.get(job.id)
    assert done is not None
    assert [(item.worker, item.tokens, item.outcome) for item in done.attempts] == [("dead", 2, "worker_lost")]
    assert done.attempts[0].ended_at is not None
