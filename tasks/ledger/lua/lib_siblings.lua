-- Siblings: the unfinished deletions of one finetune. At most one runs at a time.
--
-- The hash `finetune` says which deletion runs, which one holds the finetune because an attempt of it may have been
-- applied and is not settled yet, and what the last attempts came to. It lives as long as there is an unfinished deletion.

local MOST_TRIES = 10
local LONGEST_HOLD = 60000  -- how long one that holds the finetune may wait while a sibling is due, in milliseconds

-- Whether the deletion that holds the finetune still does: a hold whose record is final or missing is ignored.
local function is_held_by_another(d, holder)
  if not holder or holder == d.id then return false end
  local state = state_of(holder)
  return state and not is_final(state)
end

local function tries_of(account, name)
  local text = call('HGET', key.finetune(account, name), 'tries')
  return text and cjson.decode(text) or {}
end

-- Keep what an attempt of `d` came to: `deleted`, or `unclear` (it may have been applied). nil: it was not applied.
-- mark and finish are numbers of the one counter, so that siblings are ordered by no clock.
local function remember_try(d, result)
  local tries, kept = tries_of(d.account, d.name), {}
  for _, try in ipairs(tries) do
    if try.by ~= d.id then kept[#kept + 1] = try end
  end
  -- Without its mark (a failover rolled it back) nobody can tell what the attempt was before or after.
  if result and d.made then
    kept[#kept + 1] = {
      by = d.id, mark = tonumber(d.made), finish = next_number(), result = result, incarnation = d.incarnation,
      vantage = d.vantage, born_after = tonumber(d.born_after),
    }
    if #kept > MOST_TRIES then table.remove(kept, 1) end
  end
  if #kept > 0 then call('HSET', key.finetune(d.account, d.name), 'tries', cjson.encode(kept))
  elseif #tries > 0 then call('HDEL', key.finetune(d.account, d.name), 'tries') end
end

-- Hold the finetune while an attempt of `d` is not settled, or let it go: to another one that is not settled, if there is one. (A retry
-- of an unclear deletion can be the second.)
local function hold_if_unsettled(d)
  local finetune = key.finetune(d.account, d.name)
  if d.unclear_at and not is_final(d.state) then
    call('HSET', finetune, 'held', d.id)
  elseif call('HGET', finetune, 'held') == d.id then
    call('HDEL', finetune, 'held')
    for _, try in ipairs(tries_of(d.account, d.name)) do
      local other = try.by ~= d.id and read(try.by)
      if other and other.unclear_at and not is_final(other.state) then call('HSET', finetune, 'held', other.id) end
    end
  end
end

-- Move a deletion that cannot run now from its lane to the finetune's own list, so that no claim meets it again. If the one that
-- holds the finetune waits for longer than LONGEST_HOLD, its next try comes forward.
local function queue_behind(d)
  call('ZREM', key.queue(d.account, lane_of(d)), d.id)
  call('ZADD', key.siblings(d.account, d.name), d.next_try_at or d.due_at, d.id)
  call('ZADD', key.blocked(d.account), 'NX', now, d.name)
  local holder = read(call('HGET', key.finetune(d.account, d.name), 'held') or '')
  if holder and holder.state == 'scheduled' and tonumber(holder.next_try_at or 0) > now + LONGEST_HOLD then
    await(holder, now + LONGEST_HOLD, {})
  end
end

-- Put the sibling with the earliest due time back into its lane; while an attempt holds the finetune, only the one that made it.
local function put_back_one(account, name)
  local list, holder = key.siblings(account, name), call('HGET', key.finetune(account, name), 'held')
  local is_held = is_held_by_another({}, holder)
  for _, id in ipairs(is_held and {holder} or call('ZRANGE', list, 0, SCAN - 1)) do
    local d = call('ZREM', list, id) == 1 and read(id)
    if d and d.state == 'queued' then
      call('ZADD', key.queue(account, lane_of(d)), d.next_try_at or d.due_at, id)
      break
    end
  end
end

-- After `d` has left `queued` or `running`: the next sibling may try.
local function let_sibling_try(d)
  if call('EXISTS', key.siblings(d.account, d.name)) == 1 then put_back_one(d.account, d.name) end
end
