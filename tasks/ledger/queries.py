"""Reading the ledger: by id, finetune, state, account and time, newest first, without scanning everything."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from fnmatch import fnmatchcase
from heapq import merge
from itertools import compress, islice
from typing import Any, NamedTuple, TypeVar

from pydantic import TypeAdapter

from tasks.durations import iso
from tasks.errors import InvalidRequest, UnknownDeletion
from tasks.ledger.inputs import in_milliseconds
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.store import Ledger
from tasks.records import DEFAULT_ACCOUNT, Deletion, State, is_final, moment, to_ms
from tasks.text import finetune_key

T = TypeVar("T")
_CHUNK = 200
_MOST_READ = 10_000  # records for one page
_RECORDS = TypeAdapter(Deletion)


@dataclass(frozen=True)
class Filter:
    """Which deletions to list; None leaves a filter out. `since` and `until` are about their creation.

    needs_person: only reviews that nobody resolved or retried. labels: all must fit. name: a pattern for
    the finetune's name.
    """

    account: str | None = None
    accounts: tuple[str, ...] = ()  # that the reader may see; empty: all
    states: tuple[State, ...] = ()
    finetune_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    needs_person: bool = False
    labels: Mapping[str, str] | None = None
    requested_by: str | None = None
    name: str | None = None


class Page(NamedTuple):
    """Deletions, newest first; `cursor` asks for the next page, None on the last.

    A page may be short, or empty, and still have a cursor: 10,000 records were read for it.
    """

    deletions: list[Deletion]
    cursor: str | None


class Stop(NamedTuple):
    """Why an account does not delete now.

    paused, parked, cooling: the reason, None if the account is not stopped that way. The others: when each began,
    who paused it (`janitor` if an alarm did), when the cool-down ends; None if not known.
    """

    paused: str | None
    parked: str | None
    cooling: str | None
    paused_at: datetime | None = None
    paused_by: str | None = None
    parked_at: datetime | None = None
    cool_until: datetime | None = None


class _Entry(NamedTuple):
    created_at: int
    id: str


def each(ledger: Ledger, items: Iterable[T], ask: Callable[[Any, T], object]) -> list[Any]:
    """The answers to the same question about each of `items`, in one round trip. ask: puts it to a pipeline.

    None if a key has another type, as after a write by hand: that must not hide the rest.
    """
    with unavailable(), ledger.redis.pipeline(transaction=False) as pipe:
        for item in items:
            ask(pipe, item)
        answers = pipe.execute(raise_on_error=False)
        for error in [one for one in answers if isinstance(one, Exception)]:
            if not str(error).startswith("WRONGTYPE"):
                raise error
    return [None if isinstance(one, Exception) else one for one in answers]


def get(ledger: Ledger, deletion_id: str) -> Deletion:
    """The deletion with this id; raises `UnknownDeletion`."""
    found = get_many(ledger, [deletion_id])[0]
    if found is None:
        is_there = ledger.redis.exists(ledger.keys.deletion(deletion_id))
        found = get_many(ledger, [deletion_id])[0] if is_there else None  # written in between
    if found is None:
        unread = f"the record of {deletion_id!r} cannot be read: see its hash in Redis"
        raise UnknownDeletion(unread if is_there else f"no deletion has the id {deletion_id!r}")
    return found


def get_many(ledger: Ledger, ids: Sequence[str]) -> list[Deletion | None]:
    """A deletion for each id, None if it has no readable record; two round trips."""
    keys, give_up_ms = ledger.keys, in_milliseconds(ledger.terms.give_up_after)
    answers = each(
        ledger, ids, lambda pipe, id_: pipe.hgetall(keys.deletion(id_)).lrange(keys.attempts(id_), 0, -1)
    )
    records, attempts = [one or {} for one in answers[::2]], [one or () for one in answers[1::2]]
    accounts = {record["account"] for record in records if "account" in record}
    times = each(ledger, accounts, lambda pipe, name: pipe.hget(keys.account(name), "started_at"))
    started = dict(zip(accounts, times, strict=True))
    return [_deletion(*one, started, give_up_ms) for one in zip(ids, records, attempts, strict=True)]


def list_deletions(ledger: Ledger, where: Filter, *, limit: int = 50, cursor: str | None = None) -> Page:
    """One page of what matches, newest first.

    The work depends on the page and on the number of accounts and states, not on the number of records.
    """
    after = _parse_cursor(cursor) if cursor else None
    entries = _by_finetune(ledger, where) if where.finetune_id else _by_state(ledger, where, after)
    entries = (entry for entry in entries if after is None or entry < after)
    found: list[Deletion] = []
    size, left, last = min(_CHUNK, limit + 1), max(_MOST_READ, limit + 1), None
    while len(found) <= limit and (chunk := list(islice(entries, min(size, left)))):
        found += [one for one in get_many(ledger, [entry.id for entry in chunk]) if one and _matches(one, where)]
        size, left, last = _CHUNK, left - len(chunk), chunk[-1]
    if len(found) > limit:
        last = _Entry(to_ms(found[limit - 1].created_at), found[limit - 1].id)
    elif left:
        last = None
    return Page(found[:limit], f"{last.created_at}:{last.id}" if last else None)


def pages(ledger: Ledger, where: Filter, size: int = 500) -> Iterator[list[Deletion]]:
    """All that matches, newest first, in parts. What is accepted meanwhile is newer, and not in them."""
    page = list_deletions(ledger, where, limit=size)
    yield page.deletions
    while page.cursor:
        page = list_deletions(ledger, where, limit=size, cursor=page.cursor)
        yield page.deletions


def ended(ledger: Ledger, deletion_ids: Sequence[str]) -> set[str]:
    """Which of these deletions are final, or no longer known; cheaper than reading the records."""
    states = each(ledger, deletion_ids, lambda pipe, id_: pipe.hget(ledger.keys.deletion(id_), "state"))
    return {id_ for id_, state in zip(deletion_ids, states, strict=True) if not state or is_final(state)}


def known_accounts(ledger: Ledger) -> set[str]:
    """The accounts workers have registered, and `default`."""
    names = _all_accounts(ledger)
    registered = each(ledger, names, lambda pipe, name: pipe.hexists(ledger.keys.account(name), "registered"))
    return {DEFAULT_ACCOUNT, *compress(names, registered)}


def stopped_accounts(ledger: Ledger) -> dict[str, Stop]:
    """The accounts that do not delete now, and why; `*` stands for all of them."""
    now = ledger.now_ms()
    asked = ("parked_reason", "cool_until", "cool_ms", "cool_reason", "paused_at", "paused_by", "parked_at")
    paused: Any = ledger.redis.hgetall(ledger.keys.paused)
    names = sorted({*_all_accounts(ledger), *paused})
    rows = each(ledger, names, lambda pipe, name: pipe.hmget(ledger.keys.account(name), *asked))
    stops = {name: _stop(paused.get(name), now, *row) for name, row in zip(names, rows, strict=True)}
    return {name: stop for name, stop in stops.items() if stop[:3] != (None, None, None)}


def workers_seen(ledger: Ledger) -> list[str]:
    """The worker processes whose maintenance has reported lately, as their entries in the ledger."""
    found: Any = ledger.redis.zrangebyscore(ledger.keys.workers, ledger.now_ms(), "+inf")
    return list(found)


def cooling_ms(until: str | None, length: str | None, now: int) -> int:
    """For how long a cool-down still lasts, 0 if there is none; all in milliseconds. See `lib_account.lua`."""
    left = int(float(until or 0)) - now
    return left if 0 < left <= int(float(length or 0)) else 0


def _stop(paused: str | None, now: int, *row: str | None) -> Stop:
    parked, until, length, why, paused_at, paused_by, parked_at = row
    cooling = why if cooling_ms(until, length, now) else None
    return Stop(paused, parked, cooling, moment(paused_at), paused_by or None, moment(parked_at), moment(until))


def _by_state(ledger: Ledger, where: Filter, after: _Entry | None) -> Iterator[_Entry]:
    states = tuple(dict.fromkeys(where.states)) or ((State.REVIEW,) if where.needs_person else tuple(State))
    keys = [ledger.keys.index(account, state) for account in _accounts(ledger, where) for state in states]
    low: float = to_ms(where.since) if where.since else float("-inf")
    high: float | str = min(
        to_ms(where.until) if where.until else float("inf"), after.created_at if after else float("inf")
    )

    def look(high: float | str, low: float, *limit: int) -> list[Any]:
        # Unfinished states first: a deletion that moves on between two of these lists comes twice, and is not
        # missed. (Not in a transaction: a full Redis refuses those.)
        rows = each(ledger, keys, lambda pipe, key: pipe.zrevrangebyscore(key, high, low, *limit, withscores=True))
        return [row or [] for row in rows]

    while True:
        rows = look(high, low, 0, _CHUNK)
        # Below this moment a list was cut that holds more.
        floors = [row[-1][1] for row in rows if len(row) == _CHUNK]
        floor = max(floors, default=low)
        # All of that moment at once, so that the next look can begin after it.
        rows += look(floor, floor) if floors else []
        yield from sorted({_Entry(int(at), id_) for row in rows for id_, at in row if at >= floor}, reverse=True)
        if not floors:
            return
        high = f"({floor}"


def _by_finetune(ledger: Ledger, where: Filter) -> Iterator[_Entry]:
    low = f"[{finetune_key(where.finetune_id or '')}\n"

    def pages(account: str) -> Iterator[_Entry]:
        high = f"{low}:"
        while True:
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
    members: Any = ledger.redis.smembers(ledger.keys.accounts)
    return sorted(members)


def _matches(deletion: Deletion, where: Filter) -> bool:
    at = deletion.created_at
    has_state = not where.states or deletion.state in where.states
    is_wanted = deletion.needs_person or not where.needs_person
    has_labels = (where.labels or {}).items() <= (deletion.labels or {}).items()
    is_asked_so = where.requested_by in (None, deletion.requested_by)
    has_name = where.name is None or fnmatchcase(deletion.finetune_id, where.name)
    is_in_time = (where.since or at) <= at <= (where.until or at)
    return has_state and is_wanted and has_labels and is_asked_so and has_name and is_in_time


def _parse_cursor(cursor: str) -> _Entry:
    parts = re.fullmatch(r"([0-9]{1,15}):(.+)", cursor)
    if not parts:
        raise InvalidRequest(
            f"the cursor {cursor!r} is not one that a list answered: leave it out to start from the newest"
        )
    return _Entry(int(parts[1]), parts[2])


def _deletion(
    id_: str, record: dict[str, str], attempts: Sequence[str], started: Mapping[str, str | None], give_up_ms: int
) -> Deletion | None:
    """The record in a hash; None if there is none. A field that this version does not know is left out."""
    stored: dict[str, Any] = {name: text for name, text in record.items() if text}
    try:
        since = max(int(stored["due_at"]), int(started[stored["account"]] or 0))
        ours = {"status": stored["state"]} if is_final(stored["state"]) else {}
        return _RECORDS.validate_python({
            "timestamp": iso(moment(stored.get("finished_at"))), **ours, **stored,
            "id": id_, "deadline": since + give_up_ms, "attempts": list(map(json.loads, attempts)),
            **{name: json.loads(stored.get(name, "null")) for name in ("incarnation", "labels")},
        })  # fmt: skip
    except (KeyError, ValueError):
        return None
