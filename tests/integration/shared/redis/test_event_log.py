"""A job's log: appends are fenced and idempotent, and followers receive the same events live."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from redis.asyncio import Redis

from shared.domain.events import Delta, Event, EventType, UpstreamState, archive, delta_event, event, parse_line
from shared.domain.transcript import Transcript
from shared.redis import event_log
from shared.redis import keys as redis_keys
from shared.redis.event_log import FENCED, RUNNING_TTL_S, Append, EventLog, Fenced
from shared.redis.log_flushes import FlushReader
from tests.support.waiting import eventually

JOB = "job_1"


def deltas(*texts: str, first: int = 1) -> list[Event]:
    return [delta_event(first + i, Delta(0, text, (i,))) for i, text in enumerate(texts)]


async def test_appended_events_are_read_back(logs: EventLog) -> None:
    events = [*deltas("a", "🌊"), event(3, EventType.COMPLETED, {"usage": {}})]
    assert await logs.append([Append(JOB, 1, events)]) == [3]
    assert await logs.read(JOB) == events
    assert await logs.read(JOB, after=2) == events[2:]
    assert await logs.last_seq(JOB) == 3


async def test_a_repeated_append_changes_nothing(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, deltas("a", "b"))])
    assert await logs.append([Append(JOB, 1, deltas("a", "b", "c"))]) == [3]
    assert [item.delta().text for item in await logs.read(JOB)] == ["a", "b", "c"]


async def test_the_times_of_flushes(logs: EventLog, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each append is one flush, in the attempt that wrote it; also if the log is read in pages."""
    monkeypatch.setattr(event_log, "PAGE_FLUSHES", 2)
    assert await logs.flushes(JOB) == []
    before = datetime.now(UTC)
    await logs.append([Append(JOB, 1, [event(1, EventType.STARTED, {"attempt": 1}), *deltas("a", "b", first=2)])])
    await logs.append([Append(JOB, 1, [delta_event(4, Delta(0, "c", unidentified=3))])])
    assert (await logs.take_over(JOB, 2)).first_token_at == (await logs.flushes(JOB))[0].at
    await logs.append([Append(JOB, 2, [event(5, EventType.RESTARTED, {"attempt": 2})])])
    await logs.append([Append(JOB, 2, [event(6, EventType.STARTED, {"attempt": 2}), *deltas("d", first=7)])])
    found = await logs.flushes(JOB)
    assert [(one.attempt, one.tokens, one.restarted) for one in found] == [
        (1, 2, False), (1, 3, False), (1, 0, True), (2, 1, False),
    ]  # fmt: skip
    assert (await logs.take_over(JOB, 3)).first_token_at == found[-1].at, "of the output since the last restart"
    times = [one.at for one in found]
    assert times == sorted(times)
    assert before - timedelta(seconds=1) <= times[0] <= times[-1] <= datetime.now(UTC) + timedelta(seconds=1)


async def test_flushes_are_read_on_from_where_an_earlier_read_ended(logs: EventLog, redis: Redis) -> None:
    found = FlushReader()
    await logs.append([Append(JOB, 1, deltas("a", "b"))])
    assert [one.tokens for one in await logs.flushes(JOB, found)] == [2]
    await redis.xtrim(redis_keys.log(JOB), maxlen=1)  # what has been read is not asked for again
    await logs.append([Append(JOB, 1, deltas("c", first=3))])
    for _ in range(2):
        assert [one.tokens for one in await logs.flushes(JOB, found)] == [2, 1]
    await logs.delete(JOB)
    await logs.append([Append(JOB, 1, deltas("d"))])
    assert [one.tokens for one in await logs.flushes(JOB, found)] == [1], "another log, which is shorter"


async def test_what_was_written_again_has_no_time(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, deltas("a", "b"), force=True)])
    await logs.append([Append(JOB, 1, deltas("c", first=3))])
    assert [one.tokens for one in await logs.flushes(JOB)] == [1]


