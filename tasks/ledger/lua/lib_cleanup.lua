-- What keeps a finetune from a cleanup.

local USE_GAP = 86400000

-- Whether reports of use have come since then as they did before. While they do not, nobody can say that something is used.
local function is_use_reported(account, since)
  local values = call('HMGET', key.account(account), 'use_since', 'use_last')
  return tonumber(values[1] or math.huge) <= since and now - tonumber(values[2] or 0) <= USE_GAP
end

-- Why a cleanup may not have this finetune, or nil. planned_at: when its plan was made. known_use: when it was last used, as
-- the plan saw it (0: never); another value is a later use, also if Redis's clock was set back since. nil: not known.
local function reason_to_keep(d, planned_at, known_use)
  if hold_of(d) then return 'it is held' end
  local protected = tonumber(call('HGET', key.protected(d.account), d.name) or 0)
  if protected > now then return 'it is protected' end
  local used = tonumber(call('HGET', key.used(d.account), d.name) or 0)
  if used >= planned_at or used ~= (known_use or used) then return 'it was used after the plan was made' end
  if given(call('HGET', key.deletion(d.id), 'needs_use')) and not is_use_reported(d.account, planned_at) then
    return 'use was not reported without a gap'
  end
  local seen = call('HGET', key.inventory(d.account), d.name)
  -- Not decoded: what cannot be read must not stop the script.
  local first_seen = seen and (tonumber(string.match(seen, '"first_seen": ?(%d+)')) or math.huge)
  if first_seen and first_seen > planned_at then return 'the name belongs to another finetune now' end
end

-- Withdraw the cleanup's deletion of a finetune, and nothing else. Answers its id and what `withdraw` answers; nil if there is
-- none. If it was withdrawn before and has not ended, its call may still be under way.
local function withdraw_cleanup(account, name, why)
  local id = call('HGET', key.finetune(account, name), 'cleanup')
  local d = id and read(id)
  if not d or is_final(d.state) then return nil end
  return id, d.cancel_requested_at and 'requested' or withdraw(d, 'cleanup', why, '', 'kept: ' .. why)
end
