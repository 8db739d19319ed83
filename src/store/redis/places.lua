-- Says how many places of one key its holder holds, and for how much longer: what check.lua has taken
-- is given back by this, and kept by it while it lasts. Stands before it in the same script.
--
-- KEYS     one, of places; see check.lua for its value.
-- ARGV[1]  empty.
-- ARGV[2]  packed, little endian: u8 3; u64 who; u32 for how many ms; u32 how many, 0 for none.
-- Reply    how many others hold.

if #ARGV == 2 and ARGV[2]:byte() == 3 and #ARGV[2] == 17 and #KEYS == 1 then
  local lease, own = struct.unpack('<I4I4', ARGV[2], 10)
  local who = ARGV[2]:sub(2, 9)
  local time = redis.call('TIME')
  local now = time[1] * 1000000 + time[2]
  local raw = redis.pcall('GET', KEYS[1])
  if type(raw) ~= 'string' or #raw % 20 ~= 0 then raw = '' end
  local kept, last, others = {}, 0, 0
  for at = 1, #raw, 20 do
    local count, ends = struct.unpack('<I4d', raw, at + 8)
    if raw:sub(at, at + 7) ~= who and count > 0 and ends > now and ends <= now + 60000000 then
      kept[#kept + 1] = raw:sub(at, at + 19)
      others = others + count
      if ends > last then last = ends end
    end
  end
  if own > 0 then
    local ends = now + lease * 1000
    kept[#kept + 1] = who .. struct.pack('<I4d', own, ends)
    if ends > last then last = ends end
  end
  if #kept == 0 then
    redis.call('DEL', KEYS[1])
  else
    local left = last - now
    redis.call('SET', KEYS[1], table.concat(kept), 'PX', (left + -left % 1000) / 1000)
  end
  return others
end
