-- needs: record
-- Renew the leases of a process.
-- Input: {claims = [{id, token}], lease_ms}. Answer: {lost = [id, ...]}: those it no longer holds.

local lost = {}
for _, claim in ipairs(input.claims) do
  local d = read(claim.id)
  if d and d.state == 'running' and d.token == claim.token then
    call('ZADD', key.leases(d.account, d.running_lane), now + input.lease_ms, claim.id)
  else
    lost[#lost + 1] = claim.id
  end
end
return cjson.encode({lost = lost[1] and lost or nil})
