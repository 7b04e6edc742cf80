-- Write what came of calls: {outcomes = [{id, token, state, ...}], give_up_after_ms, first_look_after_ms}.
-- A first look (`look`) only concludes what still is as it was when the look began: same token, same requests,
-- same fingerprint (`expected`).
-- With `goes_on` (look, delete) the thread has gone on to such a one under the same permit, and keeps it: a look may
-- take three calls, and nothing renews it in between.
-- Answers {done, again (handed back), late (noted, changed nothing) or gone (no such record), ...}, {owed ...}.

local KEPT = {'fingerprint', 'looked_at', 'unclear_at', 'last_tried'}

local function keep_findings(d, o, changes)
  add_attempts(d, o.attempts, changes)
  for _, name in ipairs(o.look and {'fingerprint', 'looked_at'} or KEPT) do
    if o[name] ~= nil then changes[name] = given(o[name]) or '' end
  end
  if next(changes) then set(d, changes) end
end

local function late(d, o)
  local more = add_attempts(d, o.attempts, {})
  if more.attempts then set(d, more) end
  -- What alarms must end it, whoever holds it by now: it must not be tried again.
  if given(o.pause) and not is_final(d.state) then
    finish(d, o)
    return 'done'
  end
  if o.state == 'deleted' and o.evidence == 'response' and d.state ~= 'deleted' then
    finish(d, o)
    return 'done'
  end
  return 'late'
end

local function hand_back(d, o)
  free_permit(d)
  if d.cancel_requested_at and not d.unclear_at then
    finish(d, {state = 'cancelled', message = 'withdrawn on request before anything was deleted'})
    return 'done'
  end
  local due, lane = tonumber(d.due_at), d.cancel_requested_at and 'resolve' or d.lane
  local delay = given(o.delay_ms)
  if delay then due = d.cancel_requested_at and now + delay or math.max(due, now + delay) end
  local backoffs = (tonumber(d.backoffs) or 0) + (delay and 1 or 0)
  move(d, due > now and 'scheduled' or 'queued', due, {
    calling = '', message = o.message, backoffs = backoffs, due_at = due, lane = lane,
  })
  look_anew(d)
  return 'again'
end

local function after_look(d, o)
  local changed = tonumber(d.token) ~= o.token or (tonumber(d.joined) or 0) ~= o.joined
    or (d.fingerprint or '') ~= o.expected
  if changed or d.state == 'running' or is_final(d.state) then return 'late' end
  if given(o.state) then
    finish(d, o)
    return 'done'
  end
  keep_findings(d, o, {})
  if given(o.delay_ms) then schedule_look(d, now + o.delay_ms)
  else gather('ZREM', prefix .. 'looks:' .. d.account, d.id) end
  return 'again'
end

local function conclude(o, d)
  if o.look then return after_look(d, o) end
  -- A delete that happened is a fact, whoever holds the lease by now; anything else needs the token.
  -- The same outcome again, its first answer lost on the way, changes nothing.
  if tonumber(d.concluded) == o.token then return 'done' end
  if given(o.pause) then redis.call('HSET', prefix .. 'paused', d.account, o.pause) end
  local mine = d.state == 'running' and tonumber(d.token) == o.token
  if not mine then return late(d, o) end
  keep_findings(d, o, {concluded = o.token})
  if o.state == 'queued' then return hand_back(d, o) end
  finish(d, o)
  return 'done'
end

-- The last word on each permit of these threads: until when, or false for given back.
local answers, permits = {}, {}
for i, o in ipairs(input.outcomes) do
  local d = read(o.id)
  answers[i] = d and conclude(o, d) or 'gone'
  if d and given(o.permit) then
    local names = permits[d.account] or {}
    permits[d.account] = names
    names[o.permit] = given(o.goes_on) and now + (o.goes_on == 'look' and 3 or 1) * input.permit_ms or false
  end
end
for account, names in pairs(permits) do
  local key = prefix .. 'permits:' .. account
  for name, ends in pairs(names) do
    if ends then gather('ZADD', key, ends, name) else gather('ZREM', key, name) end
  end
end
return {answers, owed}
