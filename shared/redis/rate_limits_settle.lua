-- Corrects what was taken from sliding windows (rate_limits.lua): once it is known how much was used.
--
-- KEYS   for each correction: the hash of the window
-- ARGV   the time in microseconds ('' for the server's clock; only tests pass one); then for each correction: the second
--        in which the amount was taken, and the difference. A negative one is given back to that second, if it still
--        counts; a positive one is added now, whatever the limit: it was used.
local WINDOW, HEADER = 60, '<dddddd'
local call = redis.call
local time = call('TIME')
local second = tonumber(time[1])
if ARGV[1] ~= '' then second = math.floor(ARGV[1] / 1000000) end

local function text(value) return string.format('%.0f', value) end

for i, key in ipairs(KEYS) do
  local at, difference = ARGV[2 * i], tonumber(ARGV[2 * i + 1])
  local packed = call('HGET', key, 'h')
  local sum, from, last, seen, shift, taken = 0, 0, 0, 0, 0, 0
  if packed then sum, from, last, seen, shift, taken = struct.unpack(HEADER, packed) end
  if difference < 0 and packed then
    local is_current = tonumber(at) == seen
    local before = is_current and taken or tonumber(call('HGET', key, at) or '0')
    local given = math.min(before, -difference)
    if given > 0 then
      if is_current then
        taken = taken - given
      else
        call('HINCRBY', key, at, text(-given))
      end
      call('HSET', key, 'h', struct.pack(HEADER, sum - given, from, last, seen, shift, taken))
    end
  elseif difference > 0 then
    local now = math.max(second + shift, seen)
    if not packed then from = now - WINDOW end
    if now > seen then
      if taken > 0 then call('HSET', key, text(seen), text(taken)) end
      taken = tonumber(call('HGET', key, text(now)) or '0')
      if taken > 0 then call('HDEL', key, text(now)) end
    end
    last = math.max(now, last)
    call('HSET', key, 'h', struct.pack(HEADER, sum + difference, from, last, now, shift, taken + difference))
    call('EXPIRE', key, last - second - shift + WINDOW + 2)
  end
end
return #KEYS
