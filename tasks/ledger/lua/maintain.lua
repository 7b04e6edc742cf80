-- needs: record order siblings finish account cleanup
-- One round of maintenance for one account.
-- Input: {account, max_concurrent, stale = [[lane, id, ends], ...], lease_ms, wakeup_ms, result_within_ms, first_after_ms}.
--   stale: leases and permits that this process has seen unrenewed for two lease lengths on its own clock.
-- Answer: {reclaimed, dropped?, wake, leases?}. dropped: ids without a readable record. wake: publish a wake-up.
--   leases: [lane, id, ends] of what still runs; of a permit, ['permit', holder, ends].
-- Work: SCAN leases a lane, SCAN lists of siblings; as many leases are answered as there are permits.

local name, reclaimed, dropped, leases = input.account, 0, {}, {}
call('SADD', key.accounts(), name)
call('HSET', key.account(name), 'max_concurrent', input.max_concurrent, 'registered', 1)

local function take_back(lane, id)
  local d = read(id)
  if not d then
    call('ZREM', key.leases(name, lane), id)
    call('ZREM', key.retrying(name), id)
    dropped[#dropped + 1] = id
  elseif d.state ~= 'running' or d.running_lane ~= lane then
    call('ZREM', key.leases(name, lane), id)
  else
    reclaim(d)
    reclaimed = reclaimed + 1
  end
end

for _, lane in ipairs(LANES) do
  for _, id in ipairs(call('ZRANGEBYSCORE', key.leases(name, lane), '-inf', now, 'LIMIT', 0, SCAN)) do take_back(lane, id) end
end
call('ZREMRANGEBYSCORE', key.permits(name), '-inf', now)
for _, stale in ipairs(input.stale) do
  local lane, id, ends = unpack(stale)
  if lane == 'permit' then call('ZREM', key.permits(name), id)
  elseif tonumber(call('ZSCORE', key.leases(name, lane), id) or -1) == ends then take_back(lane, id) end
end

-- If siblings wait and none of them runs, no finish puts the next one back into its lane, so do it here. One too many does
-- no harm: a claim that finds the finetune busy moves it to this list again.
local function repair(finetune)
  call('ZADD', key.blocked(name), now, finetune)
  if call('EXISTS', key.siblings(name, finetune)) == 0 then
    call('ZREM', key.blocked(name), finetune)
    return
  end
  local running = call('HGET', key.finetune(name, finetune), 'running')
  if not running or state_of(running) ~= 'running' then put_back_one(name, finetune) end
end

for _, finetune in ipairs(call('ZRANGE', key.blocked(name), 0, SCAN - 1)) do repair(finetune) end

local function tell(lane, running)
  local rows = call('ZRANGE', running, 0, input.max_concurrent, 'WITHSCORES')
  for i = 1, #rows, 2 do leases[#leases + 1] = {lane, rows[i], tonumber(rows[i + 1])} end
end

for _, lane in ipairs(LANES) do tell(lane, key.leases(name, lane)) end
tell('permit', key.permits(name))
return cjson.encode({
  reclaimed = reclaimed, dropped = dropped[1] and dropped or nil, wake = should_wake(account_of(name)),
  leases = leases[1] and leases or nil,
})
