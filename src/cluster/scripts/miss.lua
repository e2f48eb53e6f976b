#!lua flags=allow-oom
-- What replicas have for a question: an answer, a fetch in progress, or nothing; then the caller may fetch it. Returns what it found,
-- the time, the fences of the tenant and of the subject, for how many more milliseconds the platform may lag behind a write, and the
-- answer or the call that fetches it.
-- KEYS: current namespace, the tenant's entry, the subject's entry, the lease, members, the result of the call that was waited for
-- ARGV: namespace, latest time of execution (ms), call, member, question, what will do ("any": also an answer that is stored; "newer":
--       one that is being fetched; "own": only a fetch of its own), how long an entry is stored at least (ms), how long the caller may
--       fetch (ms), without a heartbeat for so long a replica is silent (ms)
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local tenant, subject, lag = '', '', 0
local function reply(what, found)
  return {what, tonumber(time[1]), tonumber(time[2]), tenant, subject, lag, found or ''}
end
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return reply('moved') end
if now > tonumber(ARGV[2]) then return reply('late') end
local function fence(key)
  local value = redis.call('HGET', key, 'fence')
  if not value then
    value = ARGV[3] .. ' 0'
    redis.call('HSET', key, 'fence', value)
  end
  if redis.call('PTTL', key) < tonumber(ARGV[7]) then redis.call('PEXPIRE', key, ARGV[7]) end
  local name, lags_until = string.match(value, '^(%S+) (%d+)$')
  lag = math.max(lag, tonumber(lags_until) - now)
  return name
end
tenant, subject = fence(KEYS[2]), fence(KEYS[3])
if ARGV[6] == 'own' then return reply('fetch') end
if ARGV[6] == 'any' then
  local stored = redis.call('HGET', KEYS[3], ARGV[5])
  if stored then
    local expires, under, record = string.match(stored, '^(%d+) (%S+) (.*)$')
    if under == tenant and tonumber(expires) > now then return reply('stored', record) end
    redis.call('HDEL', KEYS[3], ARGV[5])
  end
end
local passing = KEYS[6] and redis.call('GET', KEYS[6])
if passing then return reply('passing', passing) end
local lease, waited = redis.call('GET', KEYS[4]), '0'
if lease then
  local call, member, fences
  waited, call, member, fences = string.match(lease, '^(%d) (%S+) (%S+) (.*)$')
  local heartbeat = redis.call('ZSCORE', KEYS[5], member)
  if heartbeat and tonumber(heartbeat) >= now - ARGV[9] and fences == tenant .. ' ' .. subject then
    if waited == '0' then redis.call('SET', KEYS[4], '1' .. string.sub(lease, 2), 'KEEPTTL') end
    return reply('busy', call)
  end
end
-- Whoever waits for the earlier one is woken when this ends.
redis.call('SET', KEYS[4], waited .. ' ' .. ARGV[3] .. ' ' .. ARGV[4] .. ' ' .. tenant .. ' ' .. subject, 'PX', ARGV[8])
return reply('fetch')
