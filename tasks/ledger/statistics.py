"""The ledger in numbers, for metrics and doctor: read when asked, so they are right for any number of workers."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from tasks.api.observations import Presence
from tasks.ledger.keys import LANES
from tasks.ledger.queries import cooling_ms, each
from tasks.ledger.store import Ledger
from tasks.records import DEFAULT_ACCOUNT, FINAL, State

# How many deletions of each list are asked for their due time. Each list is in the order of that time, or of a
# retry's, and retries have a list of their own.
_SAMPLE = 50
_MOST_REVIEWS = 200


@dataclass(frozen=True)
class AccountStatistics:
    """One account.

    requests: by source. refused: requests by name, by reason. finished: how often a deletion came to this final
    state. observations: by what was seen, or by the error. calls: answer -> bucket of `CALL_SECONDS` (`none` if
    the time is not known) -> how many. call_seconds: by answer. retrying: unfinished deletions of which a try
    failed. reviews_open: those that wait for a person, among the newest 200. unverified: `deleted` records that
    the list of finetunes is still to confirm; verification_late_seconds: for how long the first of them is due.
    oldest_due_seconds: since the time that was asked for, retries included; 0 if nothing is due. permits: calls
    that may be under way.
    """

    states: Mapping[State, int]
    requests: Mapping[str, int]
    refused: Mapping[str, int]
    finished: Mapping[str, int]
    observations: Mapping[str, int]
    calls: Mapping[str, Counter[str]]
    call_seconds: Mapping[str, float]
    retrying: int
    reviews_open: int
    unverified: int
    verification_late_seconds: float
    verifications_failed: int
    oldest_due_seconds: float
    permits: int
    permits_limit: int
    cool_down_seconds: float
    parked: bool
    paused: bool


class Statistics(NamedTuple):
    """Everything; an age is infinite if maintenance or beat never ran.

    workers_stuck: those that say of themselves that tasks run far too long.
    """

    accounts: dict[str, AccountStatistics]
    workers: int
    workers_stuck: int
    maintenance_age_seconds: float
    beat_age_seconds: float
    dead_letters: int


def statistics(ledger: Ledger) -> Statistics:
    """Read all of it, in five round trips for each account, whatever the number of records.

    Raises `LedgerUnavailable`.
    """
    keys, now = ledger.keys, ledger.now_ms()
    with ledger.redis.pipeline(transaction=False) as pipe:
        pipe.smembers(keys.accounts)
        pipe.hkeys(keys.paused)
        pipe.zrangebyscore(keys.workers, now, "+inf")
        pipe.get(keys.maintained)
        pipe.get(keys.tick)
        pipe.llen(keys.dead_letters)
        names, paused, workers, maintained, tick, dead_letters = pipe.execute()
    accounts = {
        name: _account(ledger, name, now, is_paused=not {name, "*"}.isdisjoint(paused))
        for name in sorted({DEFAULT_ACCOUNT, *names})
    }
    stuck = sum(" stuck=" in worker for worker in workers)
    return Statistics(accounts, len(workers), stuck, _age(now, maintained), _age(now, tick), dead_letters)


def _age(now: int, at: str | None) -> float:
    return (now - int(at)) / 1000 if at else float("inf")


def _account(ledger: Ledger, name: str, now: int, *, is_paused: bool) -> AccountStatistics:
    keys = ledger.keys
    with ledger.redis.pipeline(transaction=False) as pipe:
        pipe.zcount(keys.permits(name), now, "+inf")
        pipe.hmget(keys.account(name), "max_concurrent", "cool_until", "cool_ms", "parked_at")
        pipe.hgetall(keys.stats(name))
        pipe.zcard(keys.retrying(name))
        pipe.zcard(keys.verify(name))
        pipe.zrange(keys.verify(name), 0, 0, withscores=True)
        permits, (limit, cool_until, cool_ms, parked_at), stats, retrying, unverified, to_verify = pipe.execute()
    states = each(ledger, State, lambda pipe, state: pipe.zcard(keys.index(name, state)))
    leases = each(ledger, LANES, lambda pipe, lane: pipe.zcard(keys.leases(name, lane)))
    calls: dict[str, Counter[str]] = defaultdict(Counter)
    for answer, bucket, count in _counts(stats, "call"):
        calls[answer][bucket] += count
    return AccountStatistics(
        states=dict(zip(State, states, strict=True)),
        requests={source: count for source, _, count in _counts(stats, "source")},
        refused=_from_zero(("account", "conflict", "request"), stats, "refused"),
        finished=_from_zero(sorted(FINAL), stats, "finished"),
        observations=_from_zero(Presence, stats, "observation"),
        calls=calls,
        call_seconds={answer: count / 1000 for answer, _, count in _counts(stats, "ms")},
        retrying=retrying,
        reviews_open=_open_reviews(ledger, name),
        unverified=unverified,
        verification_late_seconds=max([0.0, *((now - at) / 1000 for _, at in to_verify)]),
        verifications_failed=int(stats.get("verification:failed", 0)),
        oldest_due_seconds=_oldest_due(ledger, name, now) / 1000,
        permits=permits + sum(leases),
        permits_limit=int(limit or 1),
        cool_down_seconds=cooling_ms(cool_until, cool_ms, now) / 1000,
        parked=parked_at is not None,
        paused=is_paused,
    )


def _oldest_due(ledger: Ledger, name: str, now: int) -> int:
    """For how many milliseconds the oldest due deletion of an account is due; 0 if none is."""
    keys = ledger.keys
    # What may be due stands in these; a deletion behind a sibling is only in the index of its state.
    lists = [keys.retrying(name), keys.wait(name), keys.index(name, State.QUEUED), keys.index(name, State.RUNNING)]
    lists += [keys.queue(name, lane) for lane in LANES]
    rows = each(ledger, lists, lambda pipe, key: pipe.zrange(key, 0, _SAMPLE - 1))
    ids = {id_ for row in rows for id_ in row}
    times = each(ledger, ids, lambda pipe, id_: pipe.hget(keys.deletion(id_), "due_at"))
    return max((now - int(at) for at in times if at and int(at) <= now), default=0)


def _open_reviews(ledger: Ledger, name: str) -> int:
    ids = each(
        ledger, [State.REVIEW], lambda pipe, of: pipe.zrevrange(ledger.keys.index(name, of), 0, _MOST_REVIEWS - 1)
    )
    done = each(
        ledger, ids[0] or (), lambda pipe, id_: pipe.hmget(ledger.keys.deletion(id_), "resolved_at", "retried_by")
    )
    return sum(not any(one or ()) for one in done)


def _from_zero(names: Iterable[str], stats: Mapping[str, str], kind: str) -> dict[str, int]:
    """The counts of a kind. Names known before their first event begin at 0.

    Prometheus sees no increase when a counter appears with its first value.
    """
    return dict.fromkeys(map(str, names), 0) | {name: count for name, _, count in _counts(stats, kind)}


def _counts(stats: Mapping[str, str], kind: str) -> list[tuple[str, str, int]]:
    """The fields `<kind>:<name>[:<more>]` of `stats`."""
    split = [(f"{field}::".split(":"), int(count)) for field, count in stats.items()]
    return [(name, more, count) for (of, name, more, *_), count in split if of == kind]
