#!lua flags=allow-oom
-- Changes until when a call counts.
-- KEYS: slots
-- ARGV: call, what happened to it, how long it may still count (ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == 'sent' then
  -- If it had ended, so may have the key, and with it its expiry.
  if redis.call('ZADD', KEYS[1], now + 1 + ARGV[3], ARGV[1]) == 1 then
    redis.call('PEXPIRE', KEYS[1], 2 * tonumber(ARGV[3]) + 2000)
  end
elseif ARGV[2] == 'answered' then
  redis.call('ZADD', KEYS[1], 'XX', 'LT', now + 1 + ARGV[3], ARGV[1])
else
  redis.call('ZREM', KEYS[1], ARGV[1])
end
return 1
