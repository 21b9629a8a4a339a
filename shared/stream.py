"""A job's log in Redis, and the live copy of it that readers get.

Each job has a Redis Stream with all its events. The API processes that have a reader on a job stand in
the job's set of followers; appending to the log publishes the same events, in the same step, on the channel
of each of them: one channel an API process, however many jobs it follows, and nothing for a job that nobody
reads. Registering as a follower and reading the log is one transaction, so nothing falls in between. The last
event ends the set.

Every append carries its attempt's number and its first event's `seq`: events of an overtaken attempt are
refused (fencing), events that are there already are skipped (a retry is harmless), and a gap is reported,
which means that Redis has lost the log, and the fence with it: the writer has all events in memory and writes
them again, once the job's row has said that it is still the owner.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from shared import redis_keys
from shared.events import Delta, Event, EventType, delta_event, event
from shared.metrics import FENCED_WRITES, model_label
from shared.outage import is_outage
from shared.tasks import happens
from shared.token_meter import TokenMeter
from shared.worker_store import Held

logger = logging.getLogger(__name__)

RUNNING_TTL_S = 24 * 3600
RETRY_S = (0.05, 2.0)
FENCED = -1
SEQ_PER_ATTEMPT = 1_000_000
# Events in one append of a log that is written again.
PIECE = 1000
# From one flush of everything to the next: so much for each log that was in the last one, and no more than that.
# Nobody reads a text that comes in 50 pieces a second as less smooth than one that comes in 200; it costs a quarter.
GAP_A_LOG_S = 0.002
MAX_GAP_S = 0.02

_APPEND = """
local results, live = {}, {}
local k, a = 1, 1
while k <= #KEYS do
  local log, fence, followers = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  local job, attempt, force, ttl, ends = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local n = tonumber(ARGV[a + 5])
  k, a = k + 3, a + 6
  local held = redis.call('HMGET', fence, 'attempt', 'seq')
  local holder, last = tonumber(held[1] or '0'), tonumber(held[2] or '0')
  local first = tonumber(ARGV[a])
  if force == '1' and holder <= attempt then
    redis.call('DEL', log)
    last = first - 1
  end
  if holder > attempt then
    results[#results + 1] = -1
  elseif first > last + 1 then
    results[#results + 1] = last
  else
    local lines = {}
    for i = 0, n - 1 do
      local e = a + 4 * i
      local seq, kind, data, ids = tonumber(ARGV[e]), ARGV[e + 1], ARGV[e + 2], ARGV[e + 3]
      if seq == 0 then seq = last + 1 end
      if seq > last then
        if ids == '' then
          redis.call('XADD', log, seq .. '-0', 't', kind, 'e', data)
        else
          redis.call('XADD', log, seq .. '-0', 't', kind, 'e', data, 'k', ids)
        end
        last = seq
        lines[#lines + 1] = job .. ' ' .. seq .. ' ' .. kind .. ' ' .. data
      end
    end
    redis.call('HSET', fence, 'attempt', attempt, 'seq', last)
    redis.call('EXPIRE', log, ttl)
    redis.call('EXPIRE', fence, ttl)
    if #lines > 0 then
      local text = table.concat(lines, '\\n')
      for _, api in ipairs(redis.call('SMEMBERS', followers)) do
        live[api] = live[api] and (live[api] .. '\\n' .. text) or text
      end
      if ends == '1' then redis.call('DEL', followers) end
    end
    results[#results + 1] = last
  end
  a = a + 4 * n
end
for api, text in pairs(live) do redis.call('PUBLISH', 'hr:api:' .. api, text) end
return results
"""

_TAKE_OVER = """
local held = tonumber(redis.call('HGET', KEYS[2], 'attempt') or '0')
if held > tonumber(ARGV[1]) then return false end
redis.call('HSET', KEYS[2], 'attempt', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return redis.call('XRANGE', KEYS[1], '-', '+')
"""

_FOLLOW_ALL = """
local last = {}
for k = 1, #KEYS, 2 do
  redis.call('SADD', KEYS[k + 1], ARGV[1])
  redis.call('EXPIRE', KEYS[k + 1], ARGV[2])
  local entry = redis.call('XREVRANGE', KEYS[k], '+', '-', 'COUNT', 1)[1]
  last[#last + 1] = entry and tonumber(string.match(entry[1], '^%d+')) or 0
end
return last
"""


def distance_s(logs: int) -> float:
    """Seconds from one flush to the next while so many logs grow: text that is there sooner waits."""
    return min(GAP_A_LOG_S * logs, MAX_GAP_S)


def seq_before(attempt: int) -> int:
    """After which number an attempt begins where the log before it is lost: above all that a reader may have seen."""
    return (attempt - 1) * SEQ_PER_ATTEMPT


class Fenced(Exception):
    """A later attempt owns the job; this one may write nothing more."""


@dataclass(slots=True)
class Append:
    """Events for one job's log. `seq` 0 of an event means: after the last one."""

    job_id: str
    attempt: int
    events: Sequence[Event]
    ttl_s: int = RUNNING_TTL_S
    force: bool = False


class JobLogs:
    """The logs of all jobs, in one Redis. Raises `redis.exceptions.RedisError` where Redis is away."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._append = redis.register_script(_APPEND)
        self._take_over = redis.register_script(_TAKE_OVER)
        self._follow_all = redis.register_script(_FOLLOW_ALL)

    async def append(self, appends: Sequence[Append]) -> list[int]:
        """Append to many logs in one round trip, and publish to the jobs' followers.

        Returns, for each job, the `seq` of its last event; `FENCED` where a later attempt owns it; less than
        was sent where the log has a gap before it (nothing was written then).
        """
        keys: list[str] = []
        args: list[Any] = []
        for item in appends:
            keys += (redis_keys.log(item.job_id), redis_keys.fence(item.job_id), redis_keys.followers(item.job_id))
            ends = item.events[-1].type.terminal
            args += (item.job_id, item.attempt, int(item.force), item.ttl_s, int(ends), len(item.events))
            for one in item.events:
                args += (one.seq, one.name, one.data, one.token_ids)
        result: list[int] = await self._append(keys=keys, args=args)
        return result

    async def take_over(self, job_id: str, attempt: int) -> list[Event]:
        """Make `attempt` the owner of the log and return what the attempts before it wrote.

        Raises:
            Fenced: a later attempt owns it already.
        """
        keys = [redis_keys.log(job_id), redis_keys.fence(job_id)]
        entries = await self._take_over(keys=keys, args=[attempt, RUNNING_TTL_S])
        if entries is None:
            raise Fenced
        return [_entry(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in entries]

    async def read(self, job_id: str, after: int = 0) -> list[Event]:
        """The events after a cursor."""
        entries: Any = await self._redis.xrange(redis_keys.log(job_id), min=f"({after}-0")
        return [_entry(entry_id, fields) for entry_id, fields in entries]

    async def last_seq(self, job_id: str) -> int:
        """The number of the last event in a log; 0 where there is none."""
        entries: Any = await self._redis.xrevrange(redis_keys.log(job_id), count=1)
        return _entry(*entries[0]).seq if entries else 0

    async def follow(self, job_id: str, api_id: str, after: int) -> list[Event]:
        """Register an API process as a follower and read the events after a cursor, in one step."""
        followers = redis_keys.followers(job_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.sadd(followers, api_id)
            pipe.expire(followers, RUNNING_TTL_S)
            pipe.xrange(redis_keys.log(job_id), min=f"({after}-0")
            *_, entries = await pipe.execute()
        return [_entry(entry_id, fields) for entry_id, fields in entries]

    async def follow_all(self, job_ids: Sequence[str], api_id: str) -> list[int]:
        """Register an API process as a follower of many jobs. Returns the number of each log's last event, or 0."""
        keys = [key for job_id in job_ids for key in (redis_keys.log(job_id), redis_keys.followers(job_id))]
        last: list[int] = await self._follow_all(keys=keys, args=[api_id, RUNNING_TTL_S])
        return last

    async def unfollow(self, job_id: str, api_id: str) -> None:
        await self._redis.srem(redis_keys.followers(job_id), api_id)

    async def forget(self, job_id: str) -> None:
        await self._redis.delete(redis_keys.log(job_id), redis_keys.fence(job_id), redis_keys.followers(job_id))


def _entry(entry_id: bytes, fields: dict[bytes, bytes]) -> Event:
    seq = int(entry_id.partition(b"-")[0])
    return Event(seq, EventType(fields[b"t"].decode()), fields[b"e"], fields.get(b"k", b""))


@dataclass(slots=True, eq=False)
class JobLog:
    """One running job's log, as its worker writes it: everything is kept here until the job ends."""

    job_id: str
    attempt: int
    model: str = ""
    events: list[Event] = field(default_factory=list)
    seq: int = 0
    written: int = 0
    fenced: bool = False
    ttl_s: int = RUNNING_TTL_S
    # Each delta tells its number of tokens.
    counted: bool = False
    # Somebody waits for what is new in it: a start, the first text, the end.
    urgent: bool = True
    opened: float = field(default_factory=time.monotonic)
    _pending: dict[int, Delta] = field(default_factory=dict)
    _meter: TokenMeter = field(init=False)

    def __post_init__(self) -> None:
        self._meter = TokenMeter(self.model)

    def delta(self, delta: Delta) -> None:
        """Add text; it joins what the same choice gained since the last flush."""
        waiting = self._pending.get(delta.index)
        self._pending[delta.index] = waiting.merged(delta) if waiting else delta

    def event(self, kind: EventType, payload: dict[str, Any]) -> None:
        """Add an event of another type, after all text so far."""
        self.seal()
        self.seq += 1
        self.events.append(event(self.seq, kind, payload))

    def seal(self) -> None:
        """Give the text that waits its place in the log.

        Tokens that made no text yet (half an emoji) wait on, so that the log always ends where the text does:
        a next attempt can go on after its last token.
        """
        now = time.monotonic()
        for index, delta in list(self._pending.items()):
            if delta.shown:
                self.seq += 1
                self._meter.made(index, delta.tokens, now)
                self.events.append(delta_event(self.seq, delta, counted=self.counted))
                del self._pending[index]

    def discard(self) -> None:
        """Forget what waits."""
        self._pending.clear()

    def adopt(self, events: list[Event], seq: int) -> None:
        """Go on after the events of earlier attempts."""
        self.events, self.seq, self.written = events, seq, seq

    @property
    def unwritten(self) -> list[Event]:
        """The events that Redis has not confirmed: `seq` grows by one from event to event, but at a lost log."""
        count = 0
        for item in reversed(self.events):
            if item.seq <= self.written:
                break
            count += 1
        return self.events[len(self.events) - count :]

    def close(self, last: Event, ttl_s: int) -> None:
        """Add the last event, once the row is committed, and let Redis keep the log for as long as this."""
        self.seq = last.seq
        self.events.append(last)
        self.ttl_s = ttl_s
        self.urgent = True

    def wrote(self, events: Sequence[Event]) -> None:
        """These are in Redis now."""
        self.written = events[-1].seq
        if self.urgent and any(item.type is EventType.DELTA for item in events):
            self.urgent = False


class LogFlusher:
    """Writes the logs of all running jobs, one round trip for all that have something new.

    A log in which somebody waits for what is new (a start, a first token, an end) is written at once, and it alone. All
    others keep a distance to the last time, which grows with their number: a lone stream waits for two milliseconds
    at most, and under load many tokens of many jobs share a message. While Redis is away, text gathers here and jobs go
    on.
    """

    def __init__(self, logs: JobLogs, held: Callable[[], Awaitable[Sequence[Held]]], *, late_s: float) -> None:
        """`held` asks the rows what this worker owns. A log whose first event is later than `late_s` asks too."""
        self._logs = logs
        self._held = held
        self._late_s = late_s
        self._dirty: dict[JobLog, None] = {}
        self._wake = asyncio.Event()
        self._urgent = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def touch(self, log: JobLog) -> None:
        """Say that a log has something new."""
        if not log.fenced:
            self._dirty[log] = None
            self._idle.clear()
            self._wake.set()
            if log.urgent:
                self._urgent.set()

    async def run(self) -> None:
        """Flush for ever; cancel to stop."""
        delay = RETRY_S[0]
        next_at = 0.0
        while True:
            await self._wake.wait()
            if not self._urgent.is_set() and (early := next_at - time.monotonic()) > 0:
                await happens(self._urgent, early)
            self._wake.clear()
            self._urgent.clear()
            everything = time.monotonic() >= next_at
            batch = [log for log in self._dirty if everything or log.urgent]
            for log in batch:
                del self._dirty[log]
            if everything:
                next_at = time.monotonic() + distance_s(len(batch))
            if self._dirty:
                self._wake.set()
            try:
                await self._flush(batch)
                delay = RETRY_S[0]
            except Exception as error:
                if not is_outage(error):
                    raise
                logger.warning("cannot write logs, %d wait: %s", len(batch), error)
                for log in batch:
                    self.touch(log)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_S[1])
            if not self._dirty:
                self._idle.set()

    async def drain(self, timeout_s: float) -> None:
        """Wait until everything is written, for so long at most."""
        await happens(self._idle, timeout_s)

    async def _flush(self, batch: list[JobLog]) -> None:
        appends: list[Append] = []
        logs: list[JobLog] = []
        unsure: list[JobLog] = []
        for log in batch:
            log.seal()
            if unwritten := log.unwritten:
                if log.written == 0 and time.monotonic() - log.opened > self._late_s:
                    unsure.append(log)
                else:
                    logs.append(log)
                    appends.append(Append(log.job_id, log.attempt, unwritten, log.ttl_s))
        results = await self._logs.append(appends) if appends else []
        for log, sent, last in zip(logs, appends, results, strict=True):
            if last == FENCED:
                self._fence(log)
            elif last < sent.events[-1].seq:
                unsure.append(log)
            else:
                log.wrote(sent.events)
        if unsure:
            await self._write_again(unsure)

    async def _write_again(self, logs: list[JobLog]) -> None:
        """Write whole logs where Redis has nothing of them, not even a fence: the rows say which are ours."""
        held = {(item.job_id, item.attempt) for item in await self._held()}
        ours: list[JobLog] = []
        for log in logs:
            if (log.job_id, log.attempt) in held:
                ours.append(log)
            else:
                self._fence(log)
        if not ours:
            return
        logger.warning("Redis has lost %d logs of running jobs; writing them again", len(ours))
        for log in ours:
            await self._write_whole(log)

    async def _write_whole(self, log: JobLog) -> None:
        """One log in pieces that do not keep Redis from its other work."""
        events = list(log.events)
        for start in range(0, len(events), PIECE):
            piece = events[start : start + PIECE]
            (last,) = await self._logs.append([Append(log.job_id, log.attempt, piece, log.ttl_s, force=start == 0)])
            if last == FENCED:
                self._fence(log)
                return
            if last < piece[-1].seq:  # lost again in between
                self.touch(log)
                return
        log.wrote(events)

    @staticmethod
    def _fence(log: JobLog) -> None:
        log.fenced = True
        FENCED_WRITES.labels(model_label(log.model), "log").inc()
        logger.warning("job=%s attempt=%d writes no log any more: it is not its owner", log.job_id, log.attempt)
