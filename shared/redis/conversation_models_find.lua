-- The model and the floor of the request ARGV[2], if there is one, and of those to which the names KEYS lead; 0 where
-- unknown. ARGV[1] is the prefix of the keys of requests.
local function read(conversation)
  local found = redis.call('HMGET', ARGV[1] .. conversation, 'model', 'floor')
  if found[1] then
    return {found[1], found[2] or ''}
  end
  return 0
end
local found = {}
if ARGV[2] then
  found[1] = read(ARGV[2])
end
for _, key in ipairs(KEYS) do
  local conversation = redis.call('GET', key)
  found[#found + 1] = conversation and read(conversation) or 0
end
return found
