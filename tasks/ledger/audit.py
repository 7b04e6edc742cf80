"""The audit log: who did what other than asking, when and why. The scripts write it: see `lua/lib_audit.lua`.

It is one list a month, kept apart from the records, and longer.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

from pydantic import TypeAdapter

from tasks.errors import InvalidRequest
from tasks.ledger.queries import each
from tasks.ledger.store import Ledger
from tasks.ledger.types import Act
from tasks.records import Moment, Plain, from_ms
from tasks.text import one_line

_FIRST_YEAR = 2026  # no entry is older
_CHUNK = 500


@dataclass(frozen=True)
class Entry(Plain):
    """One act. account: `*` stands for all of them. ids: at most 20 of the `count` that it was about."""

    at: Moment
    who: str | None
    via: str
    act: str
    account: str | None = None
    plan: str | None = None
    ids: tuple[str, ...] = ()
    count: int = 0
    why: str | None = None


_ENTRIES = TypeAdapter(Entry)


@dataclass(frozen=True)
class Wanted:
    """Which entries; None leaves a filter out."""

    since: datetime | None = None
    until: datetime | None = None
    who: str | None = None
    act: str | None = None

    def has(self, one: Entry) -> bool:
        is_then = (self.since or one.at) <= one.at <= (self.until or one.at)
        return is_then and self.who in (None, one.who) and self.act in (None, one.act)


def read(ledger: Ledger, wanted: Wanted, cursor: str = "") -> Iterator[tuple[str, Entry | None]]:
    """Entries, oldest first, each with the cursor that goes on after it; None for one that is not wanted.

    Raises `InvalidRequest` for a cursor that is none.
    """
    if cursor and not re.fullmatch(r"\d{4}-\d{2}:\d{1,9}", cursor):
        raise InvalidRequest(f"the cursor {cursor!r} is not one that this list answered: leave it out to start")
    first, _, index = cursor.partition(":")
    first = max(first, _month(wanted.since) if wanted.since else "")
    last = _month(wanted.until or from_ms(ledger.now_ms()))
    for month in (one for one in _months(ledger) if first <= one <= last):
        for n, entry in _entries(ledger, month, int(index) if cursor.startswith(month) else 0):
            yield f"{month}:{n + 1}", entry if wanted.has(entry) else None


def prune(ledger: Ledger, act: Act) -> list[str]:
    """Drop the months that are wholly older than `audit_retention`; which were dropped.

    Raises `LedgerUnavailable` if this user of Redis may not: see deploy/redis/users.acl.
    """
    kept_since = _month(from_ms(ledger.now_ms()) - ledger.terms.audit_retention)
    old = [month for month in _months(ledger) if month < kept_since]
    dropped = old and ledger.redis.delete(*map(ledger.keys.audit, old))
    if dropped:
        ledger.act("prune", act, ids=old)
    return old


def _months(ledger: Ledger) -> list[str]:
    """The months that have entries; asked for one by one, since the users who act may not list keys."""
    last = from_ms(ledger.now_ms()).year + 1
    months = [f"{year}-{month:02}" for year in range(_FIRST_YEAR, last + 1) for month in range(1, 13)]
    lengths = each(ledger, months, lambda pipe, month: pipe.llen(ledger.keys.audit(month)))
    return [month for month, length in zip(months, lengths, strict=True) if length]


def _entries(ledger: Ledger, month: str, start: int) -> Iterator[tuple[int, Entry]]:
    for n in count(start, _CHUNK):
        rows: Any = ledger.redis.lrange(ledger.keys.audit(month), n, n + _CHUNK - 1)
        yield from ((n + i, _entry(row, month)) for i, row in enumerate(rows))
        if len(rows) < _CHUNK:
            return


def _entry(row: str, month: str) -> Entry:
    """What a script wrote, without fields that this version does not know; any other line is shown as it is."""
    try:
        return _ENTRIES.validate_json(row)
    except (ValueError, OverflowError):
        start = datetime.fromisoformat(f"{month}-01T00:00:00+00:00")
        return Entry(start, None, "", "unreadable", why=one_line(row))


def _month(moment: datetime) -> str:
    return f"{moment:%Y-%m}"
