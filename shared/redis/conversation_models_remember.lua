-- Note the model ARGV[1] of the conversations KEYS for ARGV[2] seconds, except where one of the models from ARGV[3] on
-- is noted, which stays.
local keep = {}
for index = 3, #ARGV do
  keep[ARGV[index]] = true
end
for _, key in ipairs(KEYS) do
  local current = redis.call('GET', key)
  if current and keep[current] then
    redis.call('EXPIRE', key, ARGV[2])
  else
    redis.call('SET', key, ARGV[1], 'EX', ARGV[2])
  end
end
