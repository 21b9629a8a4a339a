"""A job's log: appends are fenced, idempotent and refilled; followers get the same events live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from shared.domain.events import Delta, Event, EventType, delta_event, event, parse_line
from shared.domain.job import JobStatus
from shared.domain.transcript import Transcript
from shared.postgres.claim_store import Claim
from shared.redis import keys as redis_keys
from shared.redis.event_log import FENCED, Append, EventLog, Fenced
from tests.support.waiting import eventually
from workers.execution.log_writer import LogBuffer, LogWriter

JOB = "job_1"


def deltas(*texts: str, first: int = 1) -> list[Event]:
    return [delta_event(first + i, Delta(0, text, (i,))) for i, text in enumerate(texts)]


async def test_what_is_appended_is_read(logs: EventLog) -> None:
    events = [*deltas("a", "🌊"), event(3, EventType.COMPLETED, {"usage": {}})]
    assert await logs.append([Append(JOB, 1, events)]) == [3]
    assert await logs.read(JOB) == events
    assert await logs.read(JOB, after=2) == events[2:]
    assert await logs.last_seq(JOB) == 3


async def test_a_repeated_append_changes_nothing(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, deltas("a", "b"))])
    assert await logs.append([Append(JOB, 1, deltas("a", "b", "c"))]) == [3]
    assert [item.delta().text for item in await logs.read(JOB)] == ["a", "b", "c"]


async def test_an_overtaken_attempt_is_fenced(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, deltas("a"))])
    assert [item.delta().text for item in await logs.take_over(JOB, 2)] == ["a"]
    assert await logs.append([Append(JOB, 1, deltas("zombie", first=2))]) == [FENCED]
    assert await logs.append([Append(JOB, 2, deltas("b", first=2))]) == [2]
    assert [item.delta().text for item in await logs.read(JOB)] == ["a", "b"]
    with pytest.raises(Fenced):
        await logs.take_over(JOB, 1)


async def test_a_gap_is_reported_and_nothing_written(logs: EventLog) -> None:
    assert await logs.append([Append(JOB, 1, deltas("b", first=5))]) == [0]
    assert await logs.read(JOB) == []


async def test_many_jobs_in_one_round_trip(logs: EventLog) -> None:
    appends = [Append(f"job_{i}", 1, deltas(*"xy"[: i + 1])) for i in range(2)]
    assert await logs.append(appends) == [1, 2]


async def test_followers_get_one_message_for_many_jobs(logs: EventLog, redis: Redis) -> None:
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(redis_keys.api_channel("api1"))
        await pubsub.get_message(timeout=1)
        await logs.follow("job_a", "api1", 0)
        await logs.follow("job_b", "api1", 0)
        await logs.append([Append(job, 1, deltas("x", "y")) for job in ("job_a", "job_b", "job_unread")])

        async def message() -> bytes | None:
            found = await pubsub.get_message(timeout=1)
            return found["data"] if found else None

        lines = (await eventually(message, "a live message")).split(b"\n")
        assert [line.split(b" ", 1)[0] for line in lines] == [b"job_a", b"job_a", b"job_b", b"job_b"]
        assert [parse_line(line.split(b" ", 1)[1]).seq for line in lines] == [1, 2, 1, 2]
        await logs.unfollow("job_a", "api1")
        await logs.append([Append("job_a", 1, deltas("z", first=3))])
        assert await pubsub.get_message(timeout=0.2) is None


async def test_the_log_keeps_token_ids_that_readers_never_see(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, [delta_event(1, Delta(0, "a", (7, 8)))])])
    (item,) = await logs.read(JOB)
    assert item.delta().token_ids == (7, 8)
    assert b"7" not in item.line().split(b" ", 2)[2]


class TestJobLog:
    def test_text_of_one_flush_is_one_event(self) -> None:
        log = LogBuffer(JOB, 1)
        for text in ("a", "b"):
            log.delta(Delta(0, text, (1,)))
        log.delta(Delta(1, "z", (2,)))
        log.seal()
        assert [item.delta() for item in log.events] == [Delta(0, "ab", (1, 1)), Delta(1, "z", (2,))]

    def test_half_a_character_waits_for_the_rest(self) -> None:
        log = LogBuffer(JOB, 1)
        log.delta(Delta(0, "", (1,)))
        log.seal()
        assert log.events == []
        log.delta(Delta(0, "🌊", (2,)))
        log.seal()
        assert [item.delta() for item in log.events] == [Delta(0, "🌊", (1, 2))]

    def test_unwritten_are_those_after_the_confirmed(self) -> None:
        log = LogBuffer(JOB, 2)
        log.adopt([], 1_000_000)
        log.event(EventType.RESTARTED, {})
        log.event(EventType.STARTED, {})
        assert [item.seq for item in log.unwritten] == [1_000_001, 1_000_002]
        log.written = 1_000_001
        assert [item.seq for item in log.unwritten] == [1_000_002]


class TestFlusher:
    """`held` is what the rows say that this worker owns."""

    @pytest.fixture
    def held(self) -> list[Claim]:
        return [Claim(JOB, 1, JobStatus.IN_PROGRESS)]

    @pytest.fixture
    async def log_writer(self, logs: EventLog, held: list[Claim]) -> AsyncIterator[LogWriter]:
        async def ask() -> list[Claim]:
            return held

        log_writer = LogWriter(logs, ask, late_s=60)
        task = asyncio.create_task(log_writer.run())
        yield log_writer
        task.cancel()

    async def write(self, log_writer: LogWriter, log: LogBuffer, text: str) -> None:
        log.delta(Delta(0, text, (1,)))
        log_writer.touch(log)
        await log_writer.drain(5)

    async def text(self, logs: EventLog) -> str:
        return Transcript.of(await logs.read(JOB), 1).choices()[0].text

    async def test_what_somebody_waits_for_goes_before_the_rest(
        self, log_writer: LogWriter, logs: EventLog, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("INTERVAL_PER_LOG_S", "MAX_INTERVAL_S"):
            monkeypatch.setattr(f"workers.engines.pacing.{name}", 60)
        log, other = LogBuffer(JOB, 1), LogBuffer("job_2", 1)
        await self.write(log_writer, log, "a")
        log.delta(Delta(0, "b", (1,)))
        other.event(EventType.STARTED, {"attempt": 1, "worker": "w"})
        for each in (log, other):
            log_writer.touch(each)
        await eventually(lambda: logs.read("job_2"), "the start is written")
        assert await self.text(logs) == "a", "its next text waits for the next time"
        log.seal()
        log.close(event(log.seq + 1, EventType.COMPLETED, {"usage": {}}), 60)
        log_writer.touch(log)
        await log_writer.drain(5)
        assert [item.type for item in await logs.read(JOB)] == [EventType.DELTA, EventType.DELTA, EventType.COMPLETED]

    async def test_a_lost_log_is_written_again(self, log_writer: LogWriter, logs: EventLog, redis: Redis) -> None:
        log = LogBuffer(JOB, 1)
        for text in "abc":
            await self.write(log_writer, log, text)
            if text == "b":
                await redis.flushdb()
        assert await self.text(logs) == "abc"
        assert not log.fenced

    async def test_a_fenced_log_is_left_alone(self, log_writer: LogWriter, logs: EventLog) -> None:
        log = LogBuffer(JOB, 1)
        await self.write(log_writer, log, "a")
        await logs.take_over(JOB, 2)
        await self.write(log_writer, log, "zombie")
        assert log.fenced
        assert await self.text(logs) == "a"

    async def test_a_lost_log_is_not_written_again_by_a_zombie(
        self, log_writer: LogWriter, logs: EventLog, redis: Redis, held: list[Claim]
    ) -> None:
        """Its fence was lost too; the row is what is left to say no."""
        log = LogBuffer(JOB, 1)
        await self.write(log_writer, log, "a")
        await redis.flushdb()
        held.clear()
        await self.write(log_writer, log, "zombie")
        assert log.fenced
        assert await logs.read(JOB) == []

    async def test_a_zombie_that_never_wrote_asks_the_row_too(
        self, log_writer: LogWriter, logs: EventLog, held: list[Claim]
    ) -> None:
        held.clear()
        log = LogBuffer(JOB, 1)
        log.opened -= 61
        await self.write(log_writer, log, "zombie")
        assert log.fenced
        assert await logs.read(JOB) == []

    async def test_a_log_that_begins_late_is_written(self, log_writer: LogWriter, logs: EventLog) -> None:
        log = LogBuffer(JOB, 1)
        log.opened -= 61
        await self.write(log_writer, log, "a")
        assert await self.text(logs) == "a"

    async def test_a_restarted_attempt_numbers_beyond_the_lost_log(
        self, log_writer: LogWriter, logs: EventLog, held: list[Claim]
    ) -> None:
        held[:] = [Claim(JOB, 2, JobStatus.IN_PROGRESS)]
        await logs.take_over(JOB, 2)
        log = LogBuffer(JOB, 2)
        log.adopt([], 1_000_000)
        log.event(EventType.RESTARTED, {"attempt": 2})
        log_writer.touch(log)
        await log_writer.drain(5)
        assert [(item.seq, item.type) for item in await logs.read(JOB)] == [(1_000_001, EventType.RESTARTED)]
