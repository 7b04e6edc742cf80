-- Shared by every script of the ledger; `ledger.py` puts it in front of each and explains the keys.
-- KEYS[1] is the prefix of all keys, ARGV[1] the input as JSON, NEXT the transition table of records.py,
-- CALL_SECONDS the buckets of ledger.py.
-- A script runs alone in Redis, so each change of state below is atomic; times are Redis's own.

local prefix = KEYS[1]
local input = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000) + (input.skew_ms or 0)
local NEVER = '-inf'
local owed = {}  -- by-name requests whose answers this script made due
local LANES = {'resolve', 'single', 'bulk'}

local function given(value)
  if value == nil or value == false or value == cjson.null or value == '' then return nil end
  return value
end

-- Numbers of a batch are mostly the same, and Redis is slow to print them.
local printed = {}
local function digits(n)
  local text = printed[n]
  if not text then
    text = string.format('%.0f', n)
    printed[n] = text
  end
  return text
end

-- What a batch writes to one order, index or name table goes out as one command: a command for each cost more.
-- Whoever reads one of them asks with `ask`, which sends first what has been gathered; so does the end of a script.
local gathered, fresh, counted = {}, {}, {}

local function send(key)
  local words = gathered[key]
  gathered[key] = nil
  redis.call(unpack(words))
end

