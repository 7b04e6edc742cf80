"""Every Redis key of the ledger, spelled once. The Lua scripts get the same names from here.

All keys but those of the audit log begin with `PREFIX`. `{name}` is the finetune as `tasks.text.finetune_key`
spells it, so that two spellings of one UUID share a key. Scripts compute keys themselves, so Redis Cluster is not
supported.
"""

import re
from collections.abc import Iterable
from types import SimpleNamespace

PREFIX = "janitor:2:"
AUDIT = "janitor-audit:2:"  # not below the prefix: most users of Redis may not change what is here
SCHEMA = 1  # of what is below the prefix; a process that meets a greater number stops

_BELOW_PREFIX = {
    # the deletion
    "deletion": "d:{id}",  # hash: the record
    "attempts": "a:{id}",  # list: its attempts, each one line of JSON
    "callbacks": "cb:{id}",  # string: the Celery callbacks of a request by name, until they ran
    "callbacks_nonce": "cb-nonce:{id}",  # string: proves that a repeated message is ours; one minute
    "sequence": "seq",  # counter: accept, mark and finish take their numbers from it
    # where an unfinished deletion stands
    "wait": "wait:{account}",  # zset: scheduled, by the time of the next try
    "queue": "queue:{account}:{lane}",  # zset: queued, by due time
    "siblings": "s:{account}:{name}",  # zset: queued behind a sibling that runs, by due time
    "leases": "leases:{account}:{lane}",  # zset: running, by the end of the lease
    "retrying": "retrying:{account}",  # zset: unfinished, after a try that failed, by due time
    "first": "first:{account}",  # zset: awaits its first observation, by the time of it
    # the finetune, while it has an unfinished deletion
    "unfinished": "u:{account}:{name}",  # set: ids of its unfinished deletions
    "finetune": "f:{account}:{name}",  # hash: running, held, cleanup (ids), tries (JSON list of attempts)
    "blocked": "blocked:{account}",  # zset: names that may have siblings waiting, by when maintenance looked last
    # the account
    "accounts": "accounts",  # set: names
    "account": "account:{account}",  # hash: permits, cool-down, parking, wake-up, lanes served, reports of use
    "paused": "paused",  # hash: account or * -> reason
    "permits": "permits:{account}",  # zset: calls that no lease covers (surveys, probes), by expiry
    "verify": "verify:{account}",  # zset: deleted records to verify, by the time of the next look
    "verify_lease": "verify-lease:{account}",  # string: one process verifies this account now
    "stats": "stats:{account}",  # hash: counters for metrics
    # lists and lookups
    "index": "ix:{account}:{state}",  # zset: deletions by creation
    "names": "names:{account}",  # zset: "finetune\ncreation\nid", in one order
    "finished": "finished",  # zset: final deletions by when they finished
    "results": "results",  # zset: requests by name whose Celery result is to be written, by when
    # processes
    "schema": "schema",  # string: SCHEMA of the process that wrote first
    "workers": "workers",  # zset: worker processes, by when they count as gone
    "maintained": "maintained",  # string: when maintenance last ran
    "tick": "tick",  # string: when beat was last heard of
    "reports_clear": "reports-clear",  # string: the last time when no report of use waited in the broker
    "reports_seen": "reports-seen",  # string: the last time when one was seen there
    "memo": "memo:{token}",  # string: the answer to a claim, to repeat it; until the finish or for one lease
    # cleanup
    "inventory": "inventory:{account}",  # hash: finetune -> what the last survey saw
    "used": "used:{account}",  # hash: finetune -> when its use was last reported
    "protected": "protected:{account}",  # hash: finetune -> until when no cleanup may have it
    "holds": "holds:{account}",  # hash: finetune -> the hold that keeps it from every deletion, as JSON
    "plan": "plan:{id}",  # hash: a cleanup plan
    "plans": "plans",  # zset: their ids by creation
    "newest_plan": "newest-plan:{digest}",  # string: the newest plan of a policy that reads so
    "policy_runs": "policy-runs",  # hash: policy -> its last scheduled run
    "policy_lease": "policy-lease:{policy}",  # string: one process runs this policy now
    # tokens of the HTTP service
    "token_requests": "token-requests:{token}:{minute}",  # counter: its requests in this minute
    "token_open": "token-open:{token}",  # zset: deletions that may be unfinished, by when each was looked up
    # elsewhere
    "dead_letters": "dead-letters",  # list: messages that could not be read
}
# audit: a list of the acts of people and services, each one line of JSON
TEMPLATES = {name: PREFIX + text for name, text in _BELOW_PREFIX.items()} | {"audit": AUDIT + "{month}"}
LANES = ("resolve", "single", "bulk", "cleanup", "first")  # `first`: first observations


def _maker(text: str) -> object:
    fields = re.findall(r"{\w+}", text)
    if not fields:
        return text
    whole = re.sub(r"{\w+}", "{}", text)
    return whole.format


# A function for each template: `keys.queue("default", "single")`; a plain string if it has no fields.
keys = SimpleNamespace(**{name: _maker(text) for name, text in TEMPLATES.items()})


def lua_table(names: Iterable[str]) -> str:
    """The same for these names, as a Lua table `key` of functions."""
    return "local key = {\n" + "".join(_lua_function(name, TEMPLATES[name]) for name in sorted(names)) + "}\n"


def _lua_function(name: str, text: str) -> str:
    fields = re.findall(r"{(\w+)}", text)
    body = re.sub(r"{(\w+)}", r"' .. \1 .. '", text)
    return f"  {name} = function({', '.join(fields)}) return '{body}' end,\n"
