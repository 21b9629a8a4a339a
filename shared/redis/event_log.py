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

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from shared.domain.events import Event, EventType
from shared.redis import keys as redis_keys

logger = logging.getLogger(__name__)

RUNNING_TTL_S = 24 * 3600
FENCED = -1

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


class EventLog:
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
