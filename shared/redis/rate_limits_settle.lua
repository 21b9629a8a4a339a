-- Corrects what was taken from sliding windows (rate_limits.lua): once it is known how much was used.
--
-- KEYS   for each correction: the hash of the window
-- ARGV   the time in microseconds ('' for the server's clock; only tests pass one); then for each correction: the second
--        in which the amount was taken, and the difference. A negative one is given back to that second, if it still
--        counts; a positive one is added now, whatever the limit: it was used.
local WINDOW = 60
local time = redis.call('TIME')
local second = tonumber(time[1])
if ARGV[1] ~= '' then second = math.floor(ARGV[1] / 1000000) end

local function text(value) return string.format('%.0f', value) end

for i, key in ipairs(KEYS) do
  local at, difference = ARGV[2 * i], tonumber(ARGV[2 * i + 1])
  if difference < 0 then
    local taken = tonumber(redis.call('HGET', key, at) or '0')
    local given = math.min(taken, -difference)
    if given > 0 then
      redis.call('HINCRBY', key, at, text(-given))
      redis.call('HINCRBY', key, 'sum', text(-given))
    end
  elseif difference > 0 then
    local found = redis.call('HMGET', key, 'from', 'last', 'seen', 'shift')
    local last, seen, shift = tonumber(found[2] or '0'), tonumber(found[3] or '0'), tonumber(found[4] or '0')
    local now = math.max(second + shift, seen)
    if not found[1] then redis.call('HSET', key, 'from', text(now - WINDOW)) end
    redis.call('HINCRBY', key, text(now), text(difference))
    redis.call('HINCRBY', key, 'sum', text(difference))
    last = math.max(now, last)
    redis.call('HSET', key, 'last', text(last), 'seen', text(now), 'shift', text(shift))
    redis.call('EXPIRE', key, last - second - shift + WINDOW + 2)
  end
end
return #KEYS
