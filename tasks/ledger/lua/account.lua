-- needs: account audit
-- Stops of a whole account.
-- Input: {account, action, act?, ...}. Answer: a number, see each action.
--   cool {ms, step_ms, most_ms}: start nothing for a while; answers for how many ms. Without a time from the API the cool-down
--     doubles as long as one follows soon after another.
--   park {probe_ms}, unpark, pause {reason}, resume. probe {probe_ms}: 1 if this caller is to probe the parked account now.

local hash = key.account(input.account)

local function cool()
  local a = call('HMGET', hash, 'cool_until', 'cool_step', 'cool_ms')
  local cool_until, step, cool_ms = tonumber(a[1]) or 0, tonumber(a[2]) or 0, tonumber(a[3]) or 0
  if cool_until - now > cool_ms then cool_until = 0 end  -- Redis's clock was set back since
  local length = given(input.ms)
  if length == 0 then length = nil end
  if not length then
    if cool_until > now then return cool_until - now end
    step = (step > 0 and now - cool_until < step) and math.min(step * 2, input.most_ms) or input.step_ms
    length = step
    call('HSET', hash, 'cool_step', step)
  end
  if now + length > cool_until then
    call('HSET', hash, 'cool_until', digits(now + length), 'cool_ms', digits(length))
  end
  call('HSET', hash, 'cool_reason', input.reason)
  return math.max(cool_until - now, length)
end

-- A deadline counts from when the account could work again. The account `*` stands for all of them.
local function started()
  local names = input.account == '*' and call('SMEMBERS', key.accounts()) or {input.account}
  for _, name in ipairs(names) do call('HSET', key.account(name), 'started_at', digits(now)) end
end

local actions = {
  cool = cool,
  park = function()
    call('HSET', hash, 'parked_at', digits(now), 'parked_reason', input.reason, 'probe_at', digits(now + input.probe_ms))
  end,
  unpark = function()
    if call('HDEL', hash, 'parked_at', 'parked_reason', 'probe_at') > 0 then started() end
  end,
  pause = function()
    call('HSET', key.paused(), input.account, given(input.reason) or 'by request')
    call('HSET', hash, 'paused_at', digits(now), 'paused_by', given(input.act) and given(input.act.who) or '')
  end,
  resume = function()
    if call('HDEL', key.paused(), input.account) + call('HDEL', hash, 'parked_at', 'parked_reason', 'probe_at') > 0 then
      started()
    end
  end,
  probe = function()
    local a = call('HMGET', hash, 'parked_at', 'probe_at')
    local left = (tonumber(a[2]) or 0) - now
    if not a[1] or left > 0 and left <= input.probe_ms then return 0 end
    call('HSET', hash, 'probe_at', digits(now + input.probe_ms))
    return 1
  end,
}
local answer = actions[input.action]() or 0
audit(input.act, input.action, input.account, {})
return answer
