-- Takes an amount from each of several sliding windows, or nothing from any of them, in one atomic step.
--
-- KEYS   for each window: its hash, with the fields
--          <second>  the amount taken in that second
--          sum       that of all these seconds
--          from      the first second that may be in the sum
--          last      the last one
--          seen      the latest second in which something was taken
--          shift     seconds that the window's clock is ahead of the server's (see below)
-- ARGV   the time in microseconds ('' for the server's clock; only tests pass one), the longest wait of soft windows in
--        seconds; then for each window: amount (0 only reads it), limit, soft (1 or 0)
-- Result whether the amounts were taken (1 or 0); milliseconds to wait: until a refused request fits, -1 if it never
--        does, or that a request has to wait because of soft windows; the number of the window that decided this, or 0;
--        then for each window: what is left, milliseconds until it is full again, and the second that the amount was
--        taken in.
--
-- A second counts until 60 whole seconds have passed after its end: so the amounts taken in any 60 seconds, wherever
-- they begin, are at most the limit.
--
-- If the server's clock is set back by up to a window, the time stands still until it has caught up. If it is set back
-- further, the window continues from its latest second: its clock is shifted by the difference.
--
-- A soft window takes an amount that does not fit now in the first second in which it fits.
local WINDOW, FIRST_SECONDS = 60, 4
local time = redis.call('TIME')
local second, micros = tonumber(time[1]), tonumber(time[2])
if ARGV[1] ~= '' then
  second, micros = math.floor(ARGV[1] / 1000000), ARGV[1] % 1000000
end
local longest = tonumber(ARGV[2])

local function number(value) return tonumber(value or '0') end
local function text(value) return string.format('%.0f', value) end

local windows = {}
local refused_wait, refused_by, soft_wait, soft_by = 0, 0, 0, 0
for i, key in ipairs(KEYS) do
  local amount, limit, soft = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), ARGV[3 * i + 2] == '1'
  local found = redis.call('HMGET', key, 'sum', 'from', 'last', 'seen', 'shift', text(second))
  local sum, from, last = number(found[1]), number(found[2]), number(found[3])
  local seen, shift, taken = number(found[4]), number(found[5]), number(found[6])
  local now, behind = second + shift, 0
  if now < seen then
    if seen - now > WINDOW then
      shift = shift + seen - now
    else
      behind = seen - now
    end
    now = seen
  end
  local oldest = now - WINDOW
  if found[1] and from < oldest then
    if last < oldest then
      redis.call('DEL', key)
      sum, last, seen, taken = 0, 0, 0, 0
    else
      local names = {}
      for past = from, oldest - 1 do names[#names + 1] = text(past) end
      local gone = {}
      for n, value in ipairs(redis.call('HMGET', key, unpack(names))) do
        if value then
          sum = sum - value
          gone[#gone + 1] = names[n]
        end
      end
      if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
      redis.call('HSET', key, 'sum', text(sum), 'from', text(oldest))
    end
    from = oldest
  elseif not found[1] then
    from = oldest
  end
  local wait = 0
  if amount > limit then
    wait = -1
  elseif sum + amount > limit then
    -- The first second by whose end enough has left the window. Most often, it is one of the oldest.
    local excess, start, count = sum + amount - limit, from, FIRST_SECONDS
    while wait == 0 and start <= last do
      local names = {}
      for past = start, math.min(start + count - 1, last) do names[#names + 1] = text(past) end
      for n, value in ipairs(redis.call('HMGET', key, unpack(names))) do
        excess = excess - number(value)
        if excess <= 0 then
          wait = (start + n + WINDOW - now + behind) * 1000 - math.floor(micros / 1000)
          break
        end
      end
      start, count = start + count, 4 * count
    end
    -- Never, unless seconds of the hash were deleted.
    if wait == 0 then wait = (WINDOW + 1) * 1000 end
  end
  if soft and wait >= 0 and wait <= longest * 1000 then
    if wait > soft_wait then soft_wait, soft_by = wait, i end
  elseif wait ~= 0 then
    if soft and wait > 0 then wait = wait - longest * 1000 end
    if refused_wait >= 0 and (wait < 0 or wait > refused_wait) then refused_wait, refused_by = wait, i end
  end
  windows[i] = {
    key = key, amount = amount, limit = limit, soft = soft, sum = sum, from = from, last = last, seen = seen,
    shift = shift, taken = taken, now = now, behind = behind, moved = shift ~= number(found[5])
  }
end

local result = {refused_by == 0 and 1 or 0, refused_by == 0 and soft_wait or refused_wait,
  refused_by == 0 and soft_by or refused_by}
for _, w in ipairs(windows) do
  local at = w.now
  if refused_by == 0 and w.amount > 0 then
    -- The second in which the wait ends.
    if w.soft and soft_wait > 0 then at = w.now - w.behind + math.floor((soft_wait * 1000 + micros) / 1000000) end
    if at < w.now then at = w.now end
    local field = text(at)
    if field ~= text(second) then w.taken = number(redis.call('HGET', w.key, field)) end
    w.sum = w.sum + w.amount
    local values = {field, text(w.taken + w.amount), 'sum', text(w.sum)}
    if at > w.last or w.now > w.seen or w.moved then
      w.last = math.max(at, w.last)
      for _, value in ipairs({'from', text(w.from), 'last', text(w.last), 'seen', text(w.now), 'shift', text(w.shift)}) do
        values[#values + 1] = value
      end
      redis.call('HSET', w.key, unpack(values))
      redis.call('EXPIRE', w.key, w.last - w.now + w.behind + WINDOW + 2)
    else
      redis.call('HSET', w.key, unpack(values))
    end
  elseif w.moved then
    -- Otherwise the time of a full window, which nothing is taken from, would not go on.
    redis.call('HSET', w.key, 'shift', text(w.shift))
  end
  local reset = 0
  if w.sum > 0 then reset = (w.last + WINDOW + 1 - w.now + w.behind) * 1000 - math.floor(micros / 1000) end
  result[#result + 1] = math.max(0, w.limit - w.sum)
  result[#result + 1] = reset
  result[#result + 1] = at
end
return result
