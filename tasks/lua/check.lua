-- Just before calls: {calls = [{id, token, permit, look, mark, fingerprint, looked_at}], lease_ms, permit_ms}.
-- What a look has just found is kept: were the worker lost in its call, the next one must know whom it meant.
-- Renews the lease, takes the permit and, with `mark`, marks the attempt as sent; or says why not. In the way of a
-- look that decides (`look`) stands neither a cancel nor a pause.
-- Answers {verdict, wait_ms} for each: go, lost, cancelled, paused, cooling, parked or full.

local answers = {}
for i, call in ipairs(input.calls) do
  local d = read(call.id)
  if not d or d.state ~= 'running' or tonumber(d.token) ~= call.token then
    answers[i] = {'lost', 0}
  elseif d.cancel_requested_at and not call.look then
    answers[i] = {'cancelled', 0}
  elseif tonumber(d.due_at) > now and not call.look then
    answers[i] = {'lost', 0}  -- the cleanup that brought it forward was withdrawn
  else
    local permits = prefix .. 'permits:' .. d.account
    local why, wait_ms, limit = stopped(d.account)
    local permit = given(call.permit) or permit_name(d)
    local holds = ask('ZSCORE', permits, permit)
    if call.look and why == 'paused' then why = nil end
    if not why and not holds and live(d.account, now) >= limit then why = 'full' end
    if why then
      answers[i] = {why, wait_ms}
    else
      gather('ZADD', permits, now + input.permit_ms, permit)
      gather('ZADD', prefix .. 'leases:' .. d.account, now + input.lease_ms, d.id)
      if call.mark then set(d, {calling = now}) end
      if given(call.fingerprint) then set(d, {fingerprint = call.fingerprint}) end
      if call.looked_at > 0 then set(d, {looked_at = call.looked_at}) end
      answers[i] = {'go', 0}
    end
  end
end
return answers
