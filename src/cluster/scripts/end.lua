#!lua flags=allow-oom
-- Ends a write for all replicas: publishes it, and notes until when the platform may lag. Returns what it did, the time, and the members
-- that may still serve from before it, each with the milliseconds for which they may.
-- KEYS: members, about, current namespace, then the fence of each customer, or that of the tenant
-- ARGV: channel, message, how long the platform may lag (ms), namespace, the longest lease (ms)
local time = redis.call('TIME')
if redis.call('GET', KEYS[3]) ~= ARGV[4] then return {'moved', tonumber(time[1]), tonumber(time[2]), {}} end
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local lag = tonumber(ARGV[3])
if lag > 0 then
  for place = 4, #KEYS do
    local known = tonumber(redis.call('GET', KEYS[place]) or '0')
    if known < now + lag then redis.call('SET', KEYS[place], now + lag, 'PX', lag) end
  end
end
redis.call('PUBLISH', ARGV[1], ARGV[2])
local waits = {}
local seen = redis.call('ZRANGEBYSCORE', KEYS[1], now - ARGV[5], '+inf', 'WITHSCORES')
for place = 1, #seen, 2 do
  local lease = tonumber(string.match(redis.call('HGET', KEYS[2], seen[place]) or ARGV[5], '^%d+'))
  -- Rounded up, as the time was rounded down.
  local left = tonumber(seen[place + 1]) + 1 + lease - now
  if left > 0 then
    waits[#waits + 1] = seen[place]
    waits[#waits + 1] = tostring(left)
  end
end
return {'ok', tonumber(time[1]), tonumber(time[2]), waits}
