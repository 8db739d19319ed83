-- Which replicas are there, by when they were last heard of.
--
-- KEYS[1]  sorted set: names of replicas, by this server's time in ms.
-- KEYS[2]  a name that was given when there was none: another one means that what was here is lost.
-- ARGV[1]  the replica's name, '' only to look; with ARGV[6] 'leaves' it is taken out; ARGV[2] a name for KEYS[2] if it has none; ARGV[3] a
--          time in ms; ARGV[4] how long, in ms, a replica that is not heard of still counts;
--          ARGV[5] how long, in ms, the name in KEYS[2] is kept.
-- Reply    replicas that count; those that were heard of since ARGV[3]; the name in KEYS[2]; this
--          server's time in us, as text; how many of them have a name before this one's.

local call = redis.call
local time = call('TIME')
local now = time[1] * 1000 + (time[2] - time[2] % 1000) / 1000
if ARGV[1] ~= '' then
  -- Last heard of when time began: whoever leaves is gone with those that are not heard of.
  local heard = ARGV[6] == 'leaves' and 0 or now
  call('ZADD', KEYS[1], string.format('%.0f', heard), ARGV[1])
  call('PEXPIRE', KEYS[1], 60000)
end
call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - tonumber(ARGV[4])))
call('SET', KEYS[2], ARGV[2], 'NX')
call('PEXPIRE', KEYS[2], ARGV[5])
local rank = 0
for _, name in ipairs(call('ZRANGE', KEYS[1], 0, -1)) do
  if name < ARGV[1] then rank = rank + 1 end
end
return {
  call('ZCARD', KEYS[1]), call('ZCOUNT', KEYS[1], ARGV[3], '+inf'), call('GET', KEYS[2]),
  string.format('%.0f', time[1] * 1000000 + time[2]), rank,
}
