-- Claim what can start now: {account, owner, nonce, want, lease_ms, permit_ms, begun}.
-- Answers {now, why nothing may start, [kind, id, token, fields ...] ...}; kind is look, delete or probe.
-- The claim counts as the check before a call that starts within the second: `calling` is set here.

local account = input.account
if given(input.begun) then
  redis.call('ZREM', prefix .. 'wakeups:' .. account, input.begun)
  redis.call('HDEL', prefix .. 'account:' .. account, 'misses')
end
-- Asked again by a caller whose answer was lost: the same claims, the same tokens.
local memo = prefix .. 'claim:' .. input.nonce
local before = redis.call('GET', memo)
if before then return cjson.decode(before) end

local why, wait_ms, limit = stopped(account)
local free = math.min(input.want, limit - live(account, now))
local claimed = {now, why or ''}

local function hold(id)
  redis.call('ZADD', prefix .. 'permits:' .. account, now + input.permit_ms, id)
  free = free - 1
end

local function report(kind, d)
  claimed[#claimed + 1] = {
    kind, d.id, tonumber(d.token), d.finetune_id, d.lane, tonumber(d.created_at), tonumber(d.asked_at),
    tonumber(d.due_at), tonumber(d.deadline), d.fingerprint or '', tonumber(d.looked_at) or 0,
    tonumber(d.unclear_at) or 0, tonumber(d.cancel_requested_at) or 0, tonumber(d.backoffs) or 0,
    d.last_tried and 1 or 0,
  }
end

local function take_looks()
  local looks = prefix .. 'looks:' .. account
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', looks, NEVER, now, 'LIMIT', 0, math.max(0, free))) do
    local d = read(id)
    if d and (d.state == 'scheduled' or d.state == 'queued') then
      redis.call('ZADD', looks, now + input.lease_ms, id)
      hold('look:' .. id)
      report('look', d)
    else
      redis.call('ZREM', looks, id)
    end
  end
end

local function start(d)
  move(d, 'running', now + input.lease_ms)
  set(d, {token = d.token + 1, owner = input.owner, calling = now})
  redis.call('ZREM', prefix .. 'looks:' .. account, d.id)
  hold(d.id)
  report('delete', d)
end

local function take(lane, most)
  local queue = prefix .. 'queue:' .. account .. ':' .. lane
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', queue, NEVER, now, 'LIMIT', 0, math.max(0, most))) do
    start(read(id))
  end
end

local function promote()
  local wait = prefix .. 'wait:' .. account
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', wait, NEVER, now, 'LIMIT', 0, input.want)) do
    local d = read(id)
    move(d, 'queued', d.due_at)
  end
end

local function take_probe()
  redis.call('HSET', prefix .. 'account:' .. account, 'probe_at', now + input.lease_ms)
  hold('probe')
  claimed[#claimed + 1] = {'probe', 'probe', 0}
end

if free > 0 and why == 'parked' and wait_ms == 0 then take_probe() end
if free > 0 and (not why or why == 'paused') then
  promote()
  take_looks()
  take('resolve', free)
end
if free > 0 and not why then
  -- Single requests first: bulk and cleanup get only what these leave.
  take('single', free)
  take('bulk', free)
end
if #claimed > 2 then redis.call('SET', memo, cjson.encode(claimed), 'PX', input.lease_ms) end
return claimed
