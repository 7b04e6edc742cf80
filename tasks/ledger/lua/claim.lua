-- needs: record order siblings finish account cleanup
-- Give a runner one deletion to carry out.
-- Input: {account, token, begun, lease_ms, wakeup_ms, result_within_ms, first_after_ms}. token: unique to this claim. A call that
--   is repeated with it gets the same answer. begun: a wake-up led here.
-- Answer: {why, more, claim?, dropped?}. why: '' | 'full' | 'parked' | 'cooling' | 'paused' | 'idle'. more: publish one more
--   wake-up, since more is due and permits are free, or this claim used up SCAN before it found one that can run.
--   claim: fields of the record as text, with kind (delete | resolve | observe), id, token, lane, now, account, started_at, and tries: what
--   attempts of siblings came to. dropped: ids without a readable record.
-- Work: at most SCAN deletions are promoted; SCAN first observations, and SCAN deletions of all other lanes, are passed over.

local name, token = input.account, input.token
local memo = call('GET', key.memo(token))
if memo then return memo end
if given(input.begun) then call('HDEL', key.account(name), 'wakeup_until') end

local account = account_of(name)
local why = stopped(account)
local free = account.limit - in_flight(name)
local dropped, budget = {}, SCAN

local function drop(id, queue)
  call('ZREM', queue, id)
  call('ZREM', key.retrying(name), id)
  dropped[#dropped + 1] = id
end

-- A finetune is busy while a sibling runs, until the lease of that ends, and while an attempt of another holds it.
local function is_busy(d)
  local marks = call('HMGET', key.finetune(d.account, d.name), 'running', 'held')
  local running = marks[1] and marks[1] ~= d.id and read(marks[1])
  if running and running.state == 'running' then
    local ends = call('ZSCORE', key.leases(d.account, running.running_lane), running.id)
    if ends and tonumber(ends) > now then return true end
    reclaim(running)  -- now, since a call of its worker may have been applied: that holds the finetune
    marks = call('HMGET', key.finetune(d.account, d.name), 'running', 'held')
  end
  return is_held_by_another(d, marks[2])
end

local function tries_of_siblings(d)
  local tries = {}
  for _, try in ipairs(tries_of(name, d.name)) do
    local by = read(try.by) or {}
    -- The record of one that ended long ago may be gone.
    try.state, try.evidence = by.state or try.result, by.evidence or ''
    if try.by ~= d.id then tries[#tries + 1] = try end
  end
  return tries[1] and tries or nil
end

local function start(d, kind, lane)
  move(d, 'running', now + input.lease_ms, {token = token, running_lane = lane, calling = ''})
  call('ZREM', key.first(name), d.id)
  call('HSET', key.finetune(name, d.name), 'running', d.id)
  call('HSET', key.account(name), 'served:' .. lane, call('HINCRBY', key.account(name), 'served', 1))
  local claim = {kind = kind, id = d.id, token = token, lane = lane, now = now, started_at = call('HGET', key.account(name), 'started_at') or nil}
  for _, field in ipairs({
    'finetune_id', 'account', 'accepted', 'asked_at', 'due_at', 'unclear_at', 'cancel_requested_at',
    'incarnation', 'observed_at', 'vantage', 'born_after', 'backoffs', 'last_try', 'not_founds', 'cleanup',
  }) do claim[field] = d[field] end
  claim.tries = tries_of_siblings(d)
  return claim
end

-- A first observation of one that waits; it goes back to its former state.
local function take_first(queue, limit)
  for _, id in ipairs(call('ZRANGEBYSCORE', queue, '-inf', limit, 'LIMIT', 0, SCAN)) do
    local d = read(id)
    if not d then drop(id, queue)
    elseif d.state ~= 'scheduled' and d.state ~= 'queued' then call('ZREM', queue, id)
    elseif is_busy(d) then call('ZADD', queue, now + input.first_after_ms, id)
    else return start(d, 'observe', 'first') end
  end
end

local function take_from(lane)
  local queue, limit = waiting_in(name, lane)
  if lane == 'first' then return take_first(queue, limit) end
  for _, id in ipairs(call('ZRANGEBYSCORE', queue, '-inf', limit, 'LIMIT', 0, budget)) do
    budget = budget - 1
    local d = read(id)
    local keep = d and lane == 'cleanup' and reason_to_keep(d, tonumber(d.asked_at))
    if not d or d.state ~= 'queued' then drop(id, queue)
    elseif keep then withdraw(d, 'cleanup', keep, '', 'kept: ' .. keep)
    elseif is_busy(d) then queue_behind(d)
    else return start(d, lane == 'resolve' and 'resolve' or 'delete', lane) end
  end
end

local function promote()
  local queue = key.wait(name)
  for _, id in ipairs(call('ZRANGEBYSCORE', queue, '-inf', now, 'LIMIT', 0, SCAN)) do
    local d = read(id)
    if d and d.state == 'scheduled' then await(d, tonumber(d.next_try_at or d.due_at), {}) else drop(id, queue) end
  end
end

-- Lanes that have something to start: the one with the fewest running first, then the one served longest ago.
local function lanes_in_order()
  local lanes = {}
  for i = 2, #LANES do
    local lane = LANES[i]
    local running = call('ZCARD', key.leases(name, lane))
    local half = math.max(1, math.floor(account.limit / 2))
    local room = lane ~= 'first' or running < half
    if room and is_open(lane, why) and count_waiting(name, lane) > 0 then
      lanes[#lanes + 1] = {lane, running, tonumber(call('HGET', key.account(name), 'served:' .. lane) or 0)}
    end
  end
  table.sort(lanes, function(a, b) return a[2] < b[2] or (a[2] == b[2] and a[3] < b[3]) end)
  return lanes
end

local function take()
  if free <= 0 then return nil, 'full' end
  if why == 'parked' or why == 'cooling' then return nil, why end
  promote()
  local claim = take_from('resolve')
  for _, lane in ipairs(claim and {} or lanes_in_order()) do
    claim = claim or (budget > 0 and take_from(lane[1])) or nil
  end
  return claim, claim and '' or why or 'idle'
end

local claim, reason = take()
local more = claim and free > 1 and should_wake(account) or not claim and budget <= 0
local answer = cjson.encode({why = reason, more = more, claim = claim, dropped = dropped[1] and dropped or nil})
if claim then call('SET', key.memo(token), answer, 'PX', input.lease_ms) end
return answer
