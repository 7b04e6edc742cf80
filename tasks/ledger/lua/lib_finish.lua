-- How a deletion ends, or goes back to wait.

local WITHDRAWN = 'withdrawn before anything was deleted'

-- From when the inventory counts the age of this finetune. After a deletion the next one of its name is another one, even if it
-- looks the same; if verification finds the same one, it was there before it was asked for.
local function set_first_seen(d, at)
  local is_read, seen = pcall(cjson.decode, call('HGET', key.inventory(d.account), d.name) or '')
  if not is_read or type(seen) ~= 'table' then return end
  seen.first_seen = at
  call('HSET', key.inventory(d.account), d.name, cjson.encode(seen))
end

-- Write a final state. Everything that an unfinished deletion occupies is given back here: its place, its lease and so
-- its permit, what the finetune's own fields say of it. outcome: {state, status, message, timestamp, evidence, deleted_by}.
local function finish(d, outcome)
  local was_final, was_deleted = is_final(d.state), d.state == 'deleted'
  local evidence = given(outcome.evidence)
  move(d, outcome.state, now, {
    status = outcome.status, message = outcome.message, timestamp = outcome.timestamp, evidence = evidence or '',
    deleted_by = outcome.deleted_by, finished_at = was_final and d.finished_at or now, calling = '', next_try_at = '',
  })
  -- What a person found out about the end before is kept in the audit log only.
  if was_final then set(d, {resolved_at = '', resolved_by = '', resolution = ''}) end
  if was_deleted and outcome.state == 'review' then
    remember_try(d, nil)
    set_first_seen(d, tonumber(d.asked_at))
  end
  if outcome.state == 'deleted' or outcome.state == 'not_found' then set_first_seen(d, now) end
  if outcome.state == 'deleted' then call('ZADD', key.verify(d.account), now, d.id) end
  if d.by_name then call('ZADD', key.results(), now + input.result_within_ms, d.id) end
  call('ZREM', key.first(d.account), d.id)
  if d.backoffs then call('ZREM', key.retrying(d.account), d.id) end
  call('HINCRBY', key.stats(d.account), 'finished:' .. outcome.state, 1)
  local finetune, unfinished = key.finetune(d.account, d.name), key.unfinished(d.account, d.name)
  if call('HGET', finetune, 'cleanup') == d.id then call('HDEL', finetune, 'cleanup') end
  call('SREM', unfinished, d.id)
  if call('EXISTS', unfinished) == 0 then
    call('DEL', finetune, key.siblings(d.account, d.name))
    call('ZREM', key.blocked(d.account), d.name)
    return
  end
  hold_if_unsettled(d)
  let_sibling_try(d)
end

-- When one that waits is to be observed meanwhile: nil if it is not. One that has been observed needs no other one. But a
-- cleanup whose attempt is not settled holds its finetune, and must not hold up others while reports of use hold it up.
local function time_to_observe(d)
  local is_seen, is_unsettled = d.observed_at or d.incarnation, d.cleanup and d.unclear_at
  return (not is_seen or is_unsettled) and now + input.first_after_ms or nil
end

-- When one that goes back may run. If it was claimed for a delete or to be resolved, it was due then, so it is due now, even
-- if Redis's clock was set back since. After a first observation it keeps its time, unless it was cancelled meanwhile.
local function time_to_go_back(d)
  local at = tonumber(d.next_try_at or d.due_at)
  return d.running_lane == 'first' and not d.cancel_requested_at and at or math.min(at, now)
end

-- One that was withdrawn and has no attempt that may have been applied ends here, instead of going back.
local function ended_by_cancel(d)
  if not d.cancel_requested_at or d.unclear_at then return false end
  finish(d, {state = 'cancelled', message = WITHDRAWN})
  return true
end

-- Wait until `at`, and let the next sibling try. observe_at: when it is to be observed first; nil if it is not.
local function go_back(d, at, observe_at, changes)
  hold_if_unsettled(d)
  if observe_at then call('ZADD', key.first(d.account), observe_at, d.id) end
  await(d, at, changes)
  let_sibling_try(d)
end

-- What a worker that is gone held: another one goes on with it. If the worker was lost during a call, that attempt may
-- have been applied, and only an observation can tell.
local MOST_CRASHES = 5

local function reclaim(d)
  if d.calling then
    local lost = {at = tonumber(d.calling), mark = tonumber(d.mark), sent = true, error = 'WorkerLost',
      message = 'the worker was lost; whether the call was sent or applied is not known'}
    add_attempts(d, {cjson.encode(lost)}, {['call:none:none'] = 1})
    set(d, {crashes = (tonumber(d.crashes) or 0) + 1, unclear_at = d.calling, calling = ''})
    note_made(d, d.mark_of)
    remember_try(d, 'unclear')
  end
  if (tonumber(d.crashes) or 0) >= MOST_CRASHES then
    finish(d, {state = 'review', message = 'given up: ' .. MOST_CRASHES .. ' workers were lost during its call'})
    return
  end
  if not ended_by_cancel(d) then go_back(d, time_to_go_back(d), time_to_observe(d), {}) end
end

-- Withdraw a deletion: at once if no attempt can be under way, else an observation decides. Answers which.
local function withdraw(d, by, reason, nonce, message)
  local open_attempt = d.unclear_at or (d.state == 'running' and d.calling)
  -- It leaves its place first: a cancel changes the lane in which it stands.
  local changes = {cancel_requested_at = now, cancelled_by = by, cancel_reason = reason, cancel_nonce = nonce}
  if open_attempt then
    if d.state == 'running' then set(d, changes) else await(d, now, changes) end
    return 'requested'
  end
  leave(d)
  set(d, changes)
  finish(d, {state = 'cancelled', message = message})
  return 'cancelled'
end
