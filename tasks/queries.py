"""Reading the ledger: by id, finetune, state, account and time, newest first, without scanning everything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from heapq import merge
from itertools import compress, islice
from typing import Any, NamedTuple

from tasks.durations import iso
from tasks.errors import InvalidRequest, UnknownDeletion
from tasks.ledger import Ledger
from tasks.records import DEFAULT_ACCOUNT, Attempt, Deletion, Evidence, Request, State, moment, to_ms
from tasks.redis_errors import unavailable

LANES = ("resolve", "single", "bulk")
_CHUNK = 200
_TIMES = {
    "at", "created_at", "due_at", "deadline", "finished_at", "looked_at", "cancel_requested_at", "withdrawn_at",
}  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """Which deletions to list; None leaves a filter out. `since` and `until` are about their creation."""

    account: str | None = None
    accounts: tuple[str, ...] = ()  # whom the asker may see; all where it is empty
    states: tuple[State, ...] = ()
    finetune_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Page(NamedTuple):
    """Deletions, newest first; `cursor` asks for the next page, None on the last."""

    deletions: list[Deletion]
    cursor: str | None


class Stop(NamedTuple):
    """Why an account does not delete now: the reasons of a pause, a park, a cool-down; None where not so."""

    paused: str | None
    parked: str | None
    cooling: str | None


class _Entry(NamedTuple):
    created_at: int
    id: str


def each(ledger: Ledger, names: Iterable[str], ask: Callable[[Any, str], object]) -> list[Any]:
    """The answers to one command for each of `names`, in one round trip. ask: gives a pipeline the command."""
    with unavailable(), ledger.redis.pipeline(transaction=False) as pipe:
        for name in names:
            ask(pipe, name)
        return pipe.execute()


def get(ledger: Ledger, deletion_id: str) -> Deletion:
    """The deletion with this id, or to which the request with this id belongs; raises `UnknownDeletion`."""
    found = get_many(ledger, [deletion_id])[0]
    if found is None:
        raise UnknownDeletion(f"no deletion has the id {deletion_id!r}")
    return found


def get_many(ledger: Ledger, ids: Sequence[str]) -> list[Deletion | None]:
    """A deletion for each id of a deletion or request, None where there is none; two round trips."""
    rows = _hashes(ledger, ids)
    missing = [i for i, row in enumerate(rows) if not row]
    if missing:
        with unavailable():
            owners: list[Any] = ledger.redis.mget([f"{ledger.prefix}r:{ids[i]}" for i in missing])
        found = dict(zip(missing, owners, strict=True))
        ids = [found.get(i) or id_ for i, id_ in enumerate(ids)]
        rows = _hashes(ledger, ids)
    return [_deletion(id_, row) if row else None for id_, row in zip(ids, rows, strict=True)]


def list_deletions(ledger: Ledger, where: Filter, *, limit: int = 50, cursor: str | None = None) -> Page:
    """One page of what matches, newest first.

    The work depends on the page and on the number of accounts and states, not on the number of records.
    """
    after = _parse_cursor(cursor) if cursor else None
    entries = _by_finetune(ledger, where) if where.finetune_id else _by_state(ledger, where, after)
    if after is not None:
        entries = (entry for entry in entries if entry < after)
    found: list[Deletion] = []
    seen: set[str] = set()  # one that changes its state meanwhile may come twice
    while len(found) <= limit:
        chunk = list(islice(entries, min(_CHUNK, limit + 1)))
        if not chunk:
            break
        chunk = [entry for entry in chunk if entry.id not in seen]
        seen.update(entry.id for entry in chunk)
        found += [d for d in get_many(ledger, [entry.id for entry in chunk]) if d and _matches(d, where)]
    last = found[limit - 1] if len(found) > limit else None
    return Page(found[:limit], f"{to_ms(last.created_at)}:{last.id}" if last else None)


def ended(ledger: Ledger, deletion_ids: Sequence[str]) -> set[str]:
    """Which of these deletions are final, or no longer known; cheaper than reading the records."""
    states = each(ledger, deletion_ids, lambda pipe, id_: pipe.hget(f"{ledger.prefix}d:{id_}", "state"))
    return {id_ for id_, state in zip(deletion_ids, states, strict=True) if not state or State(state).is_final}


def known_accounts(ledger: Ledger) -> set[str]:
    """The accounts workers have registered, and `default`."""
    names = _all_accounts(ledger)
    registered = each(
        ledger, names, lambda pipe, name: pipe.hexists(f"{ledger.prefix}account:{name}", "registered")
    )
    return {DEFAULT_ACCOUNT, *compress(names, registered)}


def open_deletions(ledger: Ledger, account: str, finetune_ids: Sequence[str]) -> dict[str, str]:
    """The unfinished deletion of each finetune that has one."""
    with unavailable():
        found: Any = ledger.redis.hmget(f"{ledger.prefix}open:{account}", list(finetune_ids))
    return {finetune_id: id_ for finetune_id, id_ in zip(finetune_ids, found, strict=True) if id_}


def stopped_accounts(ledger: Ledger) -> dict[str, Stop]:
    """The accounts that do not delete now, and why; `*` stands for all of them."""
    names, now = _all_accounts(ledger), ledger.now_ms()
    asked = ("parked_reason", "cool_until", "cool_reason")
    with unavailable():
        paused: Any = ledger.redis.hgetall(f"{ledger.prefix}paused")
    rows = each(ledger, names, lambda pipe, name: pipe.hmget(f"{ledger.prefix}account:{name}", *asked))
    stops = {name: Stop(reason, None, None) for name, reason in paused.items()}
    for name, (parked, until, why) in zip(names, rows, strict=True):
        stops[name] = Stop(paused.get(name), parked, why if int(until or 0) > now else None)
    return {name: stop for name, stop in stops.items() if any(reason is not None for reason in stop)}


def workers_seen(ledger: Ledger) -> list[str]:
    """The worker processes that dispatch has heard of lately."""
    with unavailable():
        found: Any = ledger.redis.zrangebyscore(f"{ledger.prefix}workers", ledger.now_ms(), "+inf")
    return list(found)


def oldest_due(ledger: Ledger) -> datetime | None:
    """Since when the longest waiting deletion that may start is due, over all accounts; None if none is."""
    queues = [f"{ledger.prefix}queue:{account}:{lane}" for account in _all_accounts(ledger) for lane in LANES]
    firsts = each(ledger, queues, lambda pipe, queue: pipe.zrange(queue, 0, 0, withscores=True))
    return moment(min((score for rows in firsts for _, score in rows), default=None))


def _by_state(ledger: Ledger, where: Filter, after: _Entry | None) -> Iterator[_Entry]:
    states = where.states or tuple(State)
    keys = [f"{ledger.prefix}ix:{account}:{state}" for account in _accounts(ledger, where) for state in states]
    high = min((to_ms(where.until) if where.until else float("inf")), after.created_at if after else float("inf"))
    low = to_ms(where.since) if where.since else "-inf"

    # The first rows of all lists in one step: a deletion that changes its state meanwhile would else be missed.
    with unavailable(), ledger.redis.pipeline(transaction=True) as pipe:
        for key in keys:
            pipe.zrevrangebyscore(key, high, low, 0, _CHUNK, withscores=True)
        firsts = pipe.execute()

    def pages(key: str, rows: Any) -> Iterator[_Entry]:
        while rows:
            last = rows[-1][1]
            # All of one moment at once, so that the next page can begin after it; with what moved on just now.
            with unavailable():
                same: Any = ledger.redis.zrevrangebyscore(key, last, last, withscores=True)
            found = {**dict(rows), **dict(same)}.items()
            yield from sorted((_Entry(int(score), id_) for id_, score in found), reverse=True)
            if len(rows) < _CHUNK:
                return
            with unavailable():
                rows = ledger.redis.zrevrangebyscore(key, f"({last}", low, 0, _CHUNK, withscores=True)

    return merge(*map(pages, keys, firsts), reverse=True)


def _by_finetune(ledger: Ledger, where: Filter) -> Iterator[_Entry]:
    low = f"[{where.finetune_id}\n"

    def pages(account: str) -> Iterator[_Entry]:
        high = f"{low}:"
        while True:
            with unavailable():
                rows: Any = ledger.redis.zrevrangebylex(f"{ledger.prefix}names:{account}", high, low, 0, _CHUNK)
            parts = [row.split("\n") for row in rows]
            yield from (_Entry(int(created_at), id_) for _, created_at, id_ in parts)
            if len(rows) < _CHUNK:
                return
            high = f"({rows[-1]}"

    return merge(*map(pages, _accounts(ledger, where)), reverse=True)


def _accounts(ledger: Ledger, where: Filter) -> list[str]:
    return [where.account] if where.account else sorted(where.accounts or _all_accounts(ledger))


def _all_accounts(ledger: Ledger) -> list[str]:
    with unavailable():
        members: Any = ledger.redis.smembers(f"{ledger.prefix}accounts")
    return sorted(members)


def _matches(deletion: Deletion, where: Filter) -> bool:
    return (
        (not where.states or deletion.state in where.states)
        and (where.since is None or deletion.created_at >= where.since)
        and (where.until is None or deletion.created_at <= where.until)
    )


def _parse_cursor(cursor: str) -> _Entry:
    created_at, _, id_ = cursor.partition(":")
    if not re.fullmatch(r"[0-9]{1,15}", created_at) or not id_:
        raise InvalidRequest(f"the cursor {cursor!r} is not one that a list answered: leave it out to start anew")
    return _Entry(int(created_at), id_)


def _hashes(ledger: Ledger, ids: Sequence[str]) -> list[dict[str, str]]:
    return each(ledger, ids, lambda pipe, id_: pipe.hgetall(f"{ledger.prefix}d:{id_}"))


def _deletion(id_: str, row: Mapping[str, str]) -> Deletion:
    row = {name: text for name, text in row.items() if text}
    found, state = _fields(Deletion, row), State(row["state"])
    requests, attempts = row["requests"].split("\n"), row.get("attempts", "").split("\n")
    read = {
        "id": id_,
        "state": state,
        "status": found["status"] or (state.value if state.is_final else None),
        "timestamp": found["timestamp"] or iso(found["finished_at"]),
        "evidence": Evidence(row["evidence"]) if "evidence" in row else None,
        "requests": tuple(Request(**_fields(Request, json.loads(line))) for line in requests),
        "attempts": tuple(Attempt(**_fields(Attempt, json.loads(line))) for line in attempts if line),
    }
    return Deletion(**{**found, **read})


def _fields(kind: type[Deletion | Request | Attempt], stored: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored for each field of `kind`, None for what is absent; times are stored in milliseconds."""
    found = {field.name: stored.get(field.name) for field in fields(kind)}
    return {name: moment(value) if name in _TIMES else value for name, value in found.items()}
