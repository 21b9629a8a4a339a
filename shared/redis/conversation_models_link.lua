-- Let the names in the KEYS after the first lead to the request ARGV[2], whose model is in KEYS[1], for as long as that
-- is known. A name that leads to a request of a higher level continues to do so.
-- ARGV[1] is the prefix of the keys of requests. From ARGV[3] on, the model, the floor, the levels of the route and the
-- seconds to store first, if this is a new request.
local function level(key)
  local found = redis.call('HMGET', key, 'model', 'floor', 'levels')
  local position, highest = 0, 0
  for name in string.gmatch(found[3] or '', '%S+') do
    position = position + 1
    if name == found[1] or name == found[2] then
      highest = position
    end
  end
  return highest
end
if ARGV[3] then
  redis.call('HSET', KEYS[1], 'model', ARGV[3], 'floor', ARGV[4], 'levels', ARGV[5])
  redis.call('EXPIRE', KEYS[1], ARGV[6])
end
local ttl = redis.call('PTTL', KEYS[1])
if ttl <= 0 then
  return
end
local own = level(KEYS[1])
for index = 2, #KEYS do
  local other = redis.call('GET', KEYS[index])
  if not other or level(ARGV[1] .. other) <= own then
    redis.call('SET', KEYS[index], ARGV[2], 'PX', ttl)
  end
end
