-- A worker waits between two attempts: {id, token, permit, attempts, unclear_at, lease_ms}.
-- What is known so far is kept and the permit freed; answers 1, or 0 where the deletion is no longer its own.

local d = read(input.id)
if not d or d.state ~= 'running' or tonumber(d.token) ~= input.token then return 0 end
local unclear_at = input.unclear_at > 0 and input.unclear_at or ''
set(d, add_attempts(d, input.attempts, {calling = '', unclear_at = unclear_at}))
gather('ZADD', prefix .. 'leases:' .. d.account, now + input.lease_ms, d.id)
free_permit(d, input.permit)
return 1
