-- Charges what a replica let pass while it was alone, whatever room there is. Stands before check.lua
-- in the same script; a check goes past with one comparison.
--
-- The twin of charge in src/limiter/own.rs, which is the law.
--
-- KEYS[1]  that of one scope. KEYS[2], if there is one: that of its days and months.
-- ARGV[1]  packed, little endian: u32 sequence number, echoed; f64 time in us by this server's clock
--          after which nothing is to be charged, 0 = never; u32 rate (0 = no bucket); f64 units of
--          debt to add; f64 the least that the debt comes to; u8 how many counts the minute has.
-- ARGV[2]  packed: for each count, the minute's first, u8 age in sub-buckets, u32 count; then for
--          two days and two months u32 number since the epoch, u32 count (0 = none).
-- ARGV[3]  'charge'
-- Reply    packed: u32 sequence number; u8 0, or 2 where it came too late; f64 now in us.

if ARGV[3] == 'charge' then
  local call, pack, unpack = redis.call, struct.pack, struct.unpack
  local seq, before, rate, units, level, of_minute = unpack('<I4dI4ddB', ARGV[1])
  local time = call('TIME')
  local now = time[1] * 1000000 + time[2]
  if before > 0 and now > before then return pack('<I4Bd', seq, 2, now) end

  -- Read: time, debt, and counts by age at that time, for minute and hour.
  local raw = redis.pcall('GET', KEYS[1])
  local version, last, debt, counts = 1, now, 0, { {}, {} }
  local function read(window, length, id, count)
    local age = ((last - last % length) / length - id) % 256
    if count > 0 and age <= 60 then counts[window][age] = (counts[window][age] or 0) + count end
  end
  if type(raw) == 'string' and #raw == 25 then
    local m_id, m_count, h_id, h_count
    version, last, debt, m_id, m_count, h_id, h_count = unpack('<BI7I7BI4BI4', raw)
    read(1, 1000000, m_id, m_count)
    read(2, 60000000, h_id, h_count)
  elseif type(raw) == 'string' and #raw >= 39 and #raw % 5 == 4 then
    local m_sum, m_id, m_count, m_older, h_sum, h_id, h_count
    version, last, debt, m_sum, m_id, m_count, m_older, h_sum, h_id, h_count =
      unpack('<BI7I7I4BI4BI4BI4', raw)
    read(1, 1000000, m_id, m_count)
    read(2, 60000000, h_id, h_count)
    for place = 35, #raw - 4, 5 do
      local id, count = unpack('<BI4', raw, place)
      if place < 35 + 5 * m_older then read(1, 1000000, id, count) else read(2, 60000000, id, count) end
    end
  end
  if version ~= 1 then last, debt, counts = now, 0, { {}, {} } end

  -- Bring it to now; a clock that is behind it stands still, or takes it along.
  local at = now
  if now < last and last - now <= 1000000 then at = last end
  if at > last then
    local paid = (at - last) * rate
    if paid < debt then debt = debt - paid else debt = 0 end
  end
  if rate == 0 then debt, units, level = 0, 0, 0 end
  debt = debt + units
  if debt < level then debt = level end
  for window, length in ipairs({ 1000000, 60000000 }) do
    local gone = (at - at % length) / length - (last - last % length) / length
    local aged = {}
    for age, count in pairs(counts[window]) do
      if gone > 0 then age = age + gone end
      if age <= 60 then aged[age] = count end
    end
    counts[window] = aged
  end
  local of_quotas = #ARGV[2] - 31
  for index = 1, (of_quotas - 1) / 5 do
    local window = index <= of_minute and 1 or 2
    local age, count = unpack('<BI4', ARGV[2], 5 * index - 4)
    counts[window][age] = (counts[window][age] or 0) + count
  end

  -- Write: pairs of id and count, oldest first; the newest is always there.
  local whole, sums, lists = at, { 0, 0 }, {}
  if rate > 0 then whole = at + (debt + -debt % rate) / rate end
  for window, length in ipairs({ 1000000, 60000000 }) do
    local current, list = (at - at % length) / length, {}
    for age = 60, 0, -1 do
      local count = counts[window][age]
      if count then
        list[#list + 1], list[#list + 2] = (current - age) % 256, count
        sums[window] = sums[window] + count
        local leaves = (current - age + 61) * length
        if leaves > whole then whole = leaves end
      end
    end
    if #list == 0 then list = { 0, 0 } end
    lists[window] = list
  end
  local m, h = lists[1], lists[2]
  local value
  if #m + #h == 4 then
    value = pack('<BI7I7BI4BI4', 1, at, debt, m[1], m[2], h[1], h[2])
  else
    local parts = { pack('<BI7I7I4BI4BI4BI4', 1, at, debt, sums[1], m[#m - 1], m[#m],
      #m / 2 - 1, sums[2], h[#h - 1], h[#h]) }
    for _, list in ipairs(lists) do
      for place = 1, #list - 2, 2 do
        parts[#parts + 1] = pack('<BI4', list[place], list[place + 1])
      end
    end
    value = table.concat(parts)
  end
  local ttl = whole - now
  if ttl < 1 then ttl = 1 end
  call('SET', KEYS[1], value, 'PX', string.format('%.0f', (ttl + -ttl % 1000) / 1000))

  -- Days, then months, as check.lua does: in place of one that holds nothing, then of one beyond the
  -- next, then of the older. Kept longer than needed, as nobody says here which of them it is.
  if KEYS[2] then
    local kept = redis.pcall('GET', KEYS[2])
    if type(kept) ~= 'string' or #kept ~= 32 then kept = string.rep('\0', 32) end
    local all, ms = { unpack('<I4I4I4I4I4I4I4I4', kept) }, 3 * 86400000
    for index = 0, 3 do
      local number, count = unpack('<I4I4', ARGV[2], of_quotas + 8 * index)
      if count > 0 then
        local from = index < 2 and 1 or 5
        local at, worth = from, { 0, 0 }
        if index > 1 then ms = 63 * 86400000 end
        for place = 1, 2 do
          local its = all[from + 2 * place - 2]
          if all[from + 2 * place - 1] > 0 then worth[place] = its <= number + 1 and 2 or 1 end
        end
        if worth[2] < worth[1] or worth[2] == worth[1] and all[from] > all[from + 2] then
          at = from + 2
        end
        if all[from] == number then at = from elseif all[from + 2] == number then at = from + 2 end
        if all[at] ~= number then all[at], all[at + 1] = number, 0 end
        all[at + 1] = all[at + 1] + count
      end
    end
    local left = call('PTTL', KEYS[2])
    if left > ms then ms = left end
    call('SET', KEYS[2], pack('<I4I4I4I4I4I4I4I4', all[1], all[2], all[3], all[4], all[5], all[6],
      all[7], all[8]), 'PX', string.format('%.0f', ms))
  end
  return pack('<I4Bd', seq, 0, now)
end

