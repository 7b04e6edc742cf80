-- Claim what can start now: {account, owner, nonce, want, ahead, at_work, lease_ms, permit_ms, begun, looks_first,
-- give_up_after_ms, first_look_after_ms}.
-- Answers as JSON [now, why nothing may start, [kind, id, token, fields ...] ...]; kind is look, delete or probe.
-- `ahead` more are claimed without a permit, for threads of the claimer (`at_work`) to go on to under the one they have.
-- The claim counts as the check before a call that starts within the second, and marks it as sent; but for what is
-- looked at first, which is checked after the look: a worker lost before that has sent nothing.

local account = input.account
if given(input.begun) then
  gather('ZREM', prefix .. 'wakeups:' .. account, input.begun)
  redis.call('HDEL', prefix .. 'account:' .. account, 'misses')
end
-- Asked again by a caller whose answer was lost: the same claims, the same tokens.
local memo = prefix .. 'claim:' .. input.nonce
local before = redis.call('GET', memo)
if before then return before end

local why, wait_ms, limit = stopped(account)
local left = limit - live(account, now)
local permits = math.min(input.want, left)
local free, claimed = permits, {now, why or permits < input.want and 'full' or ''}
-- Ahead only a fair share of what waits for more than the permits there are, so that at the end no thread anywhere is
-- idle while another has two to do; none while fewer calls are to run.
if (input.at_work > 0 and left >= 0) or permits > 0 then
  local processes = math.max(1, ask('ZCOUNT', prefix .. 'workers', now, '+inf'))
  local share = math.floor((due_count(account) - permits - limit) / processes)
  free = permits + math.max(0, math.min(input.ahead, share))
end

local function hold(name, permit_ms)
  free, permits = free - 1, permits - 1
  if permits < 0 then return '' end
  gather('ZADD', prefix .. 'permits:' .. account, now + permit_ms, name)
  return name
end

local function report(kind, d, permit)
  claimed[#claimed + 1] = {
    kind, d.id, tonumber(d.token), d.finetune_id, d.lane, tonumber(d.created_at), tonumber(d.asked_at),
    tonumber(d.due_at), tonumber(d.deadline), d.fingerprint or '', tonumber(d.looked_at) or 0,
    tonumber(d.unclear_at) or 0, tonumber(d.cancel_requested_at) or 0, tonumber(d.backoffs) or 0,
    d.last_tried and 1 or 0, tonumber(d.calling) or 0, tonumber(d.joined) or 0, permit,
  }
end

local function take_looks(most)
  local looks = prefix .. 'looks:' .. account
  for _, id in ipairs(ask('ZRANGEBYSCORE', looks, NEVER, now, 'LIMIT', 0, math.max(0, most))) do
    local d = read(id)
    if d and (d.state == 'scheduled' or d.state == 'queued') then
      -- It may take three calls, one after the other, and nobody else must begin it meanwhile.
      local long = math.max(input.lease_ms, 3 * input.permit_ms)
      gather('ZADD', looks, now + long, id)
      report('look', d, hold('look:' .. id .. ':' .. now, long))
    else
      gather('ZREM', looks, id)
    end
  end
end

local function is_called_at_once(d)
  local looks = given(input.looks_first) or d.lane == 'resolve' or d.fingerprint or d.unclear_at
  return not (looks or d.looked_at or (tonumber(d.backoffs) or 0) > 0)
end

local function start(d)
  -- Reports of use that still wait in their queue, as after an outage, come before what a cleanup wants.
  if d.cleanup and redis.call('LLEN', 'touches') > 0 then return end
  local why = d.cleanup and spared(d, tonumber(d.cleanup))
  if why then
    withdraw_cleanup(d, why)
    return
  end
  local calling = is_called_at_once(d) and now or ''
  move(d, 'running', now + input.lease_ms, {token = d.token + 1, owner = input.owner, calling = calling})
  gather('ZREM', prefix .. 'looks:' .. account, d.id)
  report('delete', d, hold(permit_name(d), input.permit_ms))
end

local function take(lane, most)
  local queue = prefix .. 'queue:' .. account .. ':' .. lane
  for _, id in ipairs(ask('ZRANGEBYSCORE', queue, NEVER, now, 'LIMIT', 0, math.max(0, most))) do
    start(read(id))
  end
end

local function promote()
  local wait = prefix .. 'wait:' .. account
  for _, id in ipairs(ask('ZRANGEBYSCORE', wait, NEVER, now, 'LIMIT', 0, free)) do
    local d = read(id)
    move(d, 'queued', d.due_at)
  end
end

local function take_probe()
  redis.call('HSET', prefix .. 'account:' .. account, 'probe_at', now + input.lease_ms)
  hold('probe', input.permit_ms)
  claimed[#claimed + 1] = {'probe', 'probe', 0, '', '', 0, 0, 0, 0, '', 0, 0, 0, 0, 0, 0, 0, 'probe'}
end

if permits > 0 and why == 'parked' and wait_ms == 0 then take_probe() end
if free > 0 and (not why or why == 'paused') then
  promote()
  take('resolve', free)
end
if free > 0 and not why then
  -- Single requests first, then bulk and cleanup; but first looks get up to half, or every other turn, all along.
  local waiting = ask('ZCOUNT', prefix .. 'looks:' .. account, NEVER, now)
  local half = free > 1 and math.floor(free / 2) or now % 2
  local for_looks = math.min(waiting, half)
  take('single', free - for_looks)
  take_looks(math.min(for_looks, free))
  take('bulk', free)
end
if free > 0 and (not why or why == 'paused') then take_looks(free) end
local answer = cjson.encode(claimed)
if #claimed > 2 then redis.call('SET', memo, answer, 'PX', input.lease_ms) end
return answer
