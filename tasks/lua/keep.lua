-- Use and protection: {action, account, ids, until_ms, give_up_after_ms, first_look_after_ms}.
-- touch | protect | unprotect. What a cleanup wanted with them is withdrawn; answers those deletions' ids.

local key = prefix .. (input.action == 'touch' and 'used:' or 'protected:') .. input.account
local DAY = 86400000

-- Use counts as reported without a gap as long as one report follows the other within a day.
local function report_use()
  local name = prefix .. 'account:' .. input.account
  local last = tonumber(redis.call('HGET', name, 'use_last') or 0)
  if now - last > DAY then redis.call('HSET', name, 'use_since', now) end
  redis.call('HSET', name, 'use_last', now)
end

if input.action == 'touch' then report_use() end
local withdrawn = {}
for _, finetune_id in ipairs(input.ids) do
  if input.action == 'unprotect' then
    redis.call('HDEL', key, finetune_id)
  else
    redis.call('HSET', key, finetune_id, given(input.until_ms) or now)
    local open = redis.call('HGET', prefix .. 'open:' .. input.account, finetune_id)
    local why = input.action == 'touch' and 'it was used after the plan was made' or 'it is protected'
    if open and withdraw_cleanup(read(open), why) then withdrawn[#withdrawn + 1] = open end
  end
end
return withdrawn
