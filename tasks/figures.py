"""The ledger in figures, for metrics: read at each scrape, so they are right for any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.ledger import Ledger
from tasks.queries import LANES
from tasks.records import DEFAULT_ACCOUNT, State
from tasks.redis_errors import unavailable


@dataclass(frozen=True)
class AccountFigures:
    """One account. calls: answer -> bucket of `CALL_SECONDS` (`none` where the time is not known) -> how many."""

    states: Mapping[State, int]
    requests: Mapping[str, int]  # by source
    calls: Mapping[str, Counter[str]]
    call_seconds: Mapping[str, float]  # by answer
    oldest_due_seconds: float  # 0 where nothing is due
    permits: int
    permits_limit: int
    cool_down_seconds: float
    parked: bool
    paused: bool


class Figures(NamedTuple):
    """Everything; an age is infinite where dispatch or beat was never heard of."""

    accounts: dict[str, AccountFigures]
    workers: int
    dispatch_age_seconds: float
    beat_age_seconds: float
    poison: int


def figures(ledger: Ledger) -> Figures:
    """In two round trips, for any number of records. Raises `LedgerUnavailable`."""
    prefix, now = ledger.prefix, ledger.now_ms()
    with unavailable(), ledger.redis.pipeline(transaction=False) as pipe:
        pipe.smembers(f"{prefix}accounts")
        pipe.hgetall(f"{prefix}paused")
        pipe.zcount(f"{prefix}workers", now, "+inf")
        pipe.get(f"{prefix}dispatched")
        pipe.get(f"{prefix}tick")
        pipe.llen(f"{prefix}poison")
        names, paused, workers, dispatched, tick, poison = pipe.execute()
        names = sorted({DEFAULT_ACCOUNT, *names})
        for name in names:
            _ask(pipe, prefix, name, now)
        rows = pipe.execute()
    width = len(rows) // len(names)
    accounts = {
        name: _account(rows[i * width : (i + 1) * width], now, paused=name in paused or "*" in paused)
        for i, name in enumerate(names)
    }
    return Figures(accounts, workers, _age(now, dispatched), _age(now, tick), poison)


def _age(now: int, at: str | None) -> float:
    return (now - int(at)) / 1000 if at else float("inf")


def _ask(pipe: Any, prefix: str, name: str, now: int) -> None:
    for state in State:
        pipe.zcard(f"{prefix}ix:{name}:{state}")
    for lane in LANES:
        pipe.zrange(f"{prefix}queue:{name}:{lane}", 0, 0, withscores=True)
    pipe.zrangebyscore(f"{prefix}wait:{name}", "-inf", now, 0, 1, withscores=True)
    pipe.zcount(f"{prefix}permits:{name}", now, "+inf")
    pipe.hmget(f"{prefix}account:{name}", "max_concurrent", "cool_until", "parked_at")
    pipe.hgetall(f"{prefix}stats:{name}")


def _account(row: list[Any], now: int, *, paused: bool) -> AccountFigures:
    *firsts, permits, (limit, cool_until, parked_at), stats = row[len(State) :]
    due = [score for first in firsts for _, score in first]
    calls: dict[str, Counter[str]] = {}
    for answer, bucket, count in _counts(stats, "call"):
        calls.setdefault(answer, Counter())[bucket] += count
    return AccountFigures(
        states=dict(zip(State, row, strict=False)),
        requests={source: count for source, _, count in _counts(stats, "source")},
        calls=calls,
        call_seconds={answer: count / 1000 for answer, _, count in _counts(stats, "ms")},
        oldest_due_seconds=max(0.0, (now - min(due, default=now)) / 1000),
        permits=permits,
        permits_limit=int(limit or 1),
        cool_down_seconds=max(0.0, (int(float(cool_until or 0)) - now) / 1000),
        parked=parked_at is not None,
        paused=paused,
    )


def _counts(stats: Mapping[str, str], kind: str) -> list[tuple[str, str, int]]:
    """The fields `<kind>:<name>:<more>` of `stats`."""
    split = [(f"{field}::".split(":"), int(count)) for field, count in stats.items()]
    return [(name, more, count) for (of, name, more, *_), count in split if of == kind]
