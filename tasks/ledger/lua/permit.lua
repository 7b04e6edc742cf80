-- needs: account
-- A permit for a call that no lease covers: a survey, a verification, a probe. All of these together have at most half of the account's
-- permits, but at least one.
-- Input: {account, holder, permit_ms, max_concurrent, probe}. max_concurrent: if no worker has registered the account. probe: parked
--   is no obstacle. Answer: {word, wait_ms}: go | full | cooling | parked.

local account = account_of(input.account)
if call('HEXISTS', key.account(input.account), 'max_concurrent') == 0 then account.limit = input.max_concurrent end
local why, wait_ms = stopped(account)
if why == 'cooling' or why == 'parked' and not given(input.probe) then return cjson.encode({word = why, wait_ms = wait_ms}) end
call('ZREMRANGEBYSCORE', key.permits(input.account), '-inf', now)
local mine = call('ZSCORE', key.permits(input.account), input.holder) and 1 or 0
local others = call('ZCARD', key.permits(input.account)) - mine
local half = math.max(1, math.floor(account.limit / 2))
if others >= half or in_flight(input.account) - mine >= account.limit then return cjson.encode({word = 'full', wait_ms = 0}) end
call('ZADD', key.permits(input.account), now + input.permit_ms, input.holder)
return cjson.encode({word = 'go', wait_ms = 0})
