-- needs: record order siblings finish
-- Write what a verification of deleted records found.
-- Input: {account, findings = [{id, finished_at, word, at?, hits?}], message, result_within_ms}; at most 500. word: gone | again (look again `at`) |
--   end | still_there. finished_at: of the record that was looked at; one that changed meanwhile is left alone.
-- Answer: {review = [id, ...]}: the records that turned into `review`.

local review = {}
for _, found in ipairs(input.findings) do
  local d = read(found.id)
  if not d or d.state ~= 'deleted' or tonumber(d.finished_at) ~= found.finished_at then
    call('ZREM', key.verify(input.account), found.id)
  elseif found.word == 'again' then
    call('HSET', key.deletion(found.id), 'verify_hits', found.hits)
    call('ZADD', key.verify(input.account), found.at, found.id)
  else
    call('ZREM', key.verify(input.account), found.id)
    if found.word == 'gone' then set(d, {verified_at = now}) end
    if found.word == 'still_there' then
      review[#review + 1] = found.id
      d.by_name = nil  -- what a producer was told is not taken back
      finish(d, {state = 'review', message = input.message, evidence = d.evidence, deleted_by = d.deleted_by})
      call('HINCRBY', key.stats(d.account), 'verification:failed', 1)
    end
  end
end
return cjson.encode({review = review[1] and review or nil})
