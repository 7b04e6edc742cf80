-- A permit for the next call of a survey: {account, holder, permit_ms, max_concurrent}.
-- Surveys have at most half of an account's permits between them. Answers go, full, cooling or parked, and the wait.

local permits = prefix .. 'permits:' .. input.account
local why, wait_ms = stopped(input.account)
if why and why ~= 'paused' then return {why, wait_ms} end
local limit = tonumber(redis.call('HGET', prefix .. 'account:' .. input.account, 'max_concurrent') or input.max_concurrent)
local others = live(input.account, now)
local surveys = 0
for _, holder in ipairs(ask('ZRANGE', permits, 0, -1)) do
  if holder == input.holder then others = others - 1
  elseif string.sub(holder, 1, 7) == 'survey:' then surveys = surveys + 1 end
end
if others >= limit or surveys >= math.max(1, math.floor(limit / 2)) then return {'full', 0} end
gather('ZADD', permits, now + input.permit_ms, input.holder)
return {'go', 0}
