-- needs: record order siblings finish audit
-- Withdraw deletions, each for itself.
-- Input: {ids, act?, nonce, message?, result_within_ms}; at most 500 ids. nonce: names this cancel, so that a repetition gets the
--   same answer. message: of those that end by it.
-- Answer: {answers = [word, ...], due = [id, ...]}. word: unknown | final | cancelled | requested (an attempt may be under way; an
--   observation will decide). due: requests by name whose Celery result is to be written now.

local answers, due, changed = {}, {}, {}
local act = given(input.act) or {}

local function cancel(id)
  local d = read(id)
  if not d then return 'unknown' end
  local is_repeated = d.state == 'cancelled' and d.cancel_nonce == input.nonce
  if is_final(d.state) and not is_repeated then return 'final' end
  if d.cancel_requested_at and not is_repeated then return 'requested' end
  local answer = is_repeated and 'cancelled' or withdraw(d, act.who, act.why, input.nonce, given(input.message) or WITHDRAWN)
  if not is_repeated then changed[#changed + 1] = id end
  if answer == 'cancelled' and d.by_name then due[#due + 1] = id end
  return answer
end

for i, id in ipairs(input.ids) do answers[i] = cancel(id) end
if changed[1] then audit(input.act, 'cancel', nil, changed) end
return cjson.encode({answers = answers, due = due[1] and due or nil})
