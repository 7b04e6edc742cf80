-- needs: record
-- Renew the leases of a process.
-- Input: {claims = [{id, token}], lease_ms}. Answer: {lost = [id, ...]}: those it no longer holds.

local lost = {}
for _, claim in ipairs(input.claims) do
  local d = call('HMGET', key.deletion(claim.id), 'state', 'token', 'account', 'running_lane')
  if d[1] == 'running' and d[2] == claim.token then
    call('ZADD', key.leases(d[3], d[4]), now + input.lease_ms, claim.id)
  else
    lost[#lost + 1] = claim.id
  end
end
return cjson.encode({lost = lost[1] and lost or nil})
