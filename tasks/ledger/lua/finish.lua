-- needs: record order siblings finish account audit
-- Write what came of a claim.
-- Input: {id, token, made, findings, result, status, message, timestamp, evidence, deleted_by, last_try, not_founds, attempts, counts,
--   delay_ms, counted, pause, result_within_ms, first_after_ms}. findings: as `mark.lua` takes them.
--   result: a final state, `back` (wait and try again) or `observed` (a first observation was made, or failed: then with delay_ms).
--   made: which mark of this claim was the last whose call was made, '' if none was.
-- Answer: {word, due}. word: done | late (it is no longer ours; what is certain was noted) | gone. due: whether the Celery result of
--   this request is to be written now.
-- Written twice, it recognises itself by its token.

local attempt = input.token .. '/' .. input.made

local function raise_alarm(d)
  if not given(input.pause) or call('HGET', key.paused(), d.account) == input.pause then return end
  call('HSET', key.paused(), d.account, input.pause)
  call('HSET', key.account(d.account), 'paused_at', digits(now), 'paused_by', 'janitor')
  audit({who = 'janitor', via = 'janitor', why = input.pause}, 'pause', d.account, {d.id})
end

-- A late confirmation is a fact even if another worker holds the deletion now, and so is an alarm; nothing else counts without the
-- lease. If the name had passed to another finetune (`superseded`), that one was probably deleted: a person must look.
local function finish_late(d)
  local noted = call('HGET', key.deletion(d.id), 'late_token')
  if noted == input.token or noted == input.token .. ' changed' then return noted ~= input.token end
  set(d, {late_token = input.token})
  raise_alarm(d)
  add_attempts(d, input.attempts, input.counts)
  local outcome = input
  if input.result == 'deleted' and input.evidence == 'response' and d.state ~= 'deleted' then
    if d.state == 'superseded' then
      outcome = {state = 'review', status = input.status, timestamp = input.timestamp,
        message = 'a late answer says deleted, after the name had passed to another finetune: that one was probably deleted'}
    elseif note_made(d, attempt) then
      remember_try(d, 'deleted')
    end
  elseif not given(input.pause) or is_final(d.state) then
    return false
  end
  finish(d, outcome)
  set(d, {late_token = input.token .. ' changed'})
  return true
end

local function wait_again(d)
  if ended_by_cancel(d) then return end
  local delay = given(input.delay_ms)
  local others_wait = d.unclear_at and call('EXISTS', key.siblings(d.account, d.name)) == 1
  if delay and (others_wait or d.cancel_requested_at) then delay = math.min(delay, LONGEST_HOLD) end
  if given(input.counted) then call('ZADD', key.retrying(d.account), d.due_at, d.id) end
  local backoffs = (tonumber(d.backoffs) or 0) + (given(input.counted) and 1 or 0)
  go_back(d, delay and now + delay or time_to_go_back(d), time_to_observe(d), {message = input.message, backoffs = backoffs})
end

-- After a first observation it waits as before. If the observation failed, another one follows.
local function wait_as_before(d)
  if ended_by_cancel(d) then return end
  go_back(d, time_to_go_back(d), given(input.delay_ms) and now + input.delay_ms, {})
end

local d = read(input.id)
if not d then return cjson.encode({word = 'gone', due = false}) end
if d.finished_token == input.token then
  return cjson.encode({word = 'done', due = is_final(d.state) and d.by_name and true or false})
end
input.state = input.result
if d.state ~= 'running' or d.token ~= input.token then
  local changed = finish_late(d)
  return cjson.encode({word = 'late', due = changed and d.by_name and true or false})
end

call('DEL', key.memo(input.token))
raise_alarm(d)
add_attempts(d, input.attempts, input.counts)
-- A failover may have rolled the mark back: then siblings are told nothing.
if given(input.made) and not note_made(d, attempt) then set(d, {made = '', made_of = ''}) end
set(d, input.findings)
set(d, {finished_token = input.token, calling = '', not_founds = input.not_founds, last_try = given(input.last_try) or d.last_try})
local confirmed = input.result == 'deleted' and input.evidence ~= 'sibling'
if d.made then remember_try(d, confirmed and 'deleted' or d.unclear_at and 'unclear' or nil) end
if input.result == 'observed' then wait_as_before(d)
elseif input.result == 'back' then wait_again(d)
else finish(d, input) end
return cjson.encode({word = 'done', due = is_final(d.state) and d.by_name and true or false})
