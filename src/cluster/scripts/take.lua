#!lua flags=allow-oom
-- Takes a slot. Returns 1 if there was one, 0 and how many milliseconds there is none, or -1 if this was executed too late or in a
-- namespace that has ended; then the time.
-- KEYS: slots, live, members, born, current namespace
-- ARGV: call, calls that a window allows, how long the call may count at most (ms), how long nothing is taken in a new namespace (ms),
--       configured replicas, latest time of execution (ms), calls that a window allows as long as the platform throttles, namespace,
--       without a heartbeat for so long a replica is silent (ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function reply(what, wait)
  return {what, wait, tonumber(time[1]), tonumber(time[2])}
end
if now > tonumber(ARGV[6]) or redis.call('GET', KEYS[5]) ~= ARGV[8] then return reply(-1, 0) end
local born = redis.call('GET', KEYS[4])
if not born then return reply(-1, 0) end
local held = tonumber(born) + tonumber(ARGV[4]) - now
if held > 0 then return reply(0, held) end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
local rate, replicas = tonumber(ARGV[2]), tonumber(ARGV[5])
local live = redis.call('ZCOUNT', KEYS[2], now - ARGV[9], '+inf')
local members = redis.call('ZCARD', KEYS[3])
local parts = math.max(replicas, members, 1)
-- Each that is silent may use its part, of at least as many as are configured.
local others = math.max(members - live, 0) * math.floor(rate / replicas)
local limit = math.min(math.floor(rate * live / parts), rate - others, tonumber(ARGV[7]))
if limit < 1 then return reply(0, 100) end
local taken = redis.call('ZCARD', KEYS[1])
if taken < limit then
  -- Rounded up, as the time was rounded down.
  redis.call('ZADD', KEYS[1], now + 1 + ARGV[3], ARGV[1])
  redis.call('PEXPIRE', KEYS[1], 2 * tonumber(ARGV[3]) + 1000)
  return reply(1, 0)
end
local first = redis.call('ZRANGE', KEYS[1], taken - limit, taken - limit, 'WITHSCORES')
return reply(0, math.max(1, tonumber(first[2]) - now))
