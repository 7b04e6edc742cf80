-- The record of one deletion.

-- The fields that scripts read. Numbers stay text until a script calculates with them.
local FIELDS = {
  'finetune_id', 'name', 'account', 'state', 'lane', 'running_lane', 'token', 'accepted', 'created_at', 'asked_at', 'due_at',
  'next_try_at', 'calling', 'mark', 'mark_of', 'made', 'made_of', 'unclear_at', 'finished_token', 'cancel_requested_at', 'cancel_nonce',
  'incarnation', 'observed_at', 'vantage', 'born_after', 'backoffs', 'last_try', 'not_founds', 'crashes', 'cleanup', 'by_name', 'evidence',
  'deleted_by', 'finished_at',
}

local function read(id)
  local values = redis.pcall('HMGET', key.deletion(id), unpack(FIELDS))
  if values.err or not (values[1] and values[2] and values[3] and values[4] and tonumber(values[9]) and tonumber(values[11])) then
    return nil  -- missing, or not readable
  end
  local d = {id = id}
  for i, name in ipairs(FIELDS) do d[name] = given(values[i]) end
  return d
end

-- The state of a deletion, or nil if it has no readable record.
local function state_of(id)
  local state = redis.pcall('HGET', key.deletion(id), 'state')
  return type(state) == 'string' and state or nil
end

-- The hold that keeps a finetune from every deletion; nil if there is none, or its time has passed.
local function hold_of(d)
  local hold = call('HGET', key.holds(d.account), d.name)
  hold = hold and cjson.decode(hold)
  return hold and (given(hold.until_ms) or math.huge) > now and hold or nil
end

-- Change fields of a record; an empty value removes what was there.
local function set(d, changes)
  local flat = {}
  for name, value in pairs(changes) do
    local text = given(value)
    if type(text) == 'number' then text = digits(text) end
    flat[#flat + 1], flat[#flat + 2] = name, text or ''
    d[name] = text
  end
  call('HSET', key.deletion(d.id), unpack(flat))
end

-- Add attempts to a record: lines of JSON, of which the newest hundred stay. counts: statistics that go with them.
-- Lines that are there were written by a script whose answer was lost.
local function add_attempts(d, lines, counts)
  local new = {}
  for _, line in ipairs(given(lines) or {}) do
    if not call('LPOS', key.attempts(d.id), line) then new[#new + 1] = line end
  end
  if new[1] then
    call('RPUSH', key.attempts(d.id), unpack(new))
    call('LTRIM', key.attempts(d.id), -100, -1)
  elseif given(lines) and lines[1] then
    return
  end
  if given(counts) then
    for field, n in pairs(counts) do call('HINCRBY', key.stats(d.account), field, n) end
  end
end

-- Note that the call of an attempt was made, and with it the attempt's number: until then a mark counts for nothing. Answers
-- false if the mark is not there; a failover may have rolled it back.
local function note_made(d, attempt)
  if d.mark_of == attempt and d.made_of ~= attempt then set(d, {made = d.mark, made_of = attempt}) end
  return d.made_of == attempt
end

local function next_number()
  return call('INCR', key.sequence())
end
