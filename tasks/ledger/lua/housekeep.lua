-- needs: record order
-- One round of maintenance for all accounts: which processes live, which Celery results are due, what is old.
-- Input: {processes, alive_ms, retention_ms, again_ms, most}. Answer: {due?, pruned}. due: ids whose results the caller writes; another
--   process gets them after again_ms. Work: at most `most` of each.

local DAY = 86400000

call('SET', key.maintained(), digits(now))
call('ZREMRANGEBYSCORE', key.workers(), '-inf', now)
for _, process in ipairs(input.processes) do call('ZADD', key.workers(), now + input.alive_ms, process) end

local function prune(id)
  local d = read(id)
  if d then
    call('ZREM', key.index(d.account, d.state), id)
    call('ZREM', key.verify(d.account), id)
    call('ZREM', key.names(d.account), string.format('%s\n%015.0f\n%s', d.name, d.created_at, id))
  end
  call('DEL', key.deletion(id), key.attempts(id), key.callbacks(id))
  call('ZREM', key.finished(), id)
  call('ZREM', key.results(), id)
end

-- A review stays until a person has looked at it.
local function needs_person(id)
  local state, resolved_at, retried_by = unpack(redis.pcall('HMGET', key.deletion(id), 'state', 'resolved_at', 'retried_by'))
  return state == 'review' and not given(resolved_at) and not given(retried_by)
end

local pruned = 0
for _, id in ipairs(call('ZRANGEBYSCORE', key.finished(), '-inf', now - input.retention_ms, 'LIMIT', 0, input.most)) do
  if needs_person(id) then call('ZADD', key.finished(), now - input.retention_ms + DAY, id)
  else prune(id) pruned = pruned + 1 end
end
local due = call('ZRANGEBYSCORE', key.results(), '-inf', now, 'LIMIT', 0, input.most)
for _, id in ipairs(due) do call('ZADD', key.results(), now + input.again_ms, id) end
return cjson.encode({due = due[1] and due or nil, pruned = pruned})
