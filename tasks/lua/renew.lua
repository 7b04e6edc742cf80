-- Renew the leases a process holds: {calls = [{id, token}], lease_ms}. Answers the ids it has lost.

local lost = {}
for _, call in ipairs(input.calls) do
  local d = redis.call('HMGET', prefix .. 'd:' .. call.id, 'state', 'token', 'account')
  if d[1] == 'running' and tonumber(d[2]) == call.token then
    gather('ZADD', prefix .. 'leases:' .. d[3], now + input.lease_ms, call.id)
  else
    lost[#lost + 1] = call.id
  end
end
return lost
