-- The audit log: who did what, and why. A list for each month, under a prefix of its own: the users of Redis that act may add
-- to it (RPUSH) and read it, so none of them can change or remove an entry. A script writes the entry of what it does.
-- input.act: {who, via, why}, as `Act` in types.py; without it nothing is written.

local MOST_NAMED = 20

-- Days are counted from 1 March 1968, so that a leap day is the last of its year; right until 2099.
local function month_of(ms)
  local day = math.floor(ms / 86400000) + 671
  local year = math.floor((4 * day + 3) / 1461)
  local month = math.floor((5 * (day - math.floor(1461 * year / 4)) + 2) / 153)
  return string.format('%04d-%02d', 1968 + year + (month >= 10 and 1 or 0), (month + 2) % 12 + 1)
end

-- Refused here, before anything is changed, if this user of Redis may not write the log.
if given(input.act) and type(redis.pcall('LLEN', key.audit(month_of(now)))) == 'table' then
  return redis.error_reply('ERR this user may not write the audit log, so nothing was done: see docs/how-to/secure-redis.md')
end

-- name: of what was done. what: ids, of which 20 are named and all counted. account: nil for acts about several.
local function audit(act, name, account, what, plan)
  if not given(act) then return end
  local named = {}
  for i = 1, math.min(#what, MOST_NAMED) do named[i] = what[i] end
  local entry = {at = now, who = act.who, via = act.via, act = name, account = account, ids = named[1] and named or nil,
    count = #what, plan = plan, why = given(act.why)}
  -- Not `call`: an alarm must stop an account even if it cannot be noted.
  redis.pcall('RPUSH', key.audit(month_of(now)), cjson.encode(entry))
end
