-- Checks every limit of one request and charges all of them or none.
--
-- The twin of src/limiter/check.rs, which is the law: token bucket as integer debt (1 token =
-- 10^6 units, `rate` units come back each microsecond), strict sliding windows of 60 sub-buckets of
-- 1 s (minute) and 60 s (hour). A scope in shadow never refuses and is charged only where it has
-- room. All numbers are integers below 2^53, where a double is exact.
--
-- KEYS     One per scope: the tier's, then those of endpoint rules. Then one for each of a scope's
--          further limits. All of one identity.
-- ARGV[1]  packed, little endian: u32 sequence number, echoed; f64 now in us, 0 = this server's
--          TIME, negative = the same, and nothing is done once it is past that time; u32 cost; then
--          per scope u8 mode (0 enforce, 1 shadow), u32 rate, burst, minute, hour (0 = no such limit).
-- ARGV[2]  if there is one that is not empty, packed: u8 what to do (0 check, 1 only look: what the
--          request would meet is reported and nothing written, 2 give back); u64 who asks; u32 for how
--          many ms a place is held; then for each further limit u8 its scope, from 1 on; u8 kind; two
--          u32: kind 1, by the calendar of UTC: limit of the day, of the month (0 = no such limit);
--          kind 2, requests at once: the limit, and 0.
-- ARGV[3]  if there is one: a lease is asked for, packed: u32 tokens; u32 span in us, 250000 at most;
--          u32 divisor. For one scope, enforced. The span ends with the second at the latest, and fewer
--          tokens are for less of it. Where they, and a divisor-th of what is left, are enough for two
--          such requests, so many are charged at once, to the bucket as if at the end of the span.
-- Reply    packed: u32 sequence number; u8 verdict (0 allow, 1 deny, 2 came too late, with nothing
--          behind the time); f64 now in us; then per scope and for second, minute, hour: u32
--          remaining, f64 wait in us (0 = had room, 4e15 = never), f64 whole_at in us. What has no
--          limit is 0. Then the same for each further limit, twice: for day and month, or for requests
--          at once and zeros. Where a lease was asked for, then: u32 tokens (0 = an ordinary check),
--          u32 span in us.
-- Value    packed: u8 version; u56 time of the last charge in us; u56 debt; then
--          light, 25 bytes: for minute and hour, u8 id and u32 count of their only sub-bucket; or
--          full, 34 + 5 * older bytes: for minute and hour, u32 sum, u8 id and u32 count of the
--          newest sub-bucket; in between, u8 how many older ones the minute has; then the older
--          ones of the minute, oldest first, and of the hour: u8 id, u32 count.
--          An id is the number of the sub-bucket since the epoch, mod 256: enough, since none is
--          more than 60 older than the time of the last charge. Any other value counts as absent.
--
-- Values of further limits. Calendar, 32 bytes: for days, then for months, twice u32 number since the
--          epoch and u32 count. Places, 20 bytes for each who holds some: u64 who, u32 how many, f64
--          until when in us; what is past its time is free again, as its holder is gone.
--
-- A value expires when all of it is whole, so absent and untouched are the same. A denial writes
-- nothing. A clock up to a second behind a value stands still there until it has caught up; where
-- it stepped back further, the value moves back with it, also on a denial. When the caller gives
-- the time, its clock need not run as this server's does, so values then stay an hour longer.
-- Straight-line code, no closures, few strings: each call of a function costs more than arithmetic.

