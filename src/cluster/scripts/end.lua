#!lua flags=allow-oom
-- Ends a write for all replicas: nothing that was fetched before is stored any more, and until when the platform may lag is; and
-- publishes it. Returns what it did, the time, the members that may still serve from before it, each with the milliseconds for which
-- they may, and the fence of the last entry before.
-- KEYS: members, about, current namespace, then the entry of each subject, or that of the tenant
-- ARGV: channel, message, how long the platform may lag (ms), namespace, the longest lease (ms), the new fence, how long an entry is
--       stored at least (ms)
local time = redis.call('TIME')
if redis.call('GET', KEYS[3]) ~= ARGV[4] then return {'moved', tonumber(time[1]), tonumber(time[2]), {}, ''} end
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local before = ''
for place = 4, #KEYS do
  local name, lags_until = string.match(redis.call('HGET', KEYS[place], 'fence') or ' 0', '^(%S*) (%d+)$')
  before = name
  lags_until = math.max(tonumber(lags_until), now + ARGV[3])
  redis.call('DEL', KEYS[place])
  redis.call('HSET', KEYS[place], 'fence', ARGV[6] .. ' ' .. lags_until)
  redis.call('PEXPIRE', KEYS[place], math.max(tonumber(ARGV[7]), lags_until - now))
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
return {'ok', tonumber(time[1]), tonumber(time[2]), waits, before}
