-- needs: audit
-- Acts on what is no record: dead letters are dropped or sent again, a plan gets another summary; without any, an act is only
-- noted (tokens, pruning).
-- Input: {kind, ids, letters = [[id, entry, queue?, text?], ...], plan? = [id, summary], act}; at most 100 letters.
-- Answer: the ids of letters that were there.

local done = {}
for _, letter in ipairs(input.letters) do
  local id, entry, queue, text = unpack(letter)
  -- The queue first: the user may lack the right to write to it, and then the letter must stay.
  if call('LPOS', key.dead_letters(), entry) then
    if given(queue) then call('LPUSH', queue, text) end
    call('LREM', key.dead_letters(), 1, entry)
    done[#done + 1] = id
  end
end
if given(input.plan) then call('HSET', key.plan(input.plan[1]), 'summary', input.plan[2]) end
local what = given(input.ids) or done
if what[1] then audit(input.act, input.kind, nil, what) end
return cjson.encode(done[1] and done or nil)