local arg, how = ARGV[1], ARGV[2]
if how == '' then how = nil end
local scopes = (#(arg or '') - 16) / 17
local further = #KEYS - scopes
if #ARGV < 1 or #ARGV > 3 or scopes < 1 or further < 0 or (how and #how ~= 13 + 10 * further)
  or #ARGV == 3 and (scopes > 1 or #ARGV[3] ~= 12) then
  return redis.error_reply('ERR tollgate check: keys and packed arguments for them expected')
end

local call, pack, unpack, sub = redis.call, struct.pack, struct.unpack, string.sub
local NEVER, STANDSTILL, DAY = 4e15, 1000000, 86400000000
local seq, given, cost = unpack('<I4dI4', arg)
local now, linger = given, 3600000
if given <= 0 then
  local time = call('TIME')
  now, linger = time[1] * 1000000 + time[2], 0
  if given < 0 and now > -given then return pack('<I4Bd', seq, 2, now) end
end
local minute_of_now = (now - now % 1000000) / 1000000
local hour_of_now = (now - now % 60000000) / 60000000

local looks = how ~= nil and how:byte() == 1
local verdict, charging = 0, not looks
local full, charged, noted = nil, nil, nil
local days, months

-- Further limits first, which few have: what they refuse, no other need charge.
if further > 0 then
  full, charged, noted = {}, {}, {}
  local floor = math.floor
  local function length(month)
    local name, year = month % 12 + 1, 1970 + floor(month / 12)
    if name == 2 then
      return (year % 4 == 0 and (year % 100 ~= 0 or year % 400 == 0)) and 29 or 28
    end
    return (name == 4 or name == 6 or name == 9 or name == 11) and 30 or 31
  end
  -- Days and months of UTC: which one it is, when it is over, and when the next three are. Years are
  -- counted from 1 March, so that the odd day comes last.
  local today = floor(now / DAY)
  local day = today + 719468
  local of_era = day % 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524)
    - floor(of_era / 146096)) / 365)
  local of_year = of_era - 365 * year - floor(year / 4) + floor(year / 100)
  local from_march = floor((5 * of_year + 2) / 153)
  local month = (floor(day / 146097) * 400 + year) * 12 + from_march + 2 - 23640
  local first = today - of_year + floor((153 * from_march + 2) / 5)
  local over = first + length(month)
  local next_over = over + length(month + 1)
  local third_over = next_over + length(month + 2)
  local fourth_over = third_over + length(month + 3)
  days = { 1, today, (today + 1) * DAY, (today + 2) * DAY, (today + 3) * DAY, (today + 4) * DAY }
  months = { 5, month, over * DAY, next_over * DAY, third_over * DAY, fourth_over * DAY }

  for index = 1, further do
    local scope, kind, one, other = unpack('<BBI4I4', how, 4 + 10 * index)
    local raw = redis.pcall('GET', KEYS[scopes + index])
    local note = { scope = scope, kind = kind, limits = { one, other }, waits = { 0, 0 } }
    if kind == 1 then
      if type(raw) ~= 'string' or #raw ~= 32 then raw = string.rep('\0', 32) end
      local counts = { unpack('<I4I4I4I4I4I4I4I4', raw) }
      -- What is spent in the present one and the three after it.
      note.spent = {}
      for which, period in ipairs({ days, months }) do
        local spent, limit = { 0, 0, 0, 0 }, note.limits[which]
        for at = period[1], period[1] + 2, 2 do
          local ahead = counts[at] - period[2] + 1
          if ahead >= 1 and ahead <= 4 then spent[ahead] = counts[at + 1] end
        end
        if limit > 0 then
          if cost > limit then
            note.waits[which] = NEVER
          elseif math.max(spent[1], spent[2]) + cost > limit then
            -- A clock that was ahead may have used up the next ones, too.
            local at = 2
            while at < 5 and math.max(spent[at], spent[at + 1] or 0) + cost > limit do at = at + 1 end
            note.waits[which] = period[at + 1] - now
          end
        end
        note.spent[which] = spent
      end
      note.counts = counts
    else
      -- Places: who holds none any more, and who is gone, is left out.
      local who, kept, held, own = sub(how, 2, 9), {}, 0, 0
      if type(raw) ~= 'string' or #raw % 20 ~= 0 then raw = '' end
      for at = 1, #raw, 20 do
        local count, ends = unpack('<I4d', raw, at + 8)
        -- Later than a minute from now: the clock was ahead.
        if count > 0 and ends > now and ends <= now + 60000000 then
          held = held + count
          if sub(raw, at, at + 7) == who then
            own = count
          else
            kept[#kept + 1] = sub(raw, at, at + 19)
          end
        end
      end
      note.kept, note.held, note.own = kept, held, own
      if held >= one then note.waits[1] = 1000000 end
    end
    noted[index] = note
    if note.waits[1] > 0 or note.waits[2] > 0 then
      full[scope] = true
      if arg:byte(17 * scope) == 0 then verdict, charging = 1, false end
    end
  end
end

-- The first round charges as it goes. A denial by a later scope takes that back: a second round
-- then charges nothing. With one scope there is never a second round.
local again = true
local lease, span = 0, 0
local raws = scopes > 1 and {}
local values, expiries, reports
while again do
  again, values, expiries, reports = false, {}, {}, ''
  for scope = 1, scopes do
    local mode, rate, burst, minute, hour = unpack('<BI4I4I4I4', arg, 17 * scope)

    -- Read.
    local raw
    if raws then raw = raws[scope] end
    if raw == nil then
      raw = redis.pcall('GET', KEYS[scope])
      if raws then raws[scope] = raw end
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
    local blocked = s_wait > 0 or m_wait > 0 or h_wait > 0 or (full and full[scope])
    if blocked and mode == 0 then
      again = again or (charging and scope > 1)
      verdict, charging = 1, false
    end

    -- Of a lease, all is charged at once.
    if charging and not blocked and #ARGV == 3 and mode == 0 then
      local wished, most, divisor = unpack('<I4I4I4', ARGV[3])
      span = 1000000 - now % 1000000
      if most > 250000 then most = 250000 end
      if most < span then span = most end
      if most > 0 then wished = (wished * span + -(wished * span) % most) / most end
      local left, ahead = 4294967295, debt
      if rate > 0 then
        if span * rate > ahead then ahead = span * rate end
        left = burst * 1000000 - ahead
        if left < 0 then left = 0 end
        left = (left - left % 1000000) / 1000000
      end
      if minute > 0 and minute - m_sum < left then left = minute - m_sum end
      if hour > 0 and hour - h_sum < left then left = hour - h_sum end
      for index = 1, further do
        for which, spent in ipairs(noted[index].spent or {}) do
          local limit = noted[index].limits[which]
          local room = limit - math.max(spent[1], spent[2])
          if limit > 0 and room < left then left = room end
        end
      end
      if divisor > 0 then left = (left - left % divisor) / divisor end
      if wished < left then left = wished end
      if span >= 10000 and left >= 2 * cost and left >= 2 then
        lease, cost, debt = left, left, ahead
      end
    end

    -- Charge.
    local m_pushed, h_pushed = '', ''
    if charged then charged[scope] = charging and not blocked end
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
      -- Nothing that is limited here: there is nothing to keep.
      if whole < 1 and type(raw) ~= 'string' then whole, changed = 0, false end
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
      if changed then values[scope] = value end
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
  if value and not looks then call('SET', KEYS[scope], value, 'PX', expiries[scope]) end
end

for index = 1, further do
  local note = noted[index]
  local limits, waits, counts = note.limits, note.waits, note.counts
  local pays = verdict == 0 and charged[note.scope]
  -- What shadow would deny has nothing left.
  local in_shadow = arg:byte(17 * note.scope) == 1
  if note.kind == 1 then
    for which, period in ipairs({ days, months }) do
      local limit, spent = limits[which], note.spent[which]
      if limit > 0 then
        if pays then
          local at = period[1]
          -- In place of one that holds nothing, then of one beyond the next, then of the older.
          local worth = { 0, 0 }
          for place = 1, 2 do
            local number, spent = counts[at + 2 * place - 2], counts[at + 2 * place - 1]
            if spent > 0 then worth[place] = number <= period[2] + 1 and 2 or 1 end
          end
          if worth[2] < worth[1] or worth[2] == worth[1] and counts[at] > counts[at + 2] then
            at = at + 2
          end
          if counts[period[1]] == period[2] then at = period[1] end
          if counts[period[1] + 2] == period[2] then at = period[1] + 2 end
          local replaced = counts[at] - period[2] + 1
          if replaced >= 3 and replaced <= 4 then spent[replaced] = 0 end
          spent[1] = spent[1] + cost
          counts[at], counts[at + 1] = period[2], spent[1]
        end
        local left, whole_at = limit - math.max(spent[1], spent[2]), now
        if left < 0 or in_shadow and waits[which] > 0 then left = 0 end
        if spent[1] > 0 then whole_at = period[3] end
        if spent[2] > 0 then whole_at = period[4] end
        if spent[3] > 0 then whole_at = period[5] end
        if spent[4] > 0 then whole_at = period[6] end
        reports = reports .. pack('<I4dd', left, waits[which], whole_at)
      else
        reports = reports .. pack('<I4dd', 0, 0, 0)
      end
    end
    if pays then
      -- A day more, for a clock that is set back.
      local ends = (limits[2] > 0 and months or days)[3] + DAY - now
      local value = pack('<I4I4I4I4I4I4I4I4', counts[1], counts[2], counts[3], counts[4],
        counts[5], counts[6], counts[7], counts[8])
      call('SET', KEYS[scopes + index], value, 'PX', (ends + -ends % 1000) / 1000 + linger)
    end
  else
    local held = note.held
    if pays then
      held = held + 1
      local lease = unpack('<I4', how, 10)
      local own = sub(how, 2, 9) .. pack('<I4d', note.own + 1, now + lease * 1000)
      call('SET', KEYS[scopes + index], table.concat(note.kept) .. own, 'PX', lease + linger)
    end
    local left, whole_at = limits[1] - held, now
    if left < 0 or in_shadow and waits[1] > 0 then left = 0 end
    if held > 0 then whole_at = now + 1000000 end
    reports = reports .. pack('<I4ddI4dd', left, waits[1], whole_at, 0, 0, 0)
  end
end
if #ARGV == 3 then reports = reports .. pack('<I4I4', lease, lease > 0 and span or 0) end
return pack('<I4Bd', seq, verdict, now) .. reports
