-- needs: record audit
-- Keep a finetune from every deletion, or release it.
-- Input: {account, finetune, hold? = {since, by, reason, until_ms?, message}, act}. Without `hold` the finetune is released.
-- Answer: {was_held, longer?}. longer: the hold that is there and lasts longer, which therefore stays; only a release ends it sooner.

local holds = key.holds(input.account)
local there, new = hold_of({account = input.account, name = input.finetune}), given(input.hold)
local function end_of(hold) return given(hold.until_ms) or math.huge end
if new and there and end_of(there) > end_of(new) then return cjson.encode({was_held = true, longer = there}) end
if new then call('HSET', holds, input.finetune, cjson.encode(new)) else call('HDEL', holds, input.finetune) end
if new or there then audit(input.act, new and 'hold' or 'release', input.account, {input.finetune}) end
return cjson.encode({was_held = there ~= nil})
