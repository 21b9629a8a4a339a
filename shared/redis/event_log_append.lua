-- Appends events to the logs of many jobs and publishes them to the jobs' followers, in one atomic step.
--
-- KEYS   for each job: its log (stream), its fence (hash), its followers (set)
-- ARGV   for each job: job id, attempt, force (1 or 0), TTL in seconds, final (1 if the last event ends the log, or 0),
--        number of events; then for each event: seq (0: after the last one), type, data, token ids and cursor ('' for
--        none)
-- Result for each job: -1 if a later attempt owns its log, otherwise the seq of the log's last event. If there is a gap
--        between that event and the first one sent, Redis has lost the log. Nothing is written in these two cases.
--
-- The last event of each job also has the time at which it was written, `w`, in milliseconds; 0 if
-- the log was written again.
-- Events that the log already has are skipped. `force` deletes the log first, unless a later attempt owns it.
local results, messages = {}, {}
local time = redis.call('TIME')
local now = string.format('%.0f', time[1] * 1000 + math.floor(time[2] / 1000))
local k, a = 1, 1
while k <= #KEYS do
  local log, fence, followers = KEYS[k], KEYS[k + 1], KEYS[k + 2]
  local job, attempt, force, ttl, final = ARGV[a], tonumber(ARGV[a + 1]), ARGV[a + 2], ARGV[a + 3], ARGV[a + 4]
  local count = tonumber(ARGV[a + 5])
  k, a = k + 3, a + 6
  local fields = redis.call('HMGET', fence, 'attempt', 'seq', 'generated')
  local owner, last = tonumber(fields[1] or '0'), tonumber(fields[2] or '0')
  local first = tonumber(ARGV[a])
  if force == '1' and owner <= attempt then
    redis.call('DEL', log)
    last = first - 1
  end
  if owner > attempt then
    results[#results + 1] = -1
  elseif first > last + 1 then
    results[#results + 1] = last
  else
    local lines, generates = {}, false
    for i = 0, count - 1 do
      local e = a + 5 * i
      local seq, kind, data, ids, cursor = tonumber(ARGV[e]), ARGV[e + 1], ARGV[e + 2], ARGV[e + 3], ARGV[e + 4]
      if seq == 0 then seq = last + 1 end
      if seq > last then
        local entry = {'XADD', log, seq .. '-0', 't', kind, 'e', data}
        if cursor ~= '' then
          entry[8], entry[9], entry[10], entry[11] = 'k', ids, 'c', cursor
        elseif ids ~= '' then
          entry[8], entry[9] = 'k', ids
        end
        if i == count - 1 then
          entry[#entry + 1], entry[#entry + 2] = 'w', force == '1' and '0' or now
        end
        redis.call(unpack(entry))
        generates = generates or ids ~= ''
        last = seq
        lines[#lines + 1] = job .. ' ' .. seq .. ' ' .. kind .. ' ' .. data
      end
    end
    redis.call('HSET', fence, 'attempt', attempt, 'seq', last)
    if generates and tonumber(fields[3] or '0') ~= attempt then redis.call('HSET', fence, 'generated', attempt) end
    redis.call('EXPIRE', log, ttl)
    redis.call('EXPIRE', fence, ttl)
    if #lines > 0 then
      local text = table.concat(lines, '\n')
      for _, api in ipairs(redis.call('SMEMBERS', followers)) do
        messages[api] = messages[api] and (messages[api] .. '\n' .. text) or text
      end
      if final == '1' then redis.call('DEL', followers) end
    end
    results[#results + 1] = last
  end
  a = a + 5 * count
end
for api, text in pairs(messages) do redis.call('PUBLISH', 'hr:api:' .. api, text) end
return results
