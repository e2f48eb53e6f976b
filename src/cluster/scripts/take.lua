#!lua flags=allow-oom
-- Takes a slot. Returns 1 if there was one, 0 and how many milliseconds there is none, or -1 if this was executed too late.
-- KEYS: slots, live, members, born
-- ARGV: call, allowed calls in a window, how long the call may count at most (ms), how long nothing is taken in a new namespace (ms),
--       configured replicas, latest time of execution (ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[6]) then return {-1, 0} end
local born = redis.call('GET', KEYS[4])
if not born then return {-1, 0} end
local held = tonumber(born) + tonumber(ARGV[4]) - now
if held > 0 then return {0, held} end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local live = redis.call('ZCOUNT', KEYS[2], now - 500, '+inf')
local parts = math.max(tonumber(ARGV[5]), redis.call('ZCARD', KEYS[3]), 1)
local limit = math.floor(tonumber(ARGV[2]) * live / parts)
if limit < 1 then return {0, 100} end
local taken = redis.call('ZCARD', KEYS[1])
if taken < limit then
  -- Rounded up, as the time was rounded down.
  redis.call('ZADD', KEYS[1], now + 1 + ARGV[3], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 2 * tonumber(ARGV[3]) + 1000)
  return {1, 0}
end
local first = redis.call('ZRANGE', KEYS[1], taken - limit, taken - limit, 'WITHSCORES')
return {0, math.max(1, tonumber(first[2]) - now)}
