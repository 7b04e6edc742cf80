-- What keeps a finetune from a cleanup.

-- Why a cleanup may not have this finetune, or nil. planned_at: when its plan was made.
local function reason_to_keep(d, planned_at)
  if hold_of(d) then return 'it is held' end
  local protected = tonumber(call('HGET', key.protected(d.account), d.finetune_id) or 0)
  if protected > now then return 'it is protected' end
  local used = tonumber(call('HGET', key.used(d.account), d.finetune_id) or 0)
  if used >= planned_at then return 'it was used after the plan was made' end
  local seen = call('HGET', key.inventory(d.account), d.finetune_id)
  if seen and cjson.decode(seen).first_seen > planned_at then return 'the name belongs to another finetune now' end
end

-- Withdraw the cleanup's deletion of a finetune, and nothing else. Answers its id, or nil if there is none.
local function withdraw_cleanup(account, name, why)
  local id = call('HGET', key.finetune(account, name), 'cleanup')
  local d = id and read(id)
  if not d or is_final(d.state) or d.cancel_requested_at then return nil end
  withdraw(d, 'cleanup', why, '', 'kept: ' .. why)
  return id
end
