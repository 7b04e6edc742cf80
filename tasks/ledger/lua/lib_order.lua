-- Where an unfinished deletion stands. It is always in exactly one of: `wait` (scheduled), `queue` or the finetune's own
-- list `siblings` (queued), `leases` (running). One that awaits its first observation is in `first` as well.

-- The lane in which a deletion queues. One that may only be observed goes before all others.
local function lane_of(d)
  return (d.cancel_requested_at or d.last_try) and 'resolve' or d.lane
end

-- Its place by its state: one that is queued may be in `siblings` instead.
local function place_of(d)
  if d.state == 'scheduled' then return key.wait(d.account) end
  if d.state == 'queued' then return key.queue(d.account, lane_of(d)) end
  if d.state == 'running' then return key.leases(d.account, d.running_lane or d.lane) end
  return key.finished()
end

local function leave(d)
  local was_there = call('ZREM', place_of(d), d.id) == 1
  if d.state == 'running' and call('HGET', key.finetune(d.account, d.name), 'running') == d.id then
    call('HDEL', key.finetune(d.account, d.name), 'running')
  elseif d.state == 'queued' and not was_there then
    call('ZREM', key.siblings(d.account, d.name), d.id)
  end
end

local function enter(d, score)
  call('ZADD', place_of(d), score, d.id)
  call('ZADD', key.index(d.account, d.state), d.created_at, d.id)
end

-- The only way from one state to another. Fields that decide where it stands (lane, cancel, last try) change with it,
-- after it has left its old place.
local function move(d, state, score, changes)
  if is_final(d.state) and AFTER_FINAL[d.state] ~= state then
    error('a deletion cannot go from ' .. d.state .. ' to ' .. state .. ': ' .. d.id)
  end
  leave(d)
  call('ZREM', key.index(d.account, d.state), d.id)
  changes.state = state
  set(d, changes)
  enter(d, score)
end

-- Wait until its next try: scheduled if that is still to come, queued if it is due.
local function await(d, at, changes)
  changes.next_try_at = at
  changes.calling = ''
  move(d, at > now and 'scheduled' or 'queued', at, changes)
end
