-- Takes a charge back out of the values that check.lua keeps. Stands before it in the same script,
-- so that there is one to load; a check goes past with one comparison.
--
-- The twin of State::give_back in src/limiter/check.rs, which is the law.
--
-- KEYS     those of the check.
-- ARGV[1]  packed, little endian: u8 1; f64 the check's now in us; u32 cost; then per scope u8
--          whether it was charged (2: and leases may have been granted since, 250000 us ahead of their
--          time), u32 rate (0 = no bucket), f64 numbers since the epoch of the
--          sub-buckets that the minute and the hour were counted in (0 = no such limit).
-- ARGV[2]  packed as the check's, of what the calendar limits, with the numbers of the day and month
--          in which it was counted in place of limits.
-- Reply    how many values there were to take from.
--
-- A value keeps the time that it expires at: absent means whole, so later than needed does no harm.

if #ARGV == 2 and ARGV[2]:byte() == 2 then
  local pack, unpack = struct.pack, struct.unpack
  local scopes, found = (#ARGV[1] - 13) / 21, 0
  if scopes < 1 or #ARGV[2] ~= 13 + 10 * (#KEYS - scopes) then
    return redis.error_reply('ERR tollgate refund: keys and packed arguments for them expected')
  end
  local _, granted, cost = unpack('<BdI4', ARGV[1])
  for scope = 1, scopes do
    local charged, rate, minute, hour = unpack('<BI4dd', ARGV[1], 21 * scope - 7)
    local raw = charged > 0 and redis.pcall('GET', KEYS[scope])
    local ttl = type(raw) == 'string' and redis.call('PTTL', KEYS[scope]) or 0

    -- Read: time, debt, and for minute and hour a list of pairs of id and count, oldest first.
    local version, last, debt, windows
    if ttl > 0 and #raw == 25 then
      local m_id, m_count, h_id, h_count
      version, last, debt, m_id, m_count, h_id, h_count = unpack('<BI7I7BI4BI4', raw)
      windows = { { m_id, m_count }, { h_id, h_count } }
    elseif ttl > 0 and #raw >= 39 and #raw % 5 == 4 then
      local m_sum, m_id, m_count, m_older, h_sum, h_id, h_count
      version, last, debt, m_sum, m_id, m_count, m_older, h_sum, h_id, h_count =
        unpack('<BI7I7I4BI4BI4BI4', raw)
      local m_to = 35 + 5 * m_older
      if m_to > #raw + 1 then version = nil end
      windows = { {}, {} }
      for place = 35, #raw - 4, 5 do
        local older = windows[place < m_to and 1 or 2]
        older[#older + 1], older[#older + 2] = unpack('<BI4', raw, place)
      end
      local m, h = windows[1], windows[2]
      m[#m + 1], m[#m + 2], h[#h + 1], h[#h + 2] = m_id, m_count, h_id, h_count
    end

    -- Where the clock was set back since, nobody knows what has been earned.
    if version == 1 and last >= granted then
      found = found + 1
      if rate > 0 then
        local credit = cost * 1000000 - (last - granted) * rate
        if charged == 2 then credit = credit - 250000 * rate end
        if credit > debt then debt = 0 elseif credit > 0 then debt = debt - credit end
      end
      local sums = { 0, 0 }
      for index, window in ipairs(windows) do
        local length, counted = 1000000, minute
        if index == 2 then length, counted = 60000000, hour end
        local age = (last - last % length) / length - counted
        local kept = {}
        for place = 1, #window, 2 do
          local id, count = window[place], window[place + 1]
          if counted > 0 and age >= 0 and age <= 60 and id == counted % 256 then
            count = count > cost and count - cost or 0
          end
          if count > 0 then
            kept[#kept + 1], kept[#kept + 2] = id, count
            sums[index] = sums[index] + count
          end
        end
        -- The newest is always there.
        if #kept == 0 then kept = { 0, 0 } end
        windows[index] = kept
      end
      local m, h = windows[1], windows[2]
      local value
      if #m + #h == 4 then
        value = pack('<BI7I7BI4BI4', 1, last, debt, m[1], m[2], h[1], h[2])
      else
        local parts = { pack('<BI7I7I4BI4BI4BI4', 1, last, debt, sums[1], m[#m - 1], m[#m],
          #m / 2 - 1, sums[2], h[#h - 1], h[#h]) }
        for _, window in ipairs(windows) do
          for place = 1, #window - 2, 2 do
            parts[#parts + 1] = pack('<BI4', window[place], window[place + 1])
          end
        end
        value = table.concat(parts)
      end
      if debt == 0 and sums[1] == 0 and sums[2] == 0 then
        redis.call('DEL', KEYS[scope])
      else
        redis.call('SET', KEYS[scope], value, 'PX', ttl)
      end
    end
  end
  for index = 1, #KEYS - scopes do
    local scope, _, day, month = unpack('<BBI4I4', ARGV[2], 4 + 10 * index)
    local key = KEYS[scopes + index]
    local raw = ARGV[1]:byte(21 * scope - 7) > 0 and redis.pcall('GET', key)
    local ttl = type(raw) == 'string' and #raw == 32 and redis.call('PTTL', key) or 0
    if ttl > 0 then
      local counts = { unpack('<I4I4I4I4I4I4I4I4', raw) }
      for at = 1, 7, 2 do
        if counts[at] == (at < 5 and day or month) then
          counts[at + 1] = math.max(0, counts[at + 1] - cost)
        end
      end
      found = found + 1
      redis.call('SET', key, pack('<I4I4I4I4I4I4I4I4', counts[1], counts[2], counts[3], counts[4],
        counts[5], counts[6], counts[7], counts[8]), 'PX', ttl)
    end
  end
  return found
end

