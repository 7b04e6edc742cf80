"""Rules switched off, one at a time: each of these changes must make the explorer fail.

`old` stands exactly once in its file.
"""

from __future__ import annotations

from typing import NamedTuple


class Mutation(NamedTuple):
    name: str
    file: str  # in tasks/
    old: str
    new: str


_LUA = "ledger/lua/"
_LIST: tuple[tuple[str, str, str, str], ...] = (
    # Tokens, leases, marks.
    ("a renewal without its token check", "renew.lua", "if d[1] == 'running' and d[2] == claim.token then", "if d[1] == 'running' then"),
    ("a renewal that does not renew", "renew.lua", "call('ZADD', key.leases(d[3], d[4]), now", "call('ZADD', key.leases(d[3], d[4]), 'NX', now"),
    ("a mark without its token check", "mark.lua", " or d.token ~= input.token then", " then"),
    ("a mark that forgets what was observed", "mark.lua",
     "calling = now, incarnation = input.incarnation, observed_at = input.observed_at, vantage = input.vantage,", "calling = now,"),
    ("a mark that does not note the call", "mark.lua", "  calling = now, incarnation", "  calling = '', incarnation"),
    ("a mark in spite of a cancel", "mark.lua", "if d.cancel_requested_at then return", "if false then return"),
    ("a mark in spite of a pause", "mark.lua", "if why then return", "if why and why ~= 'paused' then return"),
    ("a mark that does not renew", "mark.lua", "call('ZADD', key.leases(d.account, d.running_lane), now", "call('ZADD', key.leases(d.account, d.running_lane), 'NX', now"),
    ("a mark that takes a new number when sent twice", "mark.lua", "if d.mark_of ~= mark_of then", "if true then"),
    ("a mark whose call was not made counts", "mark.lua", "if given(input.made) then note_made(d, input.token .. '/' .. input.made) end", ""),
    ("an unmade mark is the attempt's", "lib_record.lua", "if d.mark_of == attempt and d.made_of ~= attempt then", "if d.mark then attempt = d.mark_of"),
    ("an outcome that forgets its number", "finish.lua", "if given(input.attempt) and not note_made(d, attempt) then", "if given(input.attempt) then"),
    ("a permit not given back", "lib_order.lua", "call('ZREM', key.leases(d.account, d.running_lane or d.lane), d.id)", ""),
    ("a finish without its token check", "finish.lua", "if d.state ~= 'running' or d.token ~= input.token then", "if d.state ~= 'running' then"),
    ("a finish that does not know itself", "finish.lua", "if d.finished_token == input.token then", "if false then"),
    ("a late confirmation that is ignored", "finish.lua", "if input.result == 'deleted' and input.evidence == 'response' and d.state ~= 'deleted' then", "if false then"),
    ("a late confirmation after superseded", "finish.lua", "    if d.state == 'superseded' then", "    if d.state == 'none' then"),
    ("a claim that does not remember", "claim.lua", "  if tonumber(call_number) == input.call then return answer end", ""),
    ("a claim in spite of a running sibling", "claim.lua", "if ends and tonumber(ends) > now then return true end", "if ends and tonumber(ends) > now then return false end"),
    ("a claim that leaves an ended lease", "claim.lua", "    reclaim(running)  -- now", "    if false then reclaim(running) end  -- now"),
    ("a claim in spite of a hold", "claim.lua", "  return is_held_by_another(d, marks[2])\n", "  return false\n"),
    ("a claim without the attempts of siblings", "claim.lua", "claim.tries = tries_of_siblings(d)", "claim.tries = nil"),
    # Siblings.
    ("a hold that never ends", "lib_siblings.lua", "elseif call('HGET', finetune, 'held') == d.id then call('HDEL', finetune, 'held') end", "end"),
    ("no hold", "lib_siblings.lua", "if d.unclear_at then call('HSET', finetune, 'held', d.id)", "if false then call('HSET', finetune, 'held', d.id)"),
    ("nobody is put back", "lib_siblings.lua", "if call('EXISTS', key.siblings(d.account, d.name)) == 1 then put_back_one", "if false then put_back_one"),
    ("one that holds is not put back", "lib_siblings.lua", "for _, id in ipairs(is_held and {holder} or call(", "for _, id in ipairs(is_held and {} or call("),
    ("unclear attempts are not kept", "finish.lua", "confirmed and 'deleted' or d.unclear_at and 'unclear' or nil)", "confirmed and 'deleted' or nil)"),
    ("deleting attempts are not kept", "finish.lua", "confirmed and 'deleted' or d.unclear_at and 'unclear' or nil)", "d.unclear_at and 'unclear' or nil)"),
    ("an attempt has no incarnation", "lib_siblings.lua", "result = result, incarnation = d.incarnation,", "result = result,"),
    ("an attempt has no birth", "lib_siblings.lua", "born_after = tonumber(d.born_after),", ""),
    ("an attempt finished when it was marked", "lib_siblings.lua", "finish = next_number(),", "finish = tonumber(d.made),"),
    # Crashes, cancels, retries.
    ("a crash during a call is not unclear", "lib_finish.lua", "+ 1, unclear_at = d.calling, calling = ''})", "+ 1, calling = ''})"),
    ("a crash during a call is not kept", "lib_finish.lua", "    remember_try(d, 'unclear')\n", ""),
    ("a crash does not hold", "lib_finish.lua", "  hold(d)\n  observe_later(d)", "  observe_later(d)"),
    ("a cancel in spite of an unclear attempt", "lib_finish.lua", "local open_attempt = d.unclear_at or (d.state == 'running' and d.calling)", "local open_attempt = d.state == 'running' and d.calling"),
    ("a cancel in spite of a call", "lib_finish.lua", "local open_attempt = d.unclear_at or (d.state == 'running' and d.calling)", "local open_attempt = d.unclear_at"),
    ("a cancel that stays in its lane", "lib_finish.lua", "  leave(d)\n  set(d, changes)\n  finish", "  set(d, changes)\n  finish"),
    ("a cancel without a nonce", "cancel.lua", "local is_repeated = d.state == 'cancelled' and d.cancel_nonce == input.nonce", "local is_repeated = false"),
    ("a cancel that an unclear hand-back ignores", "finish.lua", "  if d.cancel_requested_at and not d.unclear_at then\n    finish(d, {state = 'cancelled', message = given", "  if d.cancel_requested_at then\n    finish(d, {state = 'cancelled', message = given"),
    ("a retry that is dated anew", "accept.lua", "{'asked_at', 'incarnation',", "{'incarnation',"),
    ("a retry that forgets the incarnation", "accept.lua", "{'asked_at', 'incarnation', 'observed_at',", "{'asked_at', 'observed_at',"),
    ("a retry that forgets the vantage", "accept.lua", "'observed_at', 'vantage', 'born_after', 'unclear_at',", "'observed_at', 'born_after', 'unclear_at',"),
    ("a retry that forgets an unclear attempt", "accept.lua", "'born_after', 'unclear_at', 'made'", "'born_after', 'made'"),
    ("a retry that does not hold", "accept.lua", "    hold(d)\n    remember_try", "    remember_try"),
    ("no first observation", "accept.lua", "if not d.incarnation then call('ZADD', key.first(d.account),", "if false then call('ZADD', key.first(d.account),"),
    ("a first observation although it is busy", "claim.lua", "elseif is_busy(d) then call('ZADD', queue, now + 5000, id)", "elseif false then call('ZADD', queue, now + 5000, id)"),
    ("a cleanup beside another deletion", "accept.lua", "local why = other_unfinished(d) and", "local why = false and"),
    ("a cleanup of what is protected", "lib_cleanup.lua", "if protected > now then", "if false then"),
    ("a use that withdraws everything", "keep.lua", "withdrawn[#withdrawn + 1] = withdraw_cleanup(input.account, name, why)",
     "for _, id in ipairs(call('SMEMBERS', key.unfinished(input.account, name))) do withdraw(read(id), 'x', why, '', why) end"),
    ("a finish that leaves an awaited observation", "lib_finish.lua", "  call('ZREM', key.first(d.account), d.id)\n", ""),
    ("a finish that stays unfinished", "lib_finish.lua", "  call('SREM', unfinished, d.id)\n", ""),
    ("a result that nobody owes", "lib_finish.lua", "if d.by_name then call('ZADD', key.results()", "if false then call('ZADD', key.results()"),
)  # fmt: skip