async def test_an_earlier_attempt_is_fenced(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, deltas("a"))])
    assert [item.delta().text for item in (await logs.take_over(JOB, 2)).events] == ["a"]
    assert await logs.append([Append(JOB, 1, deltas("zombie", first=2))]) == [FENCED]
    assert await logs.append([Append(JOB, 2, deltas("b", first=2))]) == [2]
    assert [item.delta().text for item in await logs.read(JOB)] == ["a", "b"]
    with pytest.raises(Fenced):
        await logs.take_over(JOB, 1)


async def test_a_fence_of_a_wrong_type_hides_no_other_job(logs: EventLog, redis: Redis) -> None:
    await logs.append([Append(JOB, 1, deltas("a"))])
    await redis.set(redis_keys.fence("job_2"), "x")
    assert await logs.generated([("job_2", 1), (JOB, 1)]) == {JOB}


async def test_a_gap_is_reported_and_nothing_is_written(logs: EventLog) -> None:
    assert await logs.append([Append(JOB, 1, deltas("b", first=5))]) == [0]
    assert await logs.read(JOB) == []


async def test_many_logs_are_appended_to_in_one_round_trip(logs: EventLog) -> None:
    appends = [Append(f"job_{i}", 1, deltas(*"xy"[: i + 1])) for i in range(2)]
    assert await logs.append(appends) == [1, 2]


async def test_a_follower_receives_one_message_for_many_jobs(logs: EventLog, redis: Redis) -> None:
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


async def test_token_ids_are_stored_but_not_sent_to_readers(logs: EventLog) -> None:
    await logs.append([Append(JOB, 1, [delta_event(1, Delta(0, "a", (7, 8)))])])
    (item,) = await logs.read(JOB)
    assert item.delta().token_ids == (7, 8)
    assert b"7" not in item.line().split(b" ", 2)[2]


async def test_cursors_and_upstream_requests_are_stored_for_workers(logs: EventLog, redis: Redis) -> None:
    state = UpstreamState("resp_1", {"route": "a"})
    upstream = event(1, EventType.UPSTREAM, state.payload())
    delta = delta_event(2, Delta(0, "a", unidentified=1, cursor="7:1"))
    unnumbered = delta_event(3, Delta(0, "b", cursor=9))
    await logs.append([Append(JOB, 1, [upstream, delta, unnumbered])])
    transcript = await Transcript.of((await logs.take_over(JOB, 2)).events, 1)
    assert (transcript.upstream, transcript.cursor, transcript.tokens) == (state, 9, 1)
    assert b"7:1" not in delta.line()
    assert await archive([upstream, delta, unnumbered]) == b"\n".join([delta.line(), unnumbered.line()])
    transcript.clear()
    assert (transcript.upstream, transcript.cursor) == (None, None), "a restart begins another request"


async def test_whether_a_log_was_shown(logs: EventLog, redis: Redis) -> None:
    """By readers of the stream, not by those that only wait for the end; an ended job without a log gets no key."""
    await logs.append([Append(job, 1, deltas("a")) for job in ("job_read", "job_awaited")])
    await logs.follow("job_read", "api1", 0)
    await logs.follow_all(["job_awaited"], "api1")
    await logs.follow("job_new", "api1", 0, new=True)
    await logs.follow("job_ended", "api1", 0)
    await logs.mark_shown("job_waiting")
    jobs = ("job_read", "job_awaited", "job_new", "job_ended", "job_waiting")
    assert [await logs.shown(job) for job in jobs] == [True, False, True, False, True]
    assert not await redis.exists(redis_keys.fence("job_ended"))
    for job in ("job_new", "job_waiting"):
        assert 0 < await redis.ttl(redis_keys.fence(job)) <= RUNNING_TTL_S
        assert await logs.append([Append(job, 1, deltas("a"))]) == [1], "its log begins as any other"
        assert [item.seq for item in (await logs.take_over(job, 2)).events] == [1]
        assert await logs.shown(job)
