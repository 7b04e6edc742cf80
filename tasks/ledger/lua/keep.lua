-- needs: record order siblings finish cleanup audit
-- Use and protection of finetunes. Both withdraw the cleanup's deletion of a finetune, and nothing else.
-- Input: {action, account, finetunes = [name, ...], until_ms, act?, result_within_ms}; at most 500. action: touch | protect | unprotect.
-- Answer: {cancelled?, requested?}, each a list of the deletions for which a cancel would answer so.

local stored = input.action == 'touch' and key.used(input.account) or key.protected(input.account)

-- Use counts as reported without a gap as long as one report follows the other within a day.
local function report_use()
  local last = tonumber(call('HGET', key.account(input.account), 'use_last') or 0)
  if now - last > USE_GAP then call('HSET', key.account(input.account), 'use_since', now) end
  call('HSET', key.account(input.account), 'use_last', now)
end

if input.action == 'touch' then report_use() end
local found = {}
for _, name in ipairs(input.finetunes) do
  if input.action == 'unprotect' then
    call('HDEL', stored, name)
  else
    -- Only `unprotect` ends a protection sooner.
    local before = input.action == 'protect' and tonumber(call('HGET', stored, name) or 0) or 0
    call('HSET', stored, name, digits(math.max(before, given(input.until_ms) or now)))
    local why = input.action == 'touch' and 'it was used after the plan was made' or 'it is protected'
    local id, word = withdraw_cleanup(input.account, name, why)
    if id then
      found[word] = found[word] or {}
      table.insert(found[word], id)
    end
  end
end
audit(input.act, input.action, input.account, input.finetunes)
return cjson.encode(found)
