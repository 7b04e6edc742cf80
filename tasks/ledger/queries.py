"""Reading the ledger: by id, finetune, state, account and time, newest first, without scanning everything."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from heapq import merge
from itertools import compress, islice
from typing import Any, NamedTuple

from tasks.durations import iso
from tasks.errors import InvalidRequest, UnknownDeletion
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.store import Ledger
from tasks.records import DEFAULT_ACCOUNT, UNFINISHED, Attempt, Deletion, Evidence, State, is_final, moment, to_ms
from tasks.text import finetune_key

_CHUNK = 200
_ATTEMPTS = {field.name for field in fields(Attempt)}
_TIMES = {
    "at", "created_at", "asked_at", "due_at", "next_try_at", "deadline", "finished_at", "observed_at",
    "verified_at", "cancel_requested_at", "resolved_at",
}  # fmt: skip


@dataclass(frozen=True)
class Filter:
    """Which deletions to list; None leaves a filter out. `since` and `until` are about their creation."""

    account: str | None = None
    accounts: tuple[str, ...] = ()  # that the reader may see; empty: all
    states: tuple[State, ...] = ()
    finetune_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


class Page(NamedTuple):
    """Deletions, newest first; `cursor` asks for the next page, None on the last."""

    deletions: list[Deletion]
    cursor: str | None


class Stop(NamedTuple):
    """Why an account does not delete now: the reasons of a pause, a park, a cool-down; None if not so."""

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
    """The deletion with this id; raises `UnknownDeletion`."""
    found = get_many(ledger, [deletion_id])[0]
    if found is None:
        raise UnknownDeletion(f"no deletion has the id {deletion_id!r}")
    return found


def get_many(ledger: Ledger, ids: Sequence[str]) -> list[Deletion | None]:
    """A deletion for each id, None if it has no readable record; two round trips."""
    accounts = _all_accounts(ledger)
    with unavailable(), ledger.redis.pipeline(transaction=False) as pipe:
        for id_ in ids:
            pipe.hgetall(ledger.keys.deletion(id_))
            pipe.lrange(ledger.keys.attempts(id_), 0, -1)
        for account in accounts:
            pipe.hget(ledger.keys.account(account), "started_at")
        rows = pipe.execute()
    started = dict(zip(accounts, rows[2 * len(ids) :], strict=True))
    give_up_ms = ledger.terms.give_up_after // timedelta(milliseconds=1)
    pairs = zip(ids, rows[0 : 2 * len(ids) : 2], rows[1 : 2 * len(ids) : 2], strict=True)
    return [_deletion(id_, row, lines, started, give_up_ms) for id_, row, lines in pairs]


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
    states = each(ledger, deletion_ids, lambda pipe, id_: pipe.hget(ledger.keys.deletion(id_), "state"))
    return {id_ for id_, state in zip(deletion_ids, states, strict=True) if not state or is_final(state)}


def known_accounts(ledger: Ledger) -> set[str]:
    """The accounts workers have registered, and `default`."""
    names = _all_accounts(ledger)
    registered = each(ledger, names, lambda pipe, name: pipe.hexists(ledger.keys.account(name), "registered"))
    return {DEFAULT_ACCOUNT, *compress(names, registered)}


def unfinished(ledger: Ledger, account: str, finetune_id: str) -> list[str]:
    """The ids of the unfinished deletions of a finetune."""
    with unavailable():
        found: Any = ledger.redis.smembers(ledger.keys.unfinished(account, finetune_key(finetune_id)))
    return sorted(found)


def stopped_accounts(ledger: Ledger) -> dict[str, Stop]:
    """The accounts that do not delete now, and why; `*` stands for all of them."""
    names, now = _all_accounts(ledger), ledger.now_ms()
    asked = ("parked_reason", "cool_until", "cool_reason")
    with unavailable():
        paused: Any = ledger.redis.hgetall(ledger.keys.paused)
    rows = each(ledger, names, lambda pipe, name: pipe.hmget(ledger.keys.account(name), *asked))
    stops = {name: Stop(reason, None, None) for name, reason in paused.items()}
    for name, (parked, until, why) in zip(names, rows, strict=True):
        stops[name] = Stop(paused.get(name), parked, why if int(until or 0) > now else None)
    return {name: stop for name, stop in stops.items() if any(reason is not None for reason in stop)}


def workers_seen(ledger: Ledger) -> list[str]:
    """The worker processes that dispatch has heard of lately."""
    with unavailable():
        found: Any = ledger.redis.zrangebyscore(ledger.keys.workers, ledger.now_ms(), "+inf")
    return list(found)


def oldest_due(ledger: Ledger) -> datetime | None:
    """Since when the longest waiting deletion is due, over all accounts; None if none is.

    Retries count from then, too.
    """
    keys, accounts = ledger.keys, _all_accounts(ledger)
    indexes = [keys.index(account, state) for account in accounts for state in UNFINISHED]
    oldest = each(ledger, indexes, lambda pipe, key: pipe.zrange(key, 0, _CHUNK - 1))
    ids = [id_ for rows in oldest for id_ in rows]
    due = [int(at) for at in each(ledger, ids, lambda pipe, id_: pipe.hget(keys.deletion(id_), "due_at")) if at]
    now = ledger.now_ms()
    return moment(min((at for at in due if at <= now), default=None))


def _by_state(ledger: Ledger, where: Filter, after: _Entry | None) -> Iterator[_Entry]:
    states = where.states or tuple(State)
    keys = [ledger.keys.index(account, state) for account in _accounts(ledger, where) for state in states]
    high = min((to_ms(where.until) if where.until else float("inf")), after.created_at if after else float("inf"))
    low = to_ms(where.since) if where.since else "-inf"

    # Unfinished states first: a deletion that moves on between two of these lists comes twice, and is not missed.
    # (Not in a transaction: a full Redis refuses those.)
    firsts = each(
        ledger, keys, lambda pipe, key: pipe.zrevrangebyscore(key, high, low, 0, _CHUNK, withscores=True)
    )

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
    low = f"[{finetune_key(where.finetune_id or '')}\n"

    def pages(account: str) -> Iterator[_Entry]:
        high = f"{low}:"
        while True:
            with unavailable():
                rows: Any = ledger.redis.zrevrangebylex(ledger.keys.names(account), high, low, 0, _CHUNK)
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
        members: Any = ledger.redis.smembers(ledger.keys.accounts)
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
        raise InvalidRequest(
            f"the cursor {cursor!r} is not one that a list answered: leave it out to start from the newest"
        )
    return _Entry(int(created_at), id_)


def _deletion(
    id_: str, row: Mapping[str, str], lines: Sequence[str], started: Mapping[str, str | None], give_up_ms: int
) -> Deletion | None:
    """The record in a hash; None if there is none. A field that this version does not know is left out."""
    row = {name: text for name, text in row.items() if text}
    try:
        found: dict[str, Any] = {
            field.name: _value(field.name, row[field.name]) for field in fields(Deletion) if field.name in row
        }
        state = _word(State, row["state"])
        since = max(int(row["due_at"]), int(started.get(row["account"]) or 0))
        finished = found.get("finished_at")
        return Deletion(**{
            **found, "id": id_, "state": state, "evidence": _word(Evidence, row["evidence"]) if "evidence" in row
            else None, "status": row.get("status") or (str(state) if is_final(state) else None), "timestamp":
            row.get("timestamp") or iso(finished), "missing_ok": "missing_ok" in row, "incarnation":
            json.loads(row["incarnation"]) if "incarnation" in row else None, "deadline": moment(since +
            give_up_ms), "attempts": tuple(map(_attempt, lines)),
        })  # fmt: skip
    except (KeyError, ValueError, TypeError):
        return None


def _attempt(line: str) -> Attempt:
    stored = json.loads(line)
    return Attempt(**{name: _value(name, value) for name, value in stored.items() if name in _ATTEMPTS})


def _value(name: str, value: Any) -> Any:
    return moment(value) if name in _TIMES else value


def _word(kind: type[Evidence] | type[State], text: str) -> Any:
    """The member of an enumeration, or the text itself if this version does not know it."""
    return kind(text) if text in list(kind) else text
