-- Accept requests, each once: {requests = [...], nonce, give_up_after_ms, first_look_after_ms}.
-- Answers as JSON {[id of the deletion, created 0|1, known 0|1] ...}, then wake-ups {[account, id] ...}.

local answers, touched, seen = {}, {}, {}
for i, request in ipairs(input.requests) do
  local known = redis.call('EXISTS', prefix .. 'd:' .. request.id, prefix .. 'r:' .. request.id) > 0
  local d = known and find(request.id)
  if d then
    -- The same call again, its first answer lost on the way, is told what it would have been told.
    local mine = not seen[request.id] and d.id == request.id
      and redis.call('HGET', prefix .. 'd:' .. d.id, 'nonce') == input.nonce
    answers[i] = {d.id, mine and 1 or 0, mine and 0 or 1}
  else
    request.at = math.min(given(request.requested_at) or now, now)
    request.due_at = given(request.due_at) or (now + (given(request.delay_ms) or 0))
    request.nonce = input.nonce
    if given(request.callbacks) then redis.call('SET', prefix .. 'cb:' .. request.id, request.callbacks) end
    local created
    d, created = add(request)
    count(prefix .. 'stats:' .. d.account, 'source:' .. string.match(request.source, '^[^:]*'), 1)
    answers[i] = {d.id, created, 0}
    local why = is_cleanup(request) and spared(d, request.at, given(request.fingerprint))
    if why then
      settle()
      withdraw_cleanup(read(d.id), why)
    end
    local retried = string.match(request.source, '^retry:(.+)$')
    if retried and redis.call('EXISTS', prefix .. 'd:' .. retried) == 1 then
      redis.call('HSET', prefix .. 'd:' .. retried, 'retried_by', d.id)
    end
  end
  touched[d.account], seen[request.id] = true, true
end
local sent = {}
for account in pairs(touched) do
  redis.call('SADD', prefix .. 'accounts', account)
  for _, id in ipairs(wakeups(account)) do sent[#sent + 1] = {account, id} end
end
return cjson.encode({answers, sent})
