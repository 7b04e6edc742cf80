-- needs: record order siblings finish audit
-- Keep a finetune from every deletion, or release it.
-- Input: {account, finetune, hold? = {since, by, reason, until_ms?, message}, act, result_within_ms}. Without `hold` the finetune is
--   released. message: of the deletions that are withdrawn, here at most 20; the mark stops the others.
-- Answer: {was_held, withdrawn = [deletion id, ...]}.

local holds, withdrawn = key.holds(input.account), {}
local was_held = call('HEXISTS', holds, input.finetune) == 1
if given(input.hold) then
  call('HSET', holds, input.finetune, cjson.encode(input.hold))
  for _, id in ipairs(call('SRANDMEMBER', key.unfinished(input.account, input.finetune), SCAN)) do
    local d = read(id)
    if d and not is_final(d.state) and not d.cancel_requested_at then
      withdraw(d, input.act.who, input.hold.message, '', input.hold.message)
      withdrawn[#withdrawn + 1] = id
    end
  end
else
  call('HDEL', holds, input.finetune)
end
if was_held or given(input.hold) then audit(input.act, input.account, {input.finetune}) end
return cjson.encode({was_held = was_held, withdrawn = withdrawn[1] and withdrawn or nil})
