"""The whole keyspace of a ledger as one value, and what must hold of it at every moment."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from tasks.ledger import Ledger
from tasks.ledger.keys import LANES
from tasks.records import UNFINISHED, is_final

ACCOUNT = "default"

_ALL = """
local all = {}
for _, name in ipairs(redis.call('KEYS', ARGV[1] .. '*')) do
  local kind, value = redis.call('TYPE', name).ok, nil
  if kind == 'string' then value = redis.call('GET', name)
  elseif kind == 'hash' then value = redis.call('HGETALL', name)
  elseif kind == 'zset' then value = redis.call('ZRANGE', name, 0, -1, 'WITHSCORES')
  elseif kind == 'set' then value = redis.call('SMEMBERS', name)
  else value = redis.call('LRANGE', name, 0, -1) end
  all[#all + 1] = {name, kind, value}
end
return cjson.encode(all)
"""


class Violation(BaseException):
    """An invariant does not hold; no `Exception`, so that the pipeline cannot catch it. number: in the list of invariants."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(f"invariant {number}: {what}")
        self.number = number


def check(number: int, holds: object, what: str) -> None:
    if not holds:
        raise Violation(number, what)


class Books:
    """A copy of all that the ledger keeps: by key without the prefix."""

    def __init__(self, ledger: Ledger) -> None:
        prefix = ledger.keys.schema.removesuffix("schema")
        rows = json.loads(ledger.redis.eval(_ALL, 0, prefix))
        self.all: dict[str, Any] = {name.removeprefix(prefix): _value(kind, value) for name, kind, value in rows}

    def get(self, name: str) -> Any:
        return self.all.get(name, {})

    @property
    def records(self) -> dict[str, dict[str, str]]:
        """id -> fields, without the empty ones."""
        return {
            name[2:]: {field: text for field, text in row.items() if text}
            for name, row in self.all.items()
            if name.startswith("d:")
        }

    def named(self, start: str) -> dict[str, Any]:
        return {name.removeprefix(start): value for name, value in self.all.items() if name.startswith(start)}


def _value(kind: str, value: Any) -> Any:
    if kind == "hash":
        return dict(zip(value[::2], value[1::2], strict=True))
    if kind == "zset":
        return {member: float(score) for member, score in zip(value[::2], value[1::2], strict=True)}
    return sorted(value) if kind == "set" else value


def check_places(books: Books, permits: int) -> None:
    """Invariants 2 and 9: each unfinished deletion stands in exactly one place, and at most one sibling runs."""
    records = books.records
    places: dict[str, list[str]] = defaultdict(list)
    for start in ("wait:", "queue:", "s:", "leases:"):
        for name, members in books.named(start).items():
            for id_ in members:
                places[id_].append(start + name)
    for id_, d in records.items():
        expected = _place(d)
        check(
            9,
            [_kind(place, d) for place in places[id_]] == expected,
            f"{id_} is {d['state']} and stands in {places[id_]}",
        )
        indexes = [
            state for state in books.named(f"ix:{d['account']}:") if id_ in books.get(f"ix:{d['account']}:{state}")
        ]
        check(9, indexes == [d["state"]], f"{id_} is {d['state']}, but is listed as {indexes}")
        is_unfinished = d["state"] in UNFINISHED
        siblings = books.all.get(f"u:{d['account']}:{d['name']}", [])
        check(9, (id_ in siblings) == is_unfinished, f"{id_} is {d['state']}, unfinished siblings: {siblings}")
        check(9, (id_ in books.get("finished")) != is_unfinished, f"{id_} is {d['state']}, finished is wrong")
        check(9, is_unfinished or id_ not in books.get(f"first:{d['account']}"), f"{id_} awaits an observation")
    check(9, places.keys() <= records.keys(), f"without a record: {places.keys() - records.keys()}")
    _check_lists(books, records)
    _check_running(books, records, permits)


def _place(d: Mapping[str, str]) -> list[str]:
    return {"scheduled": ["wait"], "queued": ["queue or list"], "running": ["leases"]}.get(d["state"], [])


def _kind(place: str, d: Mapping[str, str]) -> str:
    lane = "resolve" if d.get("cancel_requested_at") or d.get("last_try") else d["lane"]
    right = {
        f"wait:{d['account']}": "wait", f"queue:{d['account']}:{lane}": "queue or list",
        f"s:{d['account']}:{d['name']}": "queue or list", f"leases:{d['account']}:{d.get('running_lane')}": "leases",
    }  # fmt: skip
    return right.get(place, f"wrong place {place}")


def _check_lists(books: Books, records: Mapping[str, Mapping[str, str]]) -> None:
    for name, marks in books.named("f:").items():
        holder = records.get(marks.get("held", ""))
        check(
            20,
            not holder or holder.get("unclear_at") or holder["state"] == "running",
            f"{marks.get('held')} holds {name} without an unclear attempt",
        )
    for list_, members in books.named("s:").items():
        account, _, name = list_.partition(":")
        check(9, name in books.get(f"blocked:{account}"), f"maintenance does not know the list of {name}")
        marks = books.get(f"f:{account}:{name}")
        siblings = [
            d for id_, d in records.items() if d["account"] == account and d["name"] == name and id_ not in members
        ]
        moves = [d for d in siblings if d["state"] in ("queued", "running")]
        holds = marks.get("held") not in members and not is_final(
            records.get(marks.get("held"), {}).get("state", "none")
        )
        check(9, moves or holds, f"nothing would put back the list of {name}: {members}")


def check_no_hold(books: Books, claimed: str) -> None:
    """Siblings wait for a deletion whose attempt may still be applied."""
    records = books.records
    if records[claimed].get("unclear_at"):
        return  # it holds the finetune itself
    for id_, d in records.items():
        waits = (
            id_ != claimed
            and d["state"] in UNFINISHED
            and d.get("unclear_at")
            and d["name"] == records[claimed]["name"]
        )
        check(20, not waits, f"{claimed} was claimed while an attempt of {id_} is not settled")


def _check_running(books: Books, records: Mapping[str, Mapping[str, str]], permits: int) -> None:
    running: dict[str, list[str]] = defaultdict(list)
    for id_, d in records.items():
        if d["state"] == "running":
            running[d["name"]].append(id_)
    for name, ids in running.items():
        check(2, len(ids) == 1, f"{' and '.join(ids)} of {name} run")
    leases = sum(len(books.get(f"leases:{ACCOUNT}:{lane}")) for lane in LANES)
    check(2, leases + len(books.get(f"permits:{ACCOUNT}")) <= permits, f"{leases} leases and {permits} permits")


def check_nothing_is_left(books: Books) -> None:
    """Invariants 1, 9 and 10, after everything has been let run."""
    for id_, d in books.records.items():
        check(1, is_final(d["state"]), f"{id_} is {d['state']} for ever: {d.get('message')}")
        check(10, "calling" not in d, f"{id_} is {d['state']} and still calling")
    for start in ("wait:", "queue:", "s:", "leases:", "first:", "u:", "f:", "blocked:", "permits:", "results"):
        check(10, not books.named(start), f"left over: {start}{books.named(start)}")
