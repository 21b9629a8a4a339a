"""The log writer on a real Redis: urgency, lost logs and fenced attempts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.asyncio import Redis

from shared.domain.events import Delta, EventType, event
from shared.domain.job import JobStatus
from shared.postgres.claim_store import Claim
from shared.redis.event_log import CHUNK_BYTES, CHUNK_EVENTS, Append, EventLog
from shared.runtime.aio import cancel_and_wait
from tests.support.metrics import worker_metrics
from tests.support.transcripts import transcript_of
from tests.support.waiting import eventually
from workers.execution.log_writer import LogBuffer, LogWriter

JOB = "job_1"


@pytest.fixture
def claims() -> list[Claim]:
    """The worker's claims, as the rows have them."""
    return [Claim(JOB, 1, JobStatus.IN_PROGRESS)]


@pytest.fixture
async def log_writer(logs: EventLog, claims: list[Claim]) -> AsyncIterator[LogWriter]:
    async def read_claims() -> list[Claim]:
        return claims

    log_writer = LogWriter(logs, read_claims, late_s=60)
    task = asyncio.create_task(log_writer.run())
    yield log_writer
    await cancel_and_wait(task)


async def write(log_writer: LogWriter, log: LogBuffer, text: str) -> None:
    log.delta(Delta(0, text, (1,)))
    log_writer.schedule(log)
    await log_writer.drain(5)


async def written_text(logs: EventLog) -> str:
    return transcript_of(await logs.read(JOB)).choices()[0].text


async def test_urgent_events_are_written_before_others(
    log_writer: LogWriter, logs: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("INTERVAL_PER_LOG_S", "MAX_INTERVAL_S"):
        monkeypatch.setattr(f"workers.engines.flush_interval.{name}", 60)
    log, other = LogBuffer(JOB, 1, worker_metrics()), LogBuffer("job_2", 1, worker_metrics())
    await write(log_writer, log, "a")
    log.delta(Delta(0, "b", (1,)))
    other.event(EventType.STARTED, {"attempt": 1, "worker": "w"})
    for each in (log, other):
        log_writer.schedule(each)
    await eventually(lambda: logs.read("job_2"), "the start is written")
    assert await written_text(logs) == "a", "text that is not urgent waits for the next flush"
    log.seal()
    log.close(event(log.seq + 1, EventType.COMPLETED, {"usage": {}}), 60)
    log_writer.schedule(log)
    await log_writer.drain(5)
    assert [item.type for item in await logs.read(JOB)] == [EventType.DELTA, EventType.DELTA, EventType.COMPLETED]


async def test_text_is_written_when_its_timer_ends_a_little_early(
    log_writer: LogWriter, logs: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop rounds timers to milliseconds. Waiting for the rest would be another, shorter timer, and yet another."""
    waits: list[float] = []

    async def early(_: asyncio.Event, within_s: float) -> bool:
        waits.append(within_s)
        await asyncio.sleep(0)
        return False

    for name in ("INTERVAL_PER_LOG_S", "MAX_INTERVAL_S"):
        monkeypatch.setattr(f"workers.engines.flush_interval.{name}", 60)
    log = LogBuffer(JOB, 1, worker_metrics())
    await write(log_writer, log, "a")
    monkeypatch.setattr("workers.execution.log_writer.wait_for_event", early)
    log.delta(Delta(0, "b", (1,)))
    log_writer.schedule(log)
    await eventually(lambda: logs.read(JOB, after=1), "the text is written")
    assert len(waits) == 1


async def test_a_lost_log_is_written_again(log_writer: LogWriter, logs: EventLog, redis: Redis) -> None:
    log = LogBuffer(JOB, 1, worker_metrics())
    for text in "abc":
        await write(log_writer, log, text)
        if text == "b":
            await redis.flushdb()
    assert await written_text(logs) == "abc"
    assert not log.fenced


async def test_a_fenced_log_is_not_written(log_writer: LogWriter, logs: EventLog) -> None:
    log = LogBuffer(JOB, 1, worker_metrics())
    await write(log_writer, log, "a")
    await logs.take_over(JOB, 2)
    await write(log_writer, log, "zombie")
    assert log.fenced
    assert await written_text(logs) == "a"


async def test_a_lost_log_is_not_written_again_by_a_zombie(
    log_writer: LogWriter, logs: EventLog, redis: Redis, claims: list[Claim]
) -> None:
    """The fence was lost with the log; the row shows that the claim is gone."""
    log = LogBuffer(JOB, 1, worker_metrics())
    await write(log_writer, log, "a")
    await redis.flushdb()
    claims.clear()
    await write(log_writer, log, "zombie")
    assert log.fenced
    assert await logs.read(JOB) == []


async def test_a_late_first_write_needs_a_claim(log_writer: LogWriter, logs: EventLog, claims: list[Claim]) -> None:
    claims.clear()
    log = LogBuffer(JOB, 1, worker_metrics())
    log.opened -= 61
    await write(log_writer, log, "zombie")
    assert log.fenced
    assert await logs.read(JOB) == []


async def test_a_late_first_write_with_a_claim_is_written(log_writer: LogWriter, logs: EventLog) -> None:
    log = LogBuffer(JOB, 1, worker_metrics())
    log.opened -= 61
    await write(log_writer, log, "a")
    assert await written_text(logs) == "a"


async def test_a_restarted_attempt_continues_above_the_numbers_of_the_lost_log(
    log_writer: LogWriter, logs: EventLog, claims: list[Claim]
) -> None:
    claims[:] = [Claim(JOB, 2, JobStatus.IN_PROGRESS)]
    await logs.take_over(JOB, 2)
    log = LogBuffer(JOB, 2, worker_metrics())
    log.resume_after([], 1_000_000)
    log.event(EventType.RESTARTED, {"attempt": 2})
    log_writer.schedule(log)
    await log_writer.drain(5)
    assert [(item.seq, item.type) for item in await logs.read(JOB)] == [(1_000_001, EventType.RESTARTED)]


async def test_what_waits_after_an_outage_is_written_in_portions(
    logs: EventLog, claims: list[Claim], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is one step of Redis and of the event loop, and a command has a maximum number of arguments."""
    portions: list[list[int]] = []
    append = logs.append

    async def recorded(appends: Sequence[Append]) -> list[int]:
        portions.append([sum(len(one.data) for item in appends for one in item.events), *map(_count, appends)])
        return await append(appends)

    monkeypatch.setattr(logs, "append", recorded)
    buffers = [LogBuffer(f"job_{number}", 1, worker_metrics()) for number in range(5)]
    for buffer in buffers:
        for number in range(2500):
            buffer.event(EventType.STARTED, {"attempt": number})
    large = LogBuffer("job_large", 1, worker_metrics())
    for number in range(5):
        large.event(EventType.STARTED, {"attempt": number, "worker": "w" * (CHUNK_BYTES // 2)})
    log_writer = LogWriter(logs, lambda: asyncio.sleep(0, claims), late_s=60)
    for buffer in (*buffers, large):
        log_writer.schedule(buffer)
    task = asyncio.create_task(log_writer.run())
    await log_writer.drain(20)
    await cancel_and_wait(task)
    for buffer in (*buffers, large):
        assert [item.seq for item in await logs.read(buffer.job_id)] == [item.seq for item in buffer.events]
    for size, *counts in portions:
        assert sum(counts) < 2 * CHUNK_EVENTS
        assert size < 2 * CHUNK_BYTES


def _count(append: Append) -> int:
    return len(append.events)
