"""Which finetunes are gone or will soon be: what the janitor has deleted, and what has an unfinished deletion."""

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from tasks.ledger import Ledger
from tasks.ledger.queries import each
from tasks.records import State, to_ms
from tasks.text import finetune_key

_LISTED_FOR = timedelta(hours=1)  # at most: a list that lags still shows what is deleted


def gone_among(ledger: Ledger, account: str, ids: Collection[str], at: datetime) -> frozenset[str]:
    """Those of `ids`, listed at that time, that wait for their deletion or were deleted within an hour before."""
    return requested_among(ledger, account, ids) | deleted_among(ledger, account, ids, at - _LISTED_FOR)


def requested_among(ledger: Ledger, account: str, ids: Collection[str]) -> frozenset[str]:
    """Those of `ids` that have an unfinished deletion, by this spelling or another."""
    name = ledger.keys.unfinished
    found = each(ledger, ids, lambda pipe, id_: pipe.exists(name(account, finetune_key(id_))))
    return frozenset(id_ for id_, exists in zip(ids, found, strict=True) if exists)


def deleted_among(ledger: Ledger, account: str, ids: Collection[str], since: datetime) -> frozenset[str]:
    """Those of `ids` that the janitor has deleted since then, by this spelling or another."""
    key = ledger.keys.deletion
    finished: Any = ledger.redis.zrangebyscore(ledger.keys.finished, to_ms(since), "+inf")
    rows = each(ledger, finished, lambda pipe, id_: pipe.hmget(key(id_), "account", "state", "name"))
    deleted = {row[2] for row in rows if row and row[:2] == [account, State.DELETED]}
    return frozenset(id_ for id_ in ids if finetune_key(id_) in deleted)
