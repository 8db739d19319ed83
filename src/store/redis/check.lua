-- Checks every limit of one request and charges all of them or none.
--
-- The twin of src/limiter/check.rs, which is the law: token bucket as integer debt (1 token =
-- 10^6 units, `rate` units come back each microsecond), strict sliding windows of 60 sub-buckets of
-- 1 s (minute) and 60 s (hour). A scope in shadow never refuses and is charged only where it has
-- room. All numbers are integers below 2^53, where a double is exact.
--
-- KEYS     One per scope: the tier's, then those of endpoint rules. All of one identity.
-- ARGV[1]  packed, little endian: u32 sequence number, echoed; f64 now in us, 0 = this server's
--          TIME, negative = the same, and nothing is done once it is past that time; u32 cost; then
--          per scope u8 mode (0 enforce, 1 shadow), u32 rate, burst, minute, hour (0 = no such limit).
-- ARGV[2]  if there is one that is not empty: only look. What the request would meet is reported, and
--          nothing written.
-- ARGV[3]  if there is one: a lease is asked for, packed: u32 tokens; u32 span in us, 250000 at most;
--          u32 divisor. For one scope, enforced: where a divisor-th of what is left, and what is wished
--          for, are enough for two such requests, so many tokens are charged at once, to the bucket as
--          if at the end of the span, which ends with the second at the latest.
-- Reply    packed: u32 sequence number; u8 verdict (0 allow, 1 deny, 2 came too late, with nothing
--          behind the time); f64 now in us; then per scope and for second, minute, hour: u32
--          remaining, f64 wait in us (0 = had room, 4e15 = never), f64 whole_at in us. What has no
--          limit is 0. Where a lease was asked for, then: u32 tokens
--          (0 = an ordinary check), u32 span in us.
-- Value    packed: u8 version; u56 time of the last charge in us; u56 debt; then
--          light, 25 bytes: for minute and hour, u8 id and u32 count of their only sub-bucket; or
--          full, 34 + 5 * older bytes: for minute and hour, u32 sum, u8 id and u32 count of the
--          newest sub-bucket; in between, u8 how many older ones the minute has; then the older
--          ones of the minute, oldest first, and of the hour: u8 id, u32 count.
--          An id is the number of the sub-bucket since the epoch, mod 256: enough, since none is
--          more than 60 older than the time of the last charge. Any other value counts as absent.
--
-- A value expires when all of it is whole, so absent and untouched are the same. A denial writes
-- nothing. A clock up to a second behind a value stands still there until it has caught up; where
-- it stepped back further, the value moves back with it, also on a denial. When the caller gives
-- the time, its clock need not run as this server's does, so values then stay an hour longer.
-- Straight-line code, no closures, few strings: each call of a function costs more than arithmetic.

local arg = ARGV[1]
local scopes = #KEYS
if #ARGV < 1 or #ARGV > 3 or scopes < 1 or #arg ~= 16 + 17 * scopes
  or #ARGV == 3 and (scopes > 1 or #ARGV[3] ~= 12) then
  return redis.error_reply('ERR tollgate check: keys and one packed argument for them expected')
end

local call, pack, unpack, sub = redis.call, struct.pack, struct.unpack, string.sub
local NEVER, STANDSTILL = 4e15, 1000000
local seq, given, cost = unpack('<I4dI4', arg)
local now, linger = given, 3600000
if given <= 0 then
  local time = call('TIME')
  now, linger = time[1] * 1000000 + time[2], 0
  if given < 0 and now > -given then return pack('<I4Bd', seq, 2, now) end
end
local minute_of_now = (now - now % 1000000) / 1000000
local hour_of_now = (now - now % 60000000) / 60000000

