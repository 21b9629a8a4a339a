-- Take the request of a job, and note that the worker has it.
-- KEYS: the request; the worker's list. ARGV: the job's id; the length of the list; its time to live in seconds.
local request = redis.call('GETDEL', KEYS[1])
if request then
  redis.call('LPUSH', KEYS[2], ARGV[1])
  redis.call('LTRIM', KEYS[2], 0, ARGV[2] - 1)
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
return request
