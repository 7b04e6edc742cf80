-- needs: record order siblings finish cleanup audit
-- Use and protection of finetunes. Both withdraw the cleanup's deletion of a finetune, and nothing else.
-- Input: {action, account, finetunes = [[id, name], ...], until_ms, act?, result_within_ms}; at most 500. action: touch | protect | unprotect.
-- Answer: {withdrawn = [deletion id, ...]}.

local DAY = 86400000
local stored = input.action == 'touch' and key.used(input.account) or key.protected(input.account)

-- Use counts as reported without a gap as long as one report follows the other within a day.
local function report_use()
  local last = tonumber(call('HGET', key.account(input.account), 'use_last') or 0)
  if now - last > DAY then call('HSET', key.account(input.account), 'use_since', now) end
  call('HSET', key.account(input.account), 'use_last', now)
end

if input.action == 'touch' then report_use() end
local withdrawn, names = {}, {}
for _, finetune in ipairs(input.finetunes) do
  local id, name = finetune[1], finetune[2]
  if names[#names] ~= name then names[#names + 1] = name end  -- two spellings of one come together
  if input.action == 'unprotect' then
    call('HDEL', stored, id)
  else
    -- Only `unprotect` ends a protection sooner.
    local before = input.action == 'protect' and tonumber(call('HGET', stored, id) or 0) or 0
    call('HSET', stored, id, digits(math.max(before, given(input.until_ms) or now)))
    local why = input.action == 'touch' and 'it was used after the plan was made' or 'it is protected'
    withdrawn[#withdrawn + 1] = withdraw_cleanup(input.account, name, why)
  end
end
audit(input.act, input.account, names)
return cjson.encode({withdrawn = withdrawn[1] and withdrawn or nil})
