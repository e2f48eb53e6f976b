#!lua flags=allow-oom
-- For how many more milliseconds the platform may lag behind a write.
-- KEYS: the fences of a customer and of its tenant
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local left = 0
for _, key in ipairs(KEYS) do
  left = math.max(left, tonumber(redis.call('GET', key) or '0') - now)
end
return left
