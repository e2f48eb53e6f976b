#!lua flags=allow-oom
-- A replica ends in order.
-- KEYS: members, live, about
-- ARGV: id
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[3], ARGV[1])
return 1
