#!lua flags=allow-oom
-- Records that a replica lives. Returns what it did, the time, and how many replicas live and are known.
-- KEYS: members, live, about, protocol, born, current namespace, jumps
-- ARGV: id, lease and name, protocol, latest time of execution (ms), whether slots may count on it, whether it joins, namespace,
--       without a heartbeat for so long a replica is silent (ms), the namespace that was current when it was found
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local function reply(what, live, members)
  return {what, tonumber(time[1]), tonumber(time[2]), live, members}
end
if now > tonumber(ARGV[4]) then return reply('late', 0, 0) end
local current = redis.call('GET', KEYS[6]) or ''
if current ~= ARGV[7] then
  -- Whoever joins may begin one, in place of the one that was current before it asked the server which run it is.
  if ARGV[6] == '0' or current ~= ARGV[9] then return reply('moved', 0, 0) end
end
if ARGV[6] == '1' then
  -- Nobody may have been there when the clock was set back.
  local last = redis.call('ZRANGE', KEYS[1], -1, -1, 'WITHSCORES')
  if last[2] and tonumber(last[2]) > now then
    redis.call('INCR', KEYS[7])
    redis.call('SET', KEYS[6], '')
    return reply('moved', 0, 0)
  end
end
local protocol = redis.call('GET', KEYS[4])
if protocol and protocol ~= ARGV[3] then return reply(protocol, 0, 0) end
redis.call('SET', KEYS[4], ARGV[3], 'PX', 10000)
redis.call('SET', KEYS[6], ARGV[7])
redis.call('SET', KEYS[5], now, 'NX')
local silent = now - tonumber(ARGV[8])
local function remove(id)
  redis.call('ZREM', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[3], id)
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now - 600000)) do remove(id) end
if ARGV[6] == '1' then
  -- An earlier process of the same name does not return.
  local name = string.match(ARGV[2], '^%d+ (.*)$')
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', silent)) do
    local about = redis.call('HGET', KEYS[3], id)
    if id ~= ARGV[1] and about and string.match(about, '^%d+ (.*)$') == name then remove(id) end
  end
end
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('HSET', KEYS[3], ARGV[1], ARGV[2])
if ARGV[5] == '1' then
  redis.call('ZADD', KEYS[2], now, ARGV[1])
else
  redis.call('ZREM', KEYS[2], ARGV[1])
end
for _, place in ipairs({1, 2, 3, 5}) do redis.call('PEXPIRE', KEYS[place], 3600000) end
return reply('ok', redis.call('ZCOUNT', KEYS[1], silent, '+inf'), redis.call('ZCARD', KEYS[1]))
