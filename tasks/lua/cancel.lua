-- Withdraw deletions by the id of any of their requests: {ids, nonce, give_up_after_ms, first_look_after_ms}.
-- Answers for each: unknown, final, cancelled, or requested (a call may be under way; a read-back decides).

local function cancel(d)
  if is_final(d.state) then
    -- The same call again, its first answer lost on the way, is told what it would have been told.
    return d.cancelled_by == input.nonce and 'cancelled' or 'final'
  end
  if d.cancel_requested_at then
    -- Whoever joined in the meantime is withdrawn too, unless it is the same cancel again.
    if d.cancelled_by ~= input.nonce then set(d, {cancel_requested_at = now, cancelled_by = input.nonce}) end
    return 'requested'
  end
  return withdraw(d, input.nonce, 'withdrawn on request before anything was deleted')
end

local answers = {}
for i, id in ipairs(input.ids) do
  local d = find(id)
  answers[i] = d and {cancel(d), d.id} or {'unknown', id}
end
return answers
