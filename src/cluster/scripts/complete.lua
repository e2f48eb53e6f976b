-- A fetch ended: stores what came of it, unless a write ended since it began, releases the lease, and wakes those who wait. Returns
-- what it did with the record.
-- KEYS: current namespace, the tenant's entry, the subject's entry, the lease, the result
-- ARGV: namespace, call, fences, question, what becomes of the record ("store"; "pass": it is only for those who wait; "replace": that,
--       and what is stored is dropped), record, until when it may be served (ms), for how long it is stored (ms), channel, message,
--       answers of a subject at most
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 'moved' end
local is_waited = false
local lease = redis.call('GET', KEYS[4])
if lease and string.match(lease, '^%d (%S+)') == ARGV[2] then
  is_waited = string.sub(lease, 1, 1) == '1'
  redis.call('DEL', KEYS[4])
end
local function fence(key)
  return string.match(redis.call('HGET', key, 'fence') or '', '^%S+') or ''
end
local tenant = fence(KEYS[2])
-- Nothing came of it: what only says that it began need not be stored.
if ARGV[6] == '' and redis.call('HLEN', KEYS[3]) == 1 and redis.call('HGET', KEYS[3], 'fence') == ARGV[2] .. ' 0' then
  redis.call('DEL', KEYS[3])
end
local did = 'refused'
if tenant .. ' ' .. fence(KEYS[3]) == ARGV[3] then
  did = 'done'
  if ARGV[5] == 'store' then
    redis.call('HSET', KEYS[3], ARGV[4], ARGV[7] .. ' ' .. tenant .. ' ' .. ARGV[6])
    for _, place in ipairs({2, 3}) do
      if redis.call('PTTL', KEYS[place]) < tonumber(ARGV[8]) then redis.call('PEXPIRE', KEYS[place], ARGV[8]) end
    end
    -- The fence is a field, too.
    if redis.call('HLEN', KEYS[3]) > ARGV[11] + 1 then
      for _, field in ipairs(redis.call('HRANDFIELD', KEYS[3], 3)) do
        if field ~= 'fence' and field ~= ARGV[4] then
          redis.call('HDEL', KEYS[3], field)
          break
        end
      end
    end
  else
    if ARGV[5] == 'replace' then redis.call('HDEL', KEYS[3], ARGV[4]) end
    if is_waited and ARGV[6] ~= '' then redis.call('SET', KEYS[5], ARGV[6], 'PX', ARGV[8]) end
  end
end
if is_waited then redis.call('PUBLISH', ARGV[9], ARGV[10]) end
return did
