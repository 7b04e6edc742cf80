-- What every script begins with. ARGV[1] is the input as one JSON object, AFTER_FINAL the one state that may follow each
-- final state (tasks/records.py), `key` the table of keys (tasks/ledger/keys.py).
-- A script runs alone in Redis, so each change below is atomic. Times are milliseconds of Redis's own clock.

local call = redis.call
local input = cjson.decode(ARGV[1])
local clock = call('TIME')
local now = input.now_ms or clock[1] * 1000 + math.floor(clock[2] / 1000)
local LANES = {'resolve', 'single', 'bulk', 'cleanup', 'first'}
local SCAN = 20  -- how many deletions a script may pass over

-- A value, or nil if there is none: JSON's null and empty texts count as none.
local function given(value)
  if value == nil or value == false or value == cjson.null or value == '' then return nil end
  return value
end

-- Lua prints large numbers as 1.7e+12.
local function digits(n)
  return string.format('%.0f', n)
end

local function is_final(state)
  return not (state == 'scheduled' or state == 'queued' or state == 'running')
end
