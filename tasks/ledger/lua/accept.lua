-- needs: record order siblings finish account cleanup audit
-- Write requests, each a deletion of its own.
-- Input: {requests = [{id, finetune_id, name, account, lane, source, digest, requested_at?, due_at?, delay_ms?, reason?,
--   requested_by?, missing_ok?, by_name?, cleanup?, known_use?, incarnation?, observed_at?, vantage?, retry_of?, callbacks?,
--   record = {...}}],
--   wake, act? (of a retry, or of who applies a plan), first_after_ms, wakeup_ms, result_within_ms}; at most 500 requests.
-- Answer: {answers = ['accepted' | 'known' | 'conflict', ...], wake = [accounts to publish a wake-up for]}.
-- This script has no leave to write when Redis is full: what cannot be kept must not be accepted.

local RECORD_GONE = 'withdrawn: the record that it retries is no longer kept'

-- A retry goes on with what the old deletion knew: which finetune was meant, and an attempt that may still be applied. One of a
-- cleanup stays a cleanup's, so that use and protection keep the finetune.
local function continue_old(r, fields)
  local old = given(r.retry_of) and read(r.retry_of)
  if not old then return end
  for _, name in ipairs({'asked_at', 'incarnation', 'observed_at', 'vantage', 'born_after', 'unclear_at', 'made', 'made_of'}) do
    fields[name] = old[name]
  end
  if old.cleanup then
    fields.cleanup, fields.lane = old.cleanup, old.lane
    fields.source, fields.needs_use = unpack(call('HMGET', key.deletion(old.id), 'source', 'needs_use'))
  end
  fields.retry_of = old.id
  set(old, {retried_by = r.id})
end

local function create(r)
  local due = math.max(given(r.due_at) or (now + (given(r.delay_ms) or 0)), now)
  local fields = given(r.record) or {}
  fields.accepted, fields.created_at, fields.due_at, fields.next_try_at = next_number(), now, due, due
  fields.asked_at = math.min(given(r.requested_at) or now, now)
  fields.state = due > now and 'scheduled' or 'queued'
  for _, name in ipairs({'finetune_id', 'name', 'account', 'lane', 'source', 'digest', 'incarnation', 'observed_at', 'vantage'}) do
    fields[name] = given(r[name])
  end
  fields.by_name, fields.cleanup = given(r.by_name) and 1, given(r.cleanup) and 1
  continue_old(r, fields)
  local d = {id = r.id}
  for name, value in pairs(fields) do d[name] = given(value) end
  call('SADD', key.unfinished(d.account, d.name), d.id)
  call('ZADD', key.names(d.account), 0, string.format('%s\n%015.0f\n%s', d.name, now, d.id))
  enter(d, due)
  if d.unclear_at then
    hold_if_unsettled(d)
    remember_try(d, 'unclear')
  end
  if not d.incarnation or d.unclear_at then call('ZADD', key.first(d.account), now + input.first_after_ms, d.id) end
  if given(r.callbacks) then call('SET', key.callbacks(d.id), r.callbacks) end
  call('HINCRBY', key.stats(d.account), 'source:' .. string.match(r.source, '^[^:]*'), 1)
  -- Last: a script has no rollback, and an id without a record is dropped wherever it stands. So if Redis refuses one of these
  -- writes, the same request is new when it comes again.
  set(d, fields)
  return d
end

-- A finetune has at most one unfinished cleanup deletion, and a cleanup leaves alone what somebody else wants deleted.
local function other_unfinished(d)
  for _, id in ipairs(call('SRANDMEMBER', key.unfinished(d.account, d.name), SCAN)) do
    if id ~= d.id then
      if call('EXISTS', key.deletion(id)) == 1 then return true end
      call('SREM', key.unfinished(d.account, d.name), id)  -- its record is lost
    end
  end
  return false
end

local function keep_from_cleanup(d, known_use)
  local why = other_unfinished(d) and 'another deletion of it is unfinished' or reason_to_keep(d, tonumber(d.asked_at), known_use)
  if why then withdraw(d, 'cleanup', why, '', 'kept: ' .. why)
  else call('HSET', key.finetune(d.account, d.name), 'cleanup', d.id) end
end

local answers, accounts, wake, created = {}, {}, {}, {}
for i, r in ipairs(input.requests) do
  local digest = call('HGET', key.deletion(r.id), 'digest')
  if digest then
    answers[i] = digest == r.digest and 'known' or 'conflict'
  else
    answers[i] = 'accepted'
    local d = create(r)
    created[#created + 1] = r.id
    if d.cleanup then keep_from_cleanup(d, given(r.known_use)) end
    if given(r.retry_of) and not d.retry_of then withdraw(d, '', '', '', RECORD_GONE) end
  end
  accounts[r.account] = true
end
local account = next(accounts)
if next(accounts, account) then account = nil end  -- there are several
if created[1] then
  local plan = string.match(input.requests[1].source, '^cleanup:(.*)$')
  audit(input.act, plan and 'apply' or 'retry', account, created, plan)
end
for name in pairs(accounts) do
  call('SADD', key.accounts(), name)
  if given(input.wake) and should_wake(account_of(name)) then wake[#wake + 1] = name end
end
return cjson.encode({answers = answers, wake = wake[1] and wake or nil})
