-- needs: record audit
-- Note what a person found out about a deletion in review; its state stays.
-- Input: {id, resolution, act}. Answer: {word, who?}. word: resolved | unknown | done (who: did it before) | its state, if that is not review.

local d = read(input.id)
if not d then return cjson.encode({word = 'unknown'}) end
if d.state ~= 'review' then return cjson.encode({word = d.state}) end
local who = call('HGET', key.deletion(d.id), 'resolved_by')
if given(who) then return cjson.encode({word = 'done', who = who}) end
set(d, {resolved_at = now, resolved_by = input.act.who, resolution = input.resolution})
audit(input.act, 'resolve', d.account, {d.id})
return cjson.encode({word = 'resolved'})
