-- Registers an API process as a follower of a job and reads a page of the job's log, in one atomic step.
--
-- KEYS   the log (stream), its followers (set), its fence (hash)
-- ARGV   id of the API process, TTL of the set in seconds, seq after which to read, number of events and of bytes after
--        which the page ends, new (1 if the job is known not to have ended, or 0)
--
-- Records in the fence that the log is shown to a reader. Without `new` only if there is a fence: an ended job gets none.
-- Result the entries of the page, at least one if there are any; 1 if the log may have more entries, or 0
local STEP = 64
redis.call('SADD', KEYS[2], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
local fence_ttl = redis.call('TTL', KEYS[3])
if ARGV[6] == '1' or fence_ttl ~= -2 then
  redis.call('HSET', KEYS[3], 'shown', 1)
  if fence_ttl == -2 then redis.call('EXPIRE', KEYS[3], ARGV[2]) end
end
local page, bytes, from = {}, 0, '(' .. ARGV[3] .. '-0'
local max_events, max_bytes = tonumber(ARGV[4]), tonumber(ARGV[5])
while true do
  local found = redis.call('XRANGE', KEYS[1], from, '+', 'COUNT', STEP)
  for _, entry in ipairs(found) do
    page[#page + 1] = entry
    for _, field in ipairs(entry[2]) do bytes = bytes + #field end
    if #page >= max_events or bytes >= max_bytes then return {page, 1} end
  end
  if #found < STEP then return {page, 0} end
  from = '(' .. found[#found][1]
end
