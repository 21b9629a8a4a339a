-- Makes an attempt the owner of a job's log and reads the log, in one atomic step.
--
-- KEYS   the job's log (stream), its fence (hash)
-- ARGV   attempt, TTL of the fence in seconds
-- Result the entries of the log; false if a later attempt owns it
local owner = tonumber(redis.call('HGET', KEYS[2], 'attempt') or '0')
if owner > tonumber(ARGV[1]) then return false end
redis.call('HSET', KEYS[2], 'attempt', ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[2])
return redis.call('XRANGE', KEYS[1], '-', '+')
