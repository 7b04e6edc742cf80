-- What holds for a whole account: permits, stops, wake-ups.

local function account_of(name)
  local values = call('HMGET', key.account(name), 'max_concurrent', 'parked_at', 'cool_until', 'cool_ms', 'wakeup_until')
  return {
    name = name, limit = tonumber(values[1]) or 1, parked_at = given(values[2]), cool_until = tonumber(values[3]) or 0,
    cool_ms = tonumber(values[4]) or 0, wakeup_until = tonumber(values[5]) or 0,
  }
end

-- Why no attempt may start for the account now, and for how long if that is known.
-- A cool-down with more time left than its length was set before Redis's clock was set back: it is ignored.
local function stopped(account)
  if account.parked_at then return 'parked', 0 end
  local left = account.cool_until - now
  if left > 0 and left <= account.cool_ms then return 'cooling', left end
  local paused = call('HMGET', key.paused(), account.name, '*')
  if paused[1] or paused[2] then return 'paused', 0 end
  return nil, 0
end

-- A running deletion is a permit in use, whatever it does. Other calls take permits that expire.
local function in_flight(name)
  local n = call('ZCOUNT', key.permits(name), now, '+inf')
  for _, lane in ipairs(LANES) do n = n + call('ZCARD', key.leases(name, lane)) end
  return n
end

-- Where deletions of a lane wait, and the end of the range of scores in it that may start now. A cleanup may start only if it
-- was due before the last moment at which the broker held no report of use, if that was lately and none was seen since: a
-- process that stood still may write an old moment late. One in the future, of either, was noted before Redis's clock was set back.
local function waiting_in(name, lane)
  if lane == 'first' then return key.first(name), now end
  local times = call('MGET', key.reports_clear(), key.reports_seen())
  local clear_at, seen_at = tonumber(times[1] or 0), tonumber(times[2] or 0)
  local is_of_now = (seen_at < clear_at or seen_at > now) and clear_at <= now and now - clear_at <= input.clear_for_ms
  local limit = lane == 'cleanup' and '(' .. digits(is_of_now and clear_at or 0) or '+inf'
  return key.queue(name, lane), limit
end

local function count_waiting(name, lane)
  local queue, limit = waiting_in(name, lane)
  return call('ZCOUNT', queue, '-inf', limit)
end

local function is_open(lane, why)
  return not why or (why == 'paused' and (lane == 'resolve' or lane == 'first'))
end

-- How many deletions a claim could take now.
local function count_due(name, why)
  local due = is_open('resolve', why) and call('ZCOUNT', key.wait(name), '-inf', now) or 0  -- some may be of that lane
  for _, lane in ipairs(LANES) do
    if is_open(lane, why) then due = due + count_waiting(name, lane) end
  end
  return due
end

-- Whether to publish a wake-up: work is due, a permit is free, and no wake-up is on its way.
local function should_wake(account)
  local left = account.wakeup_until - now
  if left > 0 and left <= input.wakeup_ms then return false end
  local why = stopped(account)
  if count_due(account.name, why) == 0 or in_flight(account.name) >= account.limit then return false end
  call('HSET', key.account(account.name), 'wakeup_until', digits(now + input.wakeup_ms))
  return true
end
