-- needs: record account
-- The last question before a delete: may the call start now?
-- Input: {id, token, attempt, made, findings, attempts, counts, fresh_until, lease_ms}. findings: what was observed, as fields of the
--   record (`Findings` in types.py). attempt: which mark of this claim. made: the last earlier mark of this claim whose call was made,
--   '' if none. attempts: earlier ones, as lines of JSON. fresh_until: how long the observation counts.
-- Answer: {word, wait_ms, now, why?}. word: go | lost | cancelled | held | paused | parked | cooling | stale: the worker's clock stood
--   still, and the observation is too old. why: if it is held.
-- It renews the lease, keeps what was observed, and notes that a call may be under way. A mark whose call is not made is
-- taken back by the next mark or by the finish. The attempt takes its number from the counter that orders siblings;
-- sent twice, it keeps the number.

local function answer(word, wait_ms, why)
  return cjson.encode({word = word, wait_ms = wait_ms or 0, now = now, why = why})
end

local d = read(input.id)
if not d or d.state ~= 'running' or d.token ~= input.token then return answer('lost') end
if d.cancel_requested_at then return answer('cancelled') end
local hold = hold_of(d)
if hold then return answer('held', 0, hold.message) end
local why, wait_ms = stopped(account_of(d.account))
if why then return answer(why, wait_ms) end

local mark_of = input.token .. '/' .. input.attempt
-- Sent twice, it was in time.
if now > input.fresh_until and d.mark_of ~= mark_of then return answer('stale') end
call('ZADD', key.leases(d.account, d.running_lane), now + input.lease_ms, d.id)
if d.mark_of ~= mark_of then
  if given(input.made) then note_made(d, input.token .. '/' .. input.made) end
  if input.attempts[1] then add_attempts(d, input.attempts, input.counts) end
  set(d, {mark = next_number(), mark_of = mark_of})
end
set(d, input.findings)
set(d, {calling = now})
return answer('go')
