-- Change the model of the request in KEYS[1], if it is known, to ARGV[1].
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'model', ARGV[1])
end
