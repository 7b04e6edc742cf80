"""The ledger in numbers, for metrics and doctor: read when asked, so they are right for any number of workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tasks.ledger.keys import LANES
from tasks.ledger.queries import each
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.store import Ledger
from tasks.records import DEFAULT_ACCOUNT, State

# How many deletions of each list are asked for their due time. A list is in the order of the next try, so behind
# many retries an older due time could be missed.
_SAMPLE = 50


@dataclass(frozen=True)
class AccountStatistics:
    """One account.

    requests: by source. refused: requests by name, by reason. calls: answer -> bucket of `CALL_SECONDS` (`none` if
    the time is not known) -> how many. call_seconds: by answer. oldest_due_seconds: since the time that was asked
    for, retries included; 0 if nothing is due. permits: calls that may be under way.
    """

    states: Mapping[State, int]
    requests: Mapping[str, int]
    refused: Mapping[str, int]
    calls: Mapping[str, Counter[str]]
    call_seconds: Mapping[str, float]
    verifications_failed: int
    oldest_due_seconds: float
    permits: int
    permits_limit: int
    cool_down_seconds: float
    parked: bool
    paused: bool


class Statistics(NamedTuple):
    """Everything; an age is infinite if maintenance or beat never ran."""

    accounts: dict[str, AccountStatistics]
    workers: int
    maintenance_age_seconds: float
    beat_age_seconds: float
    dead_letters: int


def statistics(ledger: Ledger) -> Statistics:
    """Read all of it, in three round trips for any number of records. Raises `LedgerUnavailable`."""
    keys, now = ledger.keys, ledger.now_ms()
    with unavailable(), ledger.redis.pipeline(transaction=False) as pipe:
        pipe.smembers(keys.accounts)
        pipe.hgetall(keys.paused)
        pipe.zcount(keys.workers, now, "+inf")
        pipe.get(keys.maintained)
        pipe.get(keys.tick)
        pipe.llen(keys.dead_letters)
        found, paused, workers, maintained, tick, dead_letters = pipe.execute()
        names = sorted({DEFAULT_ACCOUNT, *found})
        for name in names:
            _ask(pipe, keys, name, now)
        answers = pipe.execute()
    width = len(answers) // len(names)
    rows = {name: answers[i * width : (i + 1) * width] for i, name in enumerate(names)}
    due = _oldest_due(ledger, rows, now)
    accounts = {
        name: _account(row, now, due.get(name, now), paused=name in paused or "*" in paused)
        for name, row in rows.items()
    }
    return Statistics(accounts, workers, _age(now, maintained), _age(now, tick), dead_letters)


def _age(now: int, at: str | None) -> float:
    return (now - int(at)) / 1000 if at else float("inf")


# What may be due stands in these; a deletion behind a sibling is only in the index of its state.
_LISTS = len(LANES) + 3


def _ask(pipe: Any, keys: Any, name: str, now: int) -> None:
    lists = [keys.queue(name, lane) for lane in LANES]
    lists += [keys.wait(name), keys.index(name, State.QUEUED), keys.index(name, State.RUNNING)]
    for key in lists:
        pipe.zrange(key, 0, _SAMPLE - 1)
    for state in State:
        pipe.zcard(keys.index(name, state))
    for lane in LANES:
        pipe.zcard(keys.leases(name, lane))
    pipe.zcount(keys.permits(name), now, "+inf")
    pipe.hmget(keys.account(name), "max_concurrent", "cool_until", "parked_at")
    pipe.hgetall(keys.stats(name))


def _oldest_due(ledger: Ledger, rows: Mapping[str, list[Any]], now: int) -> dict[str, int]:
    """The oldest due time of each account that has one, in milliseconds."""
    owners = {id_: name for name, row in rows.items() for ids in row[:_LISTS] for id_ in ids}
    times = each(ledger, owners, lambda pipe, id_: pipe.hget(ledger.keys.deletion(id_), "due_at"))
    oldest: dict[str, int] = {}
    for name, at in zip(owners.values(), times, strict=True):
        if at and int(at) <= now:
            oldest[name] = min(oldest.get(name, now), int(at))
    return oldest


def _account(row: list[Any], now: int, due_at: int, *, paused: bool) -> AccountStatistics:
    counts, (permits, account, stats) = row[_LISTS:-3], row[-3:]
    states, leases = counts[: len(State)], counts[len(State) :]
    limit, cool_until, parked_at = account
    calls: dict[str, Counter[str]] = {}
    for answer, bucket, count in _counts(stats, "call"):
        calls.setdefault(answer, Counter())[bucket] += count
    return AccountStatistics(
        states=dict(zip(State, states, strict=True)),
        requests={source: count for source, _, count in _counts(stats, "source")},
        refused={why: count for why, _, count in _counts(stats, "refused")},
        calls=calls,
        call_seconds={answer: count / 1000 for answer, _, count in _counts(stats, "ms")},
        verifications_failed=int(stats.get("verification:failed", 0)),
        oldest_due_seconds=(now - due_at) / 1000,
        permits=permits + sum(leases),
        permits_limit=int(limit or 1),
        cool_down_seconds=max(0.0, (int(float(cool_until or 0)) - now) / 1000),
        parked=parked_at is not None,
        paused=paused,
    )


def _counts(stats: Mapping[str, str], kind: str) -> list[tuple[str, str, int]]:
    """The fields `<kind>:<name>[:<more>]` of `stats`."""
    split = [(f"{field}::".split(":"), int(count)) for field, count in stats.items()]
    return [(name, more, count) for (of, name, more, *_), count in split if of == kind]
