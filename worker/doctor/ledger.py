"""Does the work get done? What the ledger shows of workers, beat, clocks, stops and waiting deletions."""

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from tasks.durations import format_duration, iso
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import list_dead_letters
from tasks.ledger.queries import Filter, list_deletions, stopped_accounts
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.statistics import statistics
from tasks.records import State, from_ms
from worker.doctor.server import Finding, judged
from worker.doctor.work import check_work

LATE = timedelta(minutes=5)
SKEW = timedelta(seconds=5)
_MOST_REVIEWS = 200


def check_ledger(ledger: Ledger, tick_every: timedelta) -> Iterator[Finding]:
    """One finding at a time. Raises `LedgerUnavailable`. tick_every: of beat."""
    accounts = statistics(ledger).accounts
    overdue = timedelta(seconds=max(one.oldest_due_seconds for one in accounts.values()))
    yield _clock(ledger)
    yield from check_work(ledger, accounts)
    yield from _beat(ledger, late=3 * tick_every)
    yield judged(
        "queue", f"the oldest due deletion has waited {_rounded(overdue)}" if overdue else "nothing is due",
        (overdue > LATE, "warning", "do workers run, is the account stopped, does the API answer?"),
    )  # fmt: skip
    yield from _stops(ledger)
    letters, fact = list_dead_letters(ledger), "every message could be read"
    if letters:
        fact = f"{len(letters)} messages could not be read, the last one because {letters[0].reason!r}"
    yield judged("dead letters", fact, (letters, "warning", "see `janitor dead-letters list`"))
    yield _reviews(ledger)


def _clock(ledger: Ledger) -> Finding:
    """Two clocks that are at most 5 s apart agree."""
    before = time.time()
    theirs = ledger.now_ms() / 1000
    skew = timedelta(seconds=theirs - (before + time.time()) / 2)
    where = "ahead of" if skew > timedelta(0) else "behind"
    fact = f"the clock of Redis is {_rounded(abs(skew))} {where} that of this host"
    return judged("clock", fact, (abs(skew) > SKEW, "warning", "synchronise both (NTP)"))


def _beat(ledger: Ledger, *, late: timedelta) -> Iterator[Finding]:
    with unavailable():
        ticked_at: Any = ledger.redis.get(ledger.keys.tick)
        runs: Any = ledger.redis.hgetall(ledger.keys.policy_runs)
    age = None if ticked_at is None else max(from_ms(ledger.now_ms()) - from_ms(ticked_at), timedelta(0))
    yield judged(
        "beat", "no beat is seen" if age is None else f"the last tick of beat is {_rounded(age)} old",
        (age is None or age > late, "warning",
         "start one with `janitor beat` or `janitor up`; without it no cleanup runs"),
    )  # fmt: skip
    for policy, run in sorted(runs.items()) if age is not None else ():
        at, _, schedule = run.partition(" ")
        yield Finding("policy", "ok", f"{policy} ({schedule}): its last scheduled time was {iso(from_ms(at))}")


def _stops(ledger: Ledger) -> Iterator[Finding]:
    for name, stop in stopped_accounts(ledger).items():
        what, option = ("all accounts", "") if name == "*" else (f"account {name}", f" --account {name}")
        if stop.paused is not None:
            yield Finding("paused", "warning", f"{what}: {stop.paused}; `janitor resume{option}` starts it again")
        if stop.parked is not None:
            why = f"{what}: the API refuses its key ({stop.parked}); correct it, a worker tries it every 30s"
            yield Finding("parked", "error", why)
        if stop.cooling is not None:
            yield Finding("cool-down", "ok", f"{what} waits, as the API asked: {stop.cooling}")


def _reviews(ledger: Ledger) -> Finding:
    """Reviews that wait for a person: neither resolved nor tried again."""
    page = list_deletions(ledger, Filter(states=(State.REVIEW,)), limit=_MOST_REVIEWS)
    opened = [one for one in page.deletions if one.resolved_at is None and one.retried_by is None]
    if not opened:
        return Finding("reviews", "ok", "no deletion waits for a person")
    count = f"{len(opened)} or more" if page.cursor else len(opened)
    fact = f"deletions that wait for a person: {count}, the newest is {opened[0].id} ({opened[0].message})"
    return Finding("reviews", "error", f"{fact}: see `janitor list --state review`")


def _rounded(age: timedelta) -> str:
    return format_duration(timedelta(seconds=round(age.total_seconds())))