local function gather(command, key, first, second)
  local words = gathered[key]
  if words and (words[1] ~= command or #words > 4000) then  -- Lua's `unpack` ends at 8,000
    send(key)
    words = nil
  end
  if not words then
    words = {command, key}
    gathered[key] = words
  end
  local n = #words
  words[n + 1] = type(first) == 'number' and digits(first) or first
  words[n + 2] = second
end

local function settle()
  for key in pairs(gathered) do send(key) end
  fresh = {}
end

local function ask(...)
  settle()
  return redis.call(...)
end

local function count(key, field, n)
  local fields = counted[key] or {}
  counted[key] = fields
  fields[field] = (fields[field] or 0) + n
end

-- At the end of every script: see `ledger.py`.
local function close()
  settle()
  for key, fields in pairs(counted) do
    for field, n in pairs(fields) do redis.call('HINCRBY', key, field, n) end
  end
end

local function is_final(state)
  return not (state == 'scheduled' or state == 'queued' or state == 'running')
end

-- What every script needs of a deletion; numbers stay text until they are counted with.
local FIELDS = {
  'finetune_id', 'account', 'state', 'lane', 'created_at', 'due_at', 'token', 'calling', 'unclear_at',
  'cancel_requested_at', 'named', 'joined', 'crashes', 'fingerprint', 'looked_at', 'asked_at', 'deadline',
  'backoffs', 'last_tried', 'concluded', 'relook', 'cleanup', 'attempts', 'cancelled_by',
}

local function read(id)
  local values = redis.call('HMGET', prefix .. 'd:' .. id, unpack(FIELDS))
  if not values[1] then return nil end
  local d = {id = id}
  for i, name in ipairs(FIELDS) do
    local value = values[i]
    if value and value ~= '' then d[name] = value end
  end
  return d
end

local function find(id)
  local d = read(id)
  if d then return d end
  local owner = redis.call('GET', prefix .. 'r:' .. id)
  return owner and read(owner) or nil
end

local function set(d, changes)
  local flat = {}
  for name, value in pairs(changes) do
    local text = given(value)
    if type(text) == 'number' then text = digits(text) end
    flat[#flat + 1], flat[#flat + 2] = name, text or ''
    d[name] = text
  end
  redis.call('HSET', prefix .. 'd:' .. d.id, unpack(flat))
end

local function bucket_of(seconds)
  for _, most in ipairs(CALL_SECONDS) do
    if seconds <= most then return most end
  end
  return 'inf'
end

-- For metrics. Matched, not decoded: no text in it may stop a conclusion, and quotes within texts are escaped.
local function count_attempt(d, line)
  local stats = prefix .. 'stats:' .. d.account
  local answer = string.match(line, '"http_status": ?(%d+)') or string.match(line, '"error": ?"(%w+)"') or 'none'
  local seconds = tonumber(string.match(line, '"seconds": ?([%d.]+)'))
  count(stats, 'call:' .. answer .. ':' .. (seconds and bucket_of(seconds) or 'none'), 1)
  if seconds then count(stats, 'ms:' .. answer, math.floor(seconds * 1000 + 0.5)) end
end

-- These further attempts, in what is to be set of `d`; sent again because the answer was lost, they are there already.
local function add_attempts(d, lines, changes)
  if not given(lines) or d.attempts and string.sub(d.attempts, -#lines) == lines then return changes end
  for line in string.gmatch(lines, '[^\n]+') do count_attempt(d, line) end
  changes.attempts = d.attempts and (d.attempts .. '\n' .. lines) or lines
  return changes
end

local function index_key(d, state)
  return prefix .. 'ix:' .. d.account .. ':' .. state
end

local function order_key(d, state)
  if state == 'scheduled' then return prefix .. 'wait:' .. d.account end
  if state == 'queued' then return prefix .. 'queue:' .. d.account .. ':' .. d.lane end
  if state == 'running' then return prefix .. 'leases:' .. d.account end
  return prefix .. 'finished'
end

local function name_entry(d)
  return string.format('%s\n%015d\n%s', d.finetune_id, d.created_at, d.id)
end

local function enter(d, state, score)
  gather('ZADD', order_key(d, state), score, d.id)
  gather('ZADD', index_key(d, state), d.created_at, d.id)
end

-- The only way from one state to another. What else is to be set goes with it; `lane` too, the old order being left.
local function move(d, to, score, changes)
  if not NEXT[d.state][to] then error('no way from ' .. d.state .. ' to ' .. to .. ': ' .. d.id) end
  gather('ZREM', order_key(d, d.state), d.id)
  gather('ZREM', index_key(d, d.state), d.id)
  changes = changes or {}
  changes.state = to
  set(d, changes)
  enter(d, to, score)
end

-- Of the claim that made it, in a name of its own: a thread keeps it while it goes on to other deletions.
local function permit_name(d)
  return d.id .. ':' .. d.token
end

local function free_permit(d, name)
  gather('ZREM', prefix .. 'permits:' .. d.account, given(name) or permit_name(d))
end

-- A request as it is stored: one line of JSON.
local function request_line(request)
  return cjson.encode({
    id = request.id, at = request.at, due_at = request.due_at, requested_by = request.requested_by,
    reason = request.reason, source = request.source, missing_ok = request.missing_ok,
    fingerprint = given(request.fingerprint), bulk = request.bulk or nil,
  })
end

local function is_cleanup(request)
  return string.sub(request.source, 1, 8) == 'cleanup:'
end

local function remember_named(d, request)
  if request.source ~= 'name' then return end
  set(d, {named = d.named and (d.named .. '\n' .. request.id) or request.id})
end

local function schedule_look(d, at)
  gather('ZADD', prefix .. 'looks:' .. d.account, at, d.id)
end

-- What starts at once is looked at then; what waits longer gets a first look of its own.
local function look_in_time(d)
  schedule_look(d, d.state == 'queued' and now + input.first_look_after_ms or now)
end

-- Handed back with somebody joined meanwhile, whose look is still owed.
local function look_anew(d)
  if not d.relook then return end
  set(d, {relook = ''})
  look_in_time(d)
end

local function create(request)
  local d = {id = request.id, finetune_id = request.finetune_id, account = request.account}
  local due = math.max(request.due_at, now)
  local state = due > now and 'scheduled' or 'queued'
  d.created_at, d.lane, d.state = now, request.bulk and 'bulk' or 'single', state
  redis.call(
    'HSET', prefix .. 'd:' .. d.id, 'finetune_id', d.finetune_id, 'account', d.account, 'state', state, 'lane', d.lane,
    'created_at', digits(now), 'due_at', digits(due), 'deadline', digits(due + input.give_up_after_ms),
    'asked_at', digits(request.at), 'token', '0',
    'fingerprint', given(request.fingerprint) or '', 'requests', request_line(request),
    'nonce', given(request.nonce) or '', 'cleanup', is_cleanup(request) and request.at or ''
  )
  remember_named(d, request)
  gather('HSET', prefix .. 'open:' .. d.account, d.finetune_id, d.id)
  gather('ZADD', prefix .. 'names:' .. d.account, 0, name_entry(d))
  enter(d, state, due)
  if not given(request.fingerprint) then look_in_time(d) end
  fresh[d.account .. '/' .. d.finetune_id] = true
  return d
end

local function bring_forward(d, due)
  if due >= tonumber(d.due_at) then return end
  if d.state == 'scheduled' then
    if due <= now then move(d, 'queued', due) else gather('ZADD', order_key(d, d.state), due, d.id) end
  elseif d.state == 'queued' then
    gather('ZADD', order_key(d, d.state), due, d.id)
  end
  set(d, {due_at = due, deadline = due + input.give_up_after_ms})
end

-- A request for one incarnation says nothing of another: it neither hastens its deletion nor dates it.
local function is_for(d, request)
  return not given(request.fingerprint) or request.fingerprint == d.fingerprint
end

local function join(d, request)
  local key = prefix .. 'd:' .. d.id
  redis.call('HSET', key, 'requests', redis.call('HGET', key, 'requests') .. '\n' .. request_line(request))
  redis.call('SET', prefix .. 'r:' .. request.id, d.id)
  local asked_at = is_for(d, request) and math.min(d.asked_at, request.at) or d.asked_at
  set(d, {joined = (tonumber(d.joined) or 0) + 1, asked_at = asked_at})
  if is_cleanup(request) then set(d, {cleanup = math.max(d.cleanup or 0, request.at)}) end
  remember_named(d, request)
  if is_for(d, request) then bring_forward(d, math.max(request.due_at, now)) end
  if not request.bulk and d.lane == 'bulk' then
    if d.state == 'queued' then gather('ZREM', order_key(d, d.state), d.id) end
    set(d, {lane = 'single'})
    if d.state == 'queued' then enter(d, d.state, d.due_at) end
  end
  -- A person or a service means the finetune of now: it is looked at anew.
  if given(request.fingerprint) then return end
  if d.state == 'running' then set(d, {relook = 1}) else look_in_time(d) end
end

local function add(request)
  if fresh[request.account .. '/' .. request.finetune_id] then settle() end
  local open = redis.call('HGET', prefix .. 'open:' .. request.account, request.finetune_id)
  if not open then return create(request), 1 end
  local d = read(open)
  join(d, request)
  return d, 0
end

-- Requests that this outcome does not answer: made after a cancel, or meant for a later incarnation.
local function leftovers(d, outcome)
  local cancelled_at = tonumber(d.cancel_requested_at)
  -- Use and protection withdraw a cleanup's request alone, whatever the dates of those who joined.
  if d.cancelled_by == 'cleanup' and outcome.state == 'cancelled' then cancelled_at = 0 end
  local since = math.min(given(outcome.since_ms) or cancelled_at or math.huge, cancelled_at or math.huge)
  if not d.joined or since == math.huge then return {} end
  local kept, left = {}, {}
  for line in string.gmatch(redis.call('HGET', prefix .. 'd:' .. d.id, 'requests'), '[^\n]+') do
    local request = cjson.decode(line)
    if request.id ~= d.id and request.at > since and not given(request.withdrawn_at) then left[#left + 1] = request
    else kept[#kept + 1] = line end
  end
  set(d, {requests = table.concat(kept, '\n')})
  return left
end

local function drop_named(d, request)
  local kept = {}
  for id in string.gmatch(d.named or '', '[^\n]+') do
    if id ~= request.id then kept[#kept + 1] = id end
  end
  set(d, {named = table.concat(kept, '\n')})
end

-- Whoever gets the name of one that is gone is another, though it may look the same: its age starts anew.
local function end_life(d)
  local inventory = prefix .. 'inventory:' .. d.account
  local seen = redis.call('HGET', inventory, d.finetune_id)
  if not seen then return end
  seen = cjson.decode(seen)
  seen.first_seen = now
  redis.call('HSET', inventory, d.finetune_id, cjson.encode(seen))
end

-- A deletion ends: its order, its name, its permit and its looks are freed, its answers are owed.
local function finish(d, outcome)
  local left = leftovers(d, outcome)
  if outcome.state == 'deleted' or outcome.state == 'not_found' then end_life(d) end
  move(d, outcome.state, now, {
    status = outcome.status, message = outcome.message, timestamp = outcome.timestamp,
    evidence = outcome.evidence, finished_at = now, calling = '',
  })
  -- A worker's own outcome names the permit it has, and whether a thread goes on under it.
  if not (given(outcome.permit) and outcome.token == tonumber(d.token)) then free_permit(d) end
  gather('ZREM', prefix .. 'looks:' .. d.account, d.id)
  if redis.call('HGET', prefix .. 'open:' .. d.account, d.finetune_id) == d.id then
    redis.call('HDEL', prefix .. 'open:' .. d.account, d.finetune_id)
  end
  for _, request in ipairs(left) do
    request.finetune_id, request.account = d.finetune_id, d.account
    drop_named(d, request)
    redis.call('DEL', prefix .. 'r:' .. request.id)
    add(request)
  end
  if left[1] then settle() end
  for id in string.gmatch(d.named or '', '[^\n]+') do
    gather('ZADD', prefix .. 'outbox', now + (input.answer_within_ms or 0), id)
    owed[#owed + 1] = id
  end
end

-- Withdraw a deletion: at once, or, where a call of ours may have been made, once a look has shown how it ended.
local function withdraw(d, nonce, message)
  set(d, {cancel_requested_at = now, cancelled_by = nonce})
  if not (d.unclear_at or (d.state == 'running' and d.calling)) then
    finish(d, {state = 'cancelled', message = message})
    return 'cancelled'
  end
  if d.state == 'scheduled' then move(d, 'queued', now, {lane = 'resolve'}) end
  if d.state == 'queued' then
    gather('ZREM', order_key(d, d.state), d.id)
    set(d, {lane = 'resolve'})
    enter(d, d.state, now)
  end
  return 'requested'
end

-- Why a cleanup may not have this finetune, if it may not. planned_at: when its plan was made.
local function spared(d, planned_at, fingerprint)
  local protected = tonumber(redis.call('HGET', prefix .. 'protected:' .. d.account, d.finetune_id) or 0)
  if protected > now then return 'it is protected' end
  local used = tonumber(redis.call('HGET', prefix .. 'used:' .. d.account, d.finetune_id) or 0)
  if used >= planned_at then return 'it was used after the plan was made' end
  local seen = redis.call('HGET', prefix .. 'inventory:' .. d.account, d.finetune_id)
  if not seen then return end
  seen = cjson.decode(seen)
  if fingerprint and not given(seen.fingerprint) then return 'which finetune it is could not be read' end
  if fingerprint and seen.fingerprint ~= fingerprint or seen.first_seen > planned_at then
    return 'the name belongs to another finetune now'
  end
end

-- Without the cleanup that brought it forward, a deletion waits for the time of those who are left.
local function postpone(d, due)
  if due <= tonumber(d.due_at) then return end
  set(d, {due_at = due, deadline = due + input.give_up_after_ms})
  if d.state == 'scheduled' then
    gather('ZADD', order_key(d, d.state), due, d.id)
  elseif due > now and not (d.state == 'running' and d.calling) then
    free_permit(d)
    move(d, 'scheduled', due)
    look_anew(d)
  end
end

-- A cleanup's requests are withdrawn, and with the last request the deletion; answers whether any was.
local function withdraw_cleanup(d, why)
  if not d.cleanup or is_final(d.state) then return false end
  local lines, due, others = {}, nil, false
  for line in string.gmatch(redis.call('HGET', prefix .. 'd:' .. d.id, 'requests'), '[^\n]+') do
    local request = cjson.decode(line)
    if is_cleanup(request) and not given(request.withdrawn_at) then
      request.withdrawn_at = now
      line = cjson.encode(request)
    elseif not is_cleanup(request) then
      others = true
      if is_for(d, request) then due = math.min(due or math.huge, request.due_at) end
    end
    lines[#lines + 1] = line
  end
  set(d, {requests = table.concat(lines, '\n'), cleanup = ''})
  if d.cancel_requested_at then return true end
  if not others then withdraw(d, 'cleanup', 'kept: ' .. why)
  elseif due then postpone(d, due) end
  return true
end

local function live(account, at)
  ask('ZREMRANGEBYSCORE', prefix .. 'permits:' .. account, NEVER, at)
  return ask('ZCARD', prefix .. 'permits:' .. account)
end

-- Why an account may not be called now, if it may not; and for how long, where that is known.
local function stopped(account)
  local a = redis.call('HMGET', prefix .. 'account:' .. account, 'parked_at', 'cool_until', 'max_concurrent', 'probe_at')
  local limit = tonumber(a[3]) or 1
  if given(a[1]) then return 'parked', math.max(0, (tonumber(a[4]) or 0) - now), limit end
  local cool = (tonumber(a[2]) or 0) - now
  if cool > 0 then return 'cooling', cool, limit end
  local paused = redis.call('HMGET', prefix .. 'paused', account, '*')
  if paused[1] or paused[2] then return 'paused', 0, limit end
  return nil, 0, limit
end

local function due_count(account)
  local why, wait_ms = stopped(account)
  if why == 'cooling' then return 0 end
  if why == 'parked' then return wait_ms == 0 and 1 or 0 end
  local due = ask('ZCOUNT', prefix .. 'looks:' .. account, NEVER, now)
  for _, lane in ipairs(LANES) do
    if why ~= 'paused' or lane == 'resolve' then
      due = due + ask('ZCARD', prefix .. 'queue:' .. account .. ':' .. lane)
    end
  end
  return due + ask('ZCOUNT', prefix .. 'wait:' .. account, NEVER, now)
end

-- Wake-ups to send now, noted as sent: no more than there are processes, nor than the work asks for.
local function wakeups(account)
  local due = due_count(account)
  if due == 0 then return {} end
  local _, _, limit = stopped(account)
  if live(account, now) >= limit then return {} end
  local sent, name = prefix .. 'wakeups:' .. account, prefix .. 'account:' .. account
  if ask('ZREMRANGEBYSCORE', sent, NEVER, now) > 0 then redis.call('HINCRBY', name, 'misses', 1) end
  local processes = ask('ZCOUNT', prefix .. 'workers', now, '+inf')
  local misses = tonumber(redis.call('HGET', name, 'misses')) or 0
  local patience = math.min(10000 * 2 ^ misses, 300000)
  local ids = {}
  for i = 1, math.min(processes, math.ceil(due / 100)) - ask('ZCARD', sent) do
    ids[i] = input.nonce .. ':' .. i
    gather('ZADD', sent, now + patience, ids[i])
  end
  return ids
end

-- A worker has this account's key and allows it so many calls at once.
local function register(account, max_concurrent)
  redis.call('SADD', prefix .. 'accounts', account)
  redis.call('HSET', prefix .. 'account:' .. account, 'max_concurrent', max_concurrent, 'registered', 1)
end
