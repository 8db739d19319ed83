-- Takes some rows of a batch, once.
-- KEYS: the stream's state, the process's totals, the minute's records, the hour's records.
-- ARGV: number of the batch, rows of it before these, rows of it up to and with these, the state's
-- time in seconds, when the totals, the minute and the hour end (Unix seconds; 0: not kept), then
-- for each row its field, its tier and its five numbers.
-- Gives the number of the batch's rows that are taken by now; -1: a later batch was taken already.
local sequence, from, upto = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3]
local state = redis.call('GET', KEYS[1])
local last, done = 0, 0
if state then
  local a, b = string.match(state, '^(%d+) (%d+)$')
  last, done = tonumber(a), tonumber(b)
end
if last > sequence then return -1 end
if last < sequence then done = 0 end
if from ~= done then return done end
local function add(key, field, at)
  local now = redis.call('HGET', key, field)
  local sums = {0, 0, 0, 0, 0}
  if now then
    local i = 1
    for number in string.gmatch(now, '%S+') do
      sums[i] = tonumber(number)
      i = i + 1
    end
  end
  for i = 1, 5 do
    sums[i] = string.format('%.0f', sums[i] + tonumber(ARGV[at + i]))
  end
  redis.call('HSET', key, field, table.concat(sums, ' '))
end
local ends = {tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])}
for at = 8, #ARGV, 7 do
  add(KEYS[2], ARGV[at + 1], at + 1)
  if ends[2] > 0 then add(KEYS[3], ARGV[at], at + 1) end
  if ends[3] > 0 then add(KEYS[4], ARGV[at], at + 1) end
end
for i = 1, 3 do
  if ends[i] > 0 then redis.call('EXPIREAT', KEYS[i + 1], ends[i]) end
end
redis.call('SET', KEYS[1], ARGV[1] .. ' ' .. upto, 'EX', ARGV[4])
return tonumber(upto)
