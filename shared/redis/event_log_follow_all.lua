-- Registers an API process as a follower of many jobs and reads where their logs end, in one atomic step.
--
-- KEYS   for each job: its log (stream), its followers (set)
-- ARGV   id of the API process, TTL of the sets in seconds
-- Result for each job: the seq of the last event in its log, or 0 if it has none
local last = {}
for k = 1, #KEYS, 2 do
  redis.call('SADD', KEYS[k + 1], ARGV[1])
  redis.call('EXPIRE', KEYS[k + 1], ARGV[2])
  local entry = redis.call('XREVRANGE', KEYS[k], '+', '-', 'COUNT', 1)[1]
  last[#last + 1] = entry and tonumber(string.match(entry[1], '^%d+')) or 0
end
return last
