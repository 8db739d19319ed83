-- A small table that all replicas read, and a log of what was done to it.
--
-- KEYS[1]  hash: fields and values; `v` counts its changes; `e` is a name that it was given when it
--          was begun, so that a table which was lost and begun anew is not taken for the old one.
-- KEYS[2]  list: the log, newest first.
-- ARGV[1]  `version`: "e:v", nil without a table.
--          `read`: version, all fields and values, the log.
--          `change`: then a name for a new table; the most fields; the most lines of the log; a line
--          for it, or '' for none; then pairs of field and value, '' to delete. The new version.

local call, hash, log = redis.call, KEYS[1], KEYS[2]

local function version()
  local v = call('HGET', hash, 'v')
  return v and (call('HGET', hash, 'e') or '') .. ':' .. v
end

if ARGV[1] == 'version' then return version() end
if ARGV[1] == 'read' then
  return { version() or '', call('HGETALL', hash), call('LRANGE', log, 0, -1) }
end

local more = 0
for place = 6, #ARGV, 2 do
  local is_there = call('HEXISTS', hash, ARGV[place]) == 1
  if ARGV[place + 1] == '' then
    if is_there then more = more - 1 end
  elseif not is_there then
    more = more + 1
  end
end
if more > 0 and call('HLEN', hash) - 2 + more > tonumber(ARGV[3]) then
  return redis.error_reply('ERR tollgate table full')
end
if call('HEXISTS', hash, 'v') == 0 then call('HSET', hash, 'e', ARGV[2]) end
call('HINCRBY', hash, 'v', 1)
for place = 6, #ARGV, 2 do
  if ARGV[place + 1] == '' then
    call('HDEL', hash, ARGV[place])
  else
    call('HSET', hash, ARGV[place], ARGV[place + 1])
  end
end
if ARGV[5] ~= '' then
  call('LPUSH', log, ARGV[5])
  call('LTRIM', log, 0, tonumber(ARGV[4]) - 1)
end
return version()