-- The first round charges as it goes. A denial by a later scope takes that back: a second round
-- then charges nothing. With one scope there is never a second round.
local is_check = #ARGV == 1 or #ARGV == 3 and ARGV[2] == ''
local verdict, charging, again = 0, is_check, true
local lease, span = 0, 0
local raws, values, expiries, reports = {}, {}, {}, ''
while again do
  again, values, expiries, reports = false, {}, {}, ''
  for scope = 1, scopes do
    local mode, rate, burst, minute, hour = unpack('<BI4I4I4I4', arg, 17 * scope)

    -- Read.
    local raw = raws[scope]
    if raw == nil then
      raw = redis.pcall('GET', KEYS[scope])
      if scopes > 1 then raws[scope] = raw end
    end
    local last, debt = now, 0
    local m_sum, m_id, m_count, m_older = 0, 0, 0, 0
    local h_sum, h_id, h_count, h_older = 0, 0, 0, 0
    local changed, m_from, m_to, h_to = false, 35, 35, 35
    if type(raw) == 'string' then
      local version
      if #raw == 25 then
        version, last, debt, m_id, m_count, h_id, h_count = unpack('<BI7I7BI4BI4', raw)
        m_sum, h_sum = m_count, h_count
      elseif #raw >= 39 and #raw % 5 == 4 then
        version, last, debt, m_sum, m_id, m_count, m_older, h_sum, h_id, h_count =
          unpack('<BI7I7I4BI4BI4BI4', raw)
        m_to, h_to = 35 + 5 * m_older, #raw + 1
        h_older = (h_to - m_to) / 5
      end
      if version ~= 1 or h_older < 0 then
        last, debt, m_to, h_to = now, 0, 35, 35
        m_sum, m_id, m_count, m_older = 0, 0, 0, 0
        h_sum, h_id, h_count, h_older = 0, 0, 0, 0
      end
    end
    local h_from = m_to

    -- Bring it to now: `at` by its own clock, which is `behind` ahead of ours where it stands still.
    local at, behind, minute_now, hour_now = now, 0, minute_of_now, hour_of_now
    local minute_last = (last - last % 1000000) / 1000000
    local hour_last = (last - last % 60000000) / 60000000
    if now > last then
      if rate > 0 and debt > 0 then
        -- Exact wherever it is below the debt, and only there is it used.
        local paid = (now - last) * rate
        if paid < debt then debt = debt - paid else debt = 0 end
      end
      if m_count > 0 and minute_now > minute_last then
        if minute_now - minute_last > 60 or (minute_now - m_id) % 256 > 60 then
          m_sum, m_count, m_from, m_older = 0, 0, m_to, 0
        else
          while m_older > 0 do
            local id, count = unpack('<BI4', raw, m_from)
            if (minute_now - id) % 256 <= 60 then break end
            m_sum, m_from, m_older = m_sum - count, m_from + 5, m_older - 1
          end
        end
      end
      if h_count > 0 and hour_now > hour_last then
        if hour_now - hour_last > 60 or (hour_now - h_id) % 256 > 60 then
          h_sum, h_count, h_from, h_older = 0, 0, h_to, 0
        else
          while h_older > 0 do
            local id, count = unpack('<BI4', raw, h_from)
            if (hour_now - id) % 256 <= 60 then break end
            h_sum, h_from, h_older = h_sum - count, h_from + 5, h_older - 1
          end
        end
      end
    elseif now < last and (debt > 0 or m_count > 0 or h_count > 0) then
      if last - now <= STANDSTILL then
        at, behind, minute_now, hour_now = last, last - now, minute_last, hour_last
      else
        -- Ages stay, ids move, no debt is paid.
        changed = true
        if minute_now ~= minute_last or hour_now ~= hour_last then
          local moved = { sub(raw, 1, 34) }
          for place = 35, h_to - 5, 5 do
            local id, count = unpack('<BI4', raw, place)
            local by = minute_now - minute_last
            if place >= h_from then by = hour_now - hour_last end
            moved[#moved + 1] = pack('<BI4', (id + by) % 256, count)
          end
          raw = table.concat(moved)
          m_id = (m_id + minute_now - minute_last) % 256
          h_id = (h_id + hour_now - hour_last) % 256
        end
      end
    end
    -- Without a rate nothing could ever pay it back.
    if rate == 0 then debt = 0 end

    -- How long the cost would have to wait.
    local s_wait, m_wait, h_wait = 0, 0, 0
    if rate > 0 then
      local short = debt + (cost - burst) * 1000000
      if cost > burst then
        s_wait = NEVER
      elseif short > 0 then
        s_wait = (short + -short % rate) / rate + behind
      end
    end
    if minute > 0 then
      local over = m_sum + cost - minute
      if cost > minute then
        m_wait = NEVER
      elseif over > 0 then
        local id, place = m_id, m_from
        while place < m_to do
          local count
          id, count = unpack('<BI4', raw, place)
          over, place = over - count, place + 5
          if over <= 0 then break end
        end
        if over > 0 then id = m_id end
        m_wait = (minute_now - (minute_now - id) % 256 + 61) * 1000000 - now
      end
    end
    if hour > 0 then
      local over = h_sum + cost - hour
      if cost > hour then
        h_wait = NEVER
      elseif over > 0 then
        local id, place = h_id, h_from
        while place < h_to do
          local count
          id, count = unpack('<BI4', raw, place)
          over, place = over - count, place + 5
          if over <= 0 then break end
        end
        if over > 0 then id = h_id end
        h_wait = (hour_now - (hour_now - id) % 256 + 61) * 60000000 - now
      end
    end
    local blocked = s_wait > 0 or m_wait > 0 or h_wait > 0
    if blocked and mode == 0 then
      again = again or (charging and scope > 1)
      verdict, charging = 1, false
    end

    -- Of a lease, all is charged at once.
    if charging and not blocked and #ARGV == 3 and mode == 0 then
      local wished, most, divisor = unpack('<I4I4I4', ARGV[3])
      span = 1000000 - now % 1000000
      if most < span then span = most end
      if span > 250000 then span = 250000 end
      local left, ahead = 4294967295, debt
      if rate > 0 then
        if span * rate > ahead then ahead = span * rate end
        left = burst * 1000000 - ahead
        if left < 0 then left = 0 end
        left = (left - left % 1000000) / 1000000
      end
      if minute > 0 and minute - m_sum < left then left = minute - m_sum end
      if hour > 0 and hour - h_sum < left then left = hour - h_sum end
      if divisor > 0 then left = (left - left % divisor) / divisor end
      if wished < left then left = wished end
      if span >= 20000 and left >= 2 * cost and left >= 2 then
        lease, cost, debt = left, left, ahead
      end
    end

    -- Charge.
    local m_pushed, h_pushed = '', ''
    if charging and not blocked then
      changed = true
      if rate > 0 then debt = debt + cost * 1000000 end
      if minute > 0 then
        m_sum = m_sum + cost
        local id = minute_now % 256
        if m_count > 0 and m_id == id then
          m_count = m_count + cost
        else
          if m_count > 0 then m_pushed, m_older = pack('<BI4', m_id, m_count), m_older + 1 end
          m_id, m_count = id, cost
        end
      end
      if hour > 0 then
        h_sum = h_sum + cost
        local id = hour_now % 256
        if h_count > 0 and h_id == id then
          h_count = h_count + cost
        else
          if h_count > 0 then h_pushed, h_older = pack('<BI4', h_id, h_count), h_older + 1 end
          h_id, h_count = id, cost
        end
      end
    end

    -- When it is whole again, and the value to write.
    local s_whole, m_whole, h_whole = at, at, at
    if rate > 0 then s_whole = at + (debt + -debt % rate) / rate end
    if m_count > 0 then m_whole = (minute_now - (minute_now - m_id) % 256 + 61) * 1000000 end
    if h_count > 0 then h_whole = (hour_now - (hour_now - h_id) % 256 + 61) * 60000000 end
    if changed then
      local whole = s_whole
      if m_whole > whole then whole = m_whole end
      if h_whole > whole then whole = h_whole end
      whole = whole - now
      if whole < 1 then whole = 1 end
      expiries[scope] = (whole + -whole % 1000) / 1000 + linger
      local value
      if m_older + h_older == 0 then
        value = pack('<BI7I7BI4BI4', 1, at, debt, m_id, m_count, h_id, h_count)
      else
        value = pack('<BI7I7I4BI4BI4BI4', 1, at, debt, m_sum, m_id, m_count, m_older,
          h_sum, h_id, h_count) .. sub(raw, m_from, m_to - 1) .. m_pushed
          .. sub(raw, h_from, h_to - 1) .. h_pushed
      end
      values[scope] = value
    end

    -- Report. What shadow would deny has nothing left.
    local s_left, m_left, h_left = 0, 0, 0
    if rate > 0 then
      local left = burst * 1000000 - debt
      if left > 0 and not (mode == 1 and s_wait > 0) then s_left = (left - left % 1000000) / 1000000 end
    else
      s_whole = 0
    end
    if minute > 0 then
      if m_sum < minute and not (mode == 1 and m_wait > 0) then m_left = minute - m_sum end
    else
      m_whole = 0
    end
    if hour > 0 then
      if h_sum < hour and not (mode == 1 and h_wait > 0) then h_left = hour - h_sum end
    else
      h_whole = 0
    end
    reports = reports .. pack('<I4ddI4ddI4dd', s_left, s_wait, s_whole, m_left, m_wait, m_whole,
      h_left, h_wait, h_whole)
  end

end

for scope = 1, scopes do
  local value = values[scope]
  if value and is_check then call('SET', KEYS[scope], value, 'PX', expiries[scope]) end
end
if #ARGV == 3 then reports = reports .. pack('<I4I4', lease, lease > 0 and span or 0) end
return pack('<I4Bd', seq, verdict, now) .. reports
