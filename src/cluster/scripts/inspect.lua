#!lua flags=no-writes,allow-oom
-- What is stored for a subject. Returns the time, the fence of the tenant, and the subject's entry.
-- KEYS: the tenant's entry, the subject's entry
local time = redis.call('TIME')
local tenant = string.match(redis.call('HGET', KEYS[1], 'fence') or '', '^%S+') or ''
return {tonumber(time[1]), tonumber(time[2]), tenant, redis.call('HGETALL', KEYS[2])}
