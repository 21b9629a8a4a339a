-- Takes an amount from each of several sliding windows, or nothing from any of them, in one atomic step.
--
-- KEYS   for each window: its hash, with the fields
--          h         packed numbers, so that a request within the same second reads and writes this field only:
--            sum       the amount taken in all seconds that count
--            from      the first second that may be in the sum
--            last      the last one
--            seen      the latest second in which the window was used
--            shift     seconds that the window's clock is ahead of the server's (see below)
--            taken     the amount taken in the second `seen`
--          <second>  the amount taken in another second
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
local WINDOW, FIRST_SECONDS, HEADER = 60, 4, '<dddddd'
local call, floor, max = redis.call, math.floor, math.max
local time = call('TIME')
local second, micros = tonumber(time[1]), tonumber(time[2])
if ARGV[1] ~= '' then
  second, micros = floor(ARGV[1] / 1000000), ARGV[1] % 1000000
end
local longest, millis = tonumber(ARGV[2]), floor(micros / 1000)

local function number(value) return tonumber(value or '0') end
local function text(value) return string.format('%.0f', value) end

local windows = {}
local refused_wait, refused_by, soft_wait, soft_by = 0, 0, 0, 0
for i, key in ipairs(KEYS) do
  local amount, limit, soft = tonumber(ARGV[3 * i]), tonumber(ARGV[3 * i + 1]), ARGV[3 * i + 2] == '1'
  local packed = call('HGET', key, 'h')
  local sum, from, last, seen, shift, taken = 0, 0, 0, 0, 0, 0
  if packed then sum, from, last, seen, shift, taken = struct.unpack(HEADER, packed) end
  local now, behind, changed = second + shift, 0, false
  if now < seen then
    if seen - now > WINDOW then
      shift, changed = shift + seen - now, true
    else
      behind = seen - now
    end
    now = seen
  end
  local oldest = now - WINDOW
  if not packed then
    from, seen, changed = oldest, now, true
  elseif last < oldest then
    call('DEL', key)
    packed, sum, from, last, seen, taken, changed = false, 0, oldest, 0, now, 0, true
  else
    if now > seen then
      if taken > 0 then call('HSET', key, text(seen), text(taken)) end
      taken = 0
      if last >= now then
        taken = number(call('HGET', key, text(now)))
        if taken > 0 then call('HDEL', key, text(now)) end
      end
      seen, changed = now, true
    end
    if from < oldest then
      local names, gone = {}, {}
      for past = from, oldest - 1 do names[#names + 1] = text(past) end
      for n, value in ipairs(call('HMGET', key, unpack(names))) do
        if value then
          sum = sum - value
          gone[#gone + 1] = names[n]
        end
      end
      if #gone > 0 then call('HDEL', key, unpack(gone)) end
      from, changed = oldest, true
    end
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
      for n, value in ipairs(call('HMGET', key, unpack(names))) do
        excess = excess - (start + n - 1 == seen and taken or number(value))
        if excess <= 0 then
          wait = (start + n + WINDOW - now + behind) * 1000 - millis
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
  windows[i] = {amount, limit, soft, packed, sum, from, last, shift, taken, now, behind, changed}
end

local accepted = refused_by == 0
local result = {accepted and 1 or 0, accepted and soft_wait or refused_wait, accepted and soft_by or refused_by}
for i, key in ipairs(KEYS) do
  local amount, limit, soft, packed, sum, from, last, shift, taken, now, behind, changed = unpack(windows[i], 1, 12)
  local at = now
  if accepted and amount > 0 then
    -- The second in which the wait ends.
    if soft and soft_wait > 0 then at = max(now, now - behind + floor((soft_wait * 1000 + micros) / 1000000)) end
    if at == now then
      taken = taken + amount
    else
      call('HINCRBY', key, text(at), text(amount))
    end
    sum = sum + amount
    changed = changed or at > last
    last = max(at, last)
    call('HSET', key, 'h', struct.pack(HEADER, sum, from, last, now, shift, taken))
    if changed then call('EXPIRE', key, last - now + behind + WINDOW + 2) end
  elseif packed and changed then
    call('HSET', key, 'h', struct.pack(HEADER, sum, from, last, now, shift, taken))
  end
  local count = 3 * i
  result[count + 1] = max(0, limit - sum)
  result[count + 2] = sum > 0 and max(0, (last + WINDOW + 1 - now + behind) * 1000 - millis) or 0
  result[count + 3] = at
end
return result
