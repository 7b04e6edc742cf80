-- What holds for a whole account: {account, action, reason, ...}.
-- register {max_concurrent} | cool {ms, step_ms, most_ms} | park {reason} | unpark | pause {reason} | resume

local name = prefix .. 'account:' .. input.account

-- Without a time from the API the cool-down doubles, as long as one follows soon upon the other.
local function cool()
  local a = redis.call('HMGET', name, 'cool_until', 'cool_step')
  local cool_until, step = tonumber(a[1]) or 0, tonumber(a[2]) or 0
  local length = given(input.ms)
  if length == 0 then length = nil end
  if not length then
    if cool_until > now then return cool_until - now end
    step = (step > 0 and now - cool_until < step) and math.min(step * 2, input.most_ms) or input.step_ms
    length = step
    redis.call('HSET', name, 'cool_step', step)
  end
  redis.call('HSET', name, 'cool_until', math.max(cool_until, now + length), 'cool_reason', input.reason)
  return math.max(cool_until - now, length)
end

local actions = {
  register = function() register(input.account, input.max_concurrent) end,
  cool = cool,
  park = function()
    redis.call('HSET', name, 'parked_at', now, 'parked_reason', input.reason, 'probe_at', now + input.probe_ms)
  end,
  unpark = function() redis.call('HDEL', name, 'parked_at', 'parked_reason', 'probe_at') end,
  pause = function() redis.call('HSET', prefix .. 'paused', input.account, given(input.reason) or 'by request') end,
  resume = function() redis.call('HDEL', prefix .. 'paused', input.account) end,
}
return actions[input.action]() or 0