_JUDGE = "judgement.py"
_PYTHON: tuple[tuple[str, str, str, str], ...] = (
    ("attempts settle at once", _JUDGE, "SETTLED_AFTER = timedelta(seconds=30)", "SETTLED_AFTER = timedelta(seconds=0)"),
    ("attempts never settle", _JUDGE, "unclear_at = None if is_settled(self, now) else self.unclear_at", "unclear_at = self.unclear_at"),
    ("an identity once seen is forgotten", _JUDGE, "identity={**self.incarnation.identity, **incarnation.identity}", "identity=dict(incarnation.identity)"),
    ("a sibling's attempt before this request counts", _JUDGE, "try_.mark < claim.accepted or not (try_", "not (try_"),
    ("a sibling that is not deleted counts", _JUDGE, ' or not (try_.result == "deleted" and try_.has_deleted):', ":"),
    ("a sibling's other incarnation counts", _JUDGE, "ours is not None and theirs is not None and _is_other(ours, theirs)", "False"),
    ("a sibling's younger finetune counts", _JUDGE, "return try_.born_after > claim.asked_at or (", "return ("),
    ("a sibling's attempt is not asked for", "deletion.py", "        decided = sibling_deleted(self.claim)\n", "        decided = None\n"),
    ("absent from anywhere", _JUDGE, "if known.vantage and known.vantage != seen.vantage:", "if False:"),
    ("absent though never seen", _JUDGE, "if known.unclear_at and not known.vantage:", "if False:"),
    ("absent after an unclear attempt", _JUDGE, "    if known.unclear_at:\n        message = \"not visible any more", "    if False:\n        message = \"not visible any more"),
    ("absent after a sibling's attempt", _JUDGE, "if try_.finish > claim.accepted and", "if False and"),
    ("absent after a sibling's old attempt", _JUDGE, "if try_.finish > claim.accepted and", "if"),
    ("absent from another vantage than the sibling's", _JUDGE, "if try_.has_deleted and try_.vantage == seen.vantage:", "if try_.has_deleted:"),
    ("absent with an unsettled sibling", _JUDGE, "if try_.has_deleted and try_.vantage == seen.vantage:", "if True:"),
    ("younger than its request", _JUDGE, "if there_before is False:", "if False:"),
    ("younger than its request, with an unclear attempt", _JUDGE, "    if there_before is False:\n        if known.unclear_at:", "    if there_before is False:\n        if False:"),
    ("asked for during a sibling's attempt", _JUDGE, "if any(try_.mark < claim.accepted < try_.finish for try_ in claim.tries):", "if False:"),
    ("another incarnation is deleted", _JUDGE, "    if verdict is Verdict.SAME:\n", "    if verdict in (Verdict.SAME, Verdict.OTHER):\n"),
    ("what cannot be told is the same", _JUDGE, "    if verdict is Verdict.SAME:\n", "    if verdict in (Verdict.SAME, Verdict.UNKNOWN):\n"),
    ("another incarnation after an unclear attempt is superseded", _JUDGE, "    if known.unclear_at is None:\n        return Finish(result=State.SUPERSEDED", "    if True:\n        return Finish(result=State.SUPERSEDED"),
    ("another incarnation proves the attempt", _JUDGE, "if existed(seen, known.unclear_at, now) is False:", "if True:"),
    ("undecided with an unclear attempt", _JUDGE, "    if known.unclear_at:\n        return Finish(result=State.REVIEW, message=f\"an attempt is unclear, and {why}\")\n", ""),
    ("undecided for a cleanup", _JUDGE, "    if claim.cleanup:\n", "    if False:\n"),
    ("undecided after a long time", _JUDGE, "if now - from_ms(claim.asked_at) <= within:", "if True:"),
    ("an old observation before the mark", "deletion.py", "                self._mark()\n                if self._is_fresh(is_last=is_last):", "                self._mark()\n                if True:"),
    ("an old observation", "deletion.py", "return self.clock() - since + self.lag <= FRESH.total_seconds()", "return True"),
    ("a clock that stood still", "deletion.py", "return self.clock() - since + self.lag <=", "return self.clock() - since <="),
    ("the last observation counts from its end at once", "deletion.py", "since = self.observation_ended if is_last else self.observation_began", "since = self.observation_ended"),
    ("an unclear answer is not noted", "deletion.py", "            case errors.Unclear():\n                self.known = replace(self.known, unclear_at=self._now())\n", "            case errors.Unclear():\n"),
    ("a call that is not counted", "deletion.py", "        self.made = self.marks\n", ""),
    ("a refusal ends an unclear attempt", "deletion.py", "        if self.known.unclear_at:\n            raise Again(str(error), self._unsettled_for())\n", ""),
    ("a cancel ends an unclear attempt", "deletion.py", "        if self.known.unclear_at:\n            message = \"waits to see", "        if False:\n            message = \"waits to see"),
    ("what was seen is not kept", "deletion.py", "            self.known = self.known.with_seen(seen, began)\n", "            pass\n"),
    ("a lost lease is no reason to stop", "deletion.py", "        raise HandBack(\"the lease ended\" if", "        if verdict.word == \"lost\":\n            return\n        raise HandBack(\"the lease ended\" if"),
    ("one identity field is enough", "api/incarnations.py", "    if same and changed:\n", "    if False:\n"),
    ("a changed identity is the same", "api/incarnations.py", "    if changed:\n        return Verdict.OTHER, \"; \".join(changed)\n", "    if changed:\n        return Verdict.SAME, \"\"\n"),
    ("other settings are the same", "api/incarnations.py", "    changed = _changed(earlier.settings, later.settings)\n    if changed:", "    changed = _changed(earlier.settings, later.settings)\n    if False:"),
    ("other fields are the same", "api/incarnations.py", "    changed = _changed(earlier.others, later.others)\n    if changed:", "    changed = _changed(earlier.others, later.others)\n    if False:"),
    ("equal settings are believed for ever", "api/incarnations.py", "    if gap > within:\n", "    if False:\n"),
    ("nothing to compare is the same", "api/incarnations.py", "return Verdict.UNKNOWN, \"the API's details have nothing that can be compared\"", "return Verdict.SAME, \"\""),
    ("ages without a tolerance", "api/observations.py", "age >= now - asked_at - observation.tolerance", "age >= now - asked_at"),
    ("ages by our clock", "api/observations.py", "age = (self.date or now) - created.moment", "age = now - created.moment"),
    ("absent although the list has it", "api/observations.py", "    if listing.has(finetune_id):\n", "    if False:\n"),
    ("a list that is not whole", "api/observations.py", "    if not listing.is_whole:\n", "    if False:\n"),
)  # fmt: skip


# Name of a mutation -> what catches it; found by `python -m tests.explorer.test_mutations`.
CAUGHT_BY: dict[str, str] = {}
SHORT: frozenset[str] = frozenset()

MUTATIONS = [
    *(Mutation(name, _LUA + file, old, new) for name, file, old, new in _LIST),
    *(Mutation(name, file, old, new) for name, file, old, new in _PYTHON),
]
