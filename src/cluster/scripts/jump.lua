#!lua flags=allow-oom
-- The clock jumped: a new namespace begins, unless another replica has seen to that.
-- KEYS: jumps, current namespace
-- ARGV: known jumps
if (redis.call('GET', KEYS[1]) or '0') == ARGV[1] then
  redis.call('INCR', KEYS[1])
  redis.call('SET', KEYS[2], '')
end
return 1
