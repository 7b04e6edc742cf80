-- Keep an account going: {processes, accounts, nonce, workers_ttl_ms, retention_ms, most, ...}.
-- Takes back what dead workers held, prunes old records; answers
-- {wake-ups to send [account, id] ...}, {requests whose answers are owed ...}, pruned.

local function take_back(d)
  local lost = d.calling and cjson.encode({
    at = tonumber(d.calling), sent = true, error = 'WorkerLost',
    message = 'the worker was lost; whether the call was sent or applied is not known',
  })
  local crashes = (tonumber(d.crashes) or 0) + (d.calling and 1 or 0)
  set(d, add_attempts(d, lost, {crashes = crashes, unclear_at = d.calling or d.unclear_at, calling = ''}))
  if crashes >= input.most_crashes then
    finish(d, {state = 'review', message = 'given up after ' .. crashes .. ' workers were lost during its call'})
  elseif d.cancel_requested_at and not d.unclear_at then
    finish(d, {state = 'cancelled', message = 'withdrawn on request before anything was deleted'})
  else
    -- Later than now only where a cleanup that brought it forward was withdrawn in its call.
    local due = d.cancel_requested_at and now or math.max(now, tonumber(d.due_at))
    move(d, due > now and 'scheduled' or 'queued', due, {lane = d.cancel_requested_at and 'resolve' or d.lane})
    look_anew(d)
  end
end

local function prune(id)
  local d = read(id)
  if d then
    for line in string.gmatch(redis.call('HGET', prefix .. 'd:' .. id, 'requests') or '', '[^\n]+') do
      local request_id = cjson.decode(line).id
      redis.call('DEL', prefix .. 'r:' .. request_id, prefix .. 'cb:' .. request_id)
    end
    gather('ZREM', index_key(d, d.state), id)
    gather('ZREM', prefix .. 'names:' .. d.account, name_entry(d))
    redis.call('DEL', prefix .. 'd:' .. id)
  end
  gather('ZREM', prefix .. 'finished', id)
end

redis.call('SET', prefix .. 'dispatched', now)
ask('ZREMRANGEBYSCORE', prefix .. 'workers', NEVER, now)
for _, process in ipairs(input.processes) do
  gather('ZADD', prefix .. 'workers', now + input.workers_ttl_ms, process)
end
for account, max_concurrent in pairs(input.accounts) do register(account, max_concurrent) end
local sent = {}
for _, account in ipairs(redis.call('SMEMBERS', prefix .. 'accounts')) do
  local leases = prefix .. 'leases:' .. account
  for _, id in ipairs(ask('ZRANGEBYSCORE', leases, NEVER, now, 'LIMIT', 0, input.most)) do
    take_back(read(id))
  end
  for _, id in ipairs(wakeups(account)) do sent[#sent + 1] = {account, id} end
end
local old = ask('ZRANGEBYSCORE', prefix .. 'finished', NEVER, now - input.retention_ms, 'LIMIT', 0, input.most)
for _, id in ipairs(old) do prune(id) end
local due = ask('ZRANGEBYSCORE', prefix .. 'outbox', NEVER, now, 'LIMIT', 0, input.most)
-- Whoever gets them here writes them; nobody else for a while.
for _, id in ipairs(due) do gather('ZADD', prefix .. 'outbox', now + input.answer_again_ms, id) end
return {sent, due, #old}
