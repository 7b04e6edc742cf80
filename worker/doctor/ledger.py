"""Does the work get done? What the ledger shows of workers, beat, clocks, stops and waiting deletions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from tasks.durations import format_duration, iso
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import list_dead_letters
from tasks.ledger.queries import stopped_accounts, workers_seen
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.statistics import statistics
from tasks.records import from_ms
from worker.doctor.server import Finding

LATE = timedelta(minutes=5)
SKEW = timedelta(seconds=5)


def check_ledger(ledger: Ledger, tick_every: timedelta) -> Iterator[Finding]:
    """One finding at a time. Raises `LedgerUnavailable`. tick_every: of beat."""
    overdue = max(one.oldest_due_seconds for one in statistics(ledger).accounts.values())
    yield _clock(ledger)
    yield _workers(ledger, is_due=overdue > 0)
    yield from _beat(ledger, late=3 * tick_every)
    yield _due(timedelta(seconds=overdue))
    yield from _stops(ledger)
    yield _dead_letters(ledger)


def _clock(ledger: Ledger) -> Finding:
    """Two clocks that are at most 5 s apart agree."""
    before = time.time()
    theirs = ledger.now_ms() / 1000
    skew = timedelta(seconds=theirs - (before + time.time()) / 2)
    if abs(skew) <= SKEW:
        return Finding("clock", "ok", "the clocks of Redis and this host agree")
    ahead = "ahead of" if skew > timedelta(0) else "behind"
    text = f"the clock of Redis is {_rounded(abs(skew))} {ahead} that of this host: synchronise both (NTP)"
    return Finding("clock", "warning", text)


def _workers(ledger: Ledger, *, is_due: bool) -> Finding:
    seen = workers_seen(ledger)
    if not seen:
        text = "no worker is seen: start one with `janitor worker` or `janitor up`"
        return Finding("workers", "error" if is_due else "warning", text)
    text = f"worker processes: {', '.join(seen)}"
    versions = {name.rpartition(" ")[2] for name in seen}
    if versions != {ours := version("finetune-janitor")}:
        return Finding("workers", "warning", f"{text}; this is {ours}: bring all to one version")
    return Finding("workers", "ok", text)


def _beat(ledger: Ledger, *, late: timedelta) -> Iterator[Finding]:
    with unavailable():
        ticked_at: Any = ledger.redis.get(ledger.keys.tick)
        runs: Any = ledger.redis.hgetall(ledger.keys.policy_runs)
    start = "start one with `janitor beat` or `janitor up`; without it no cleanup runs"
    if ticked_at is None:
        yield Finding("beat", "warning", f"no beat is seen: {start}")
        return
    age = from_ms(ledger.now_ms()) - from_ms(ticked_at)
    if age > late:
        yield Finding("beat", "warning", f"the last tick of beat is {_rounded(age)} old: {start}")
    else:
        yield Finding("beat", "ok", f"beat ticked {_rounded(max(age, timedelta(0)))} ago")
    for policy, run in sorted(runs.items()):
        at, _, schedule = run.partition(" ")
        yield Finding("policy", "ok", f"{policy} ({schedule}): its last scheduled time was {iso(from_ms(at))}")


def _due(overdue: timedelta) -> Finding:
    if not overdue:
        return Finding("queue", "ok", "nothing is due")
    text = f"the oldest due deletion has waited {_rounded(overdue)}"
    if overdue > LATE:
        return Finding("queue", "warning", f"{text}: do workers run, is the account stopped, does the API answer?")
    return Finding("queue", "ok", text)


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


def _dead_letters(ledger: Ledger) -> Finding:
    found = list_dead_letters(ledger)
    if not found:
        return Finding("dead letters", "ok", "every message could be read")
    text = f"{len(found)} messages could not be read, the last one because {found[0].reason!r}"
    return Finding("dead letters", "warning", f"{text}: see `janitor dead-letters list`")


def _rounded(age: timedelta) -> str:
    return format_duration(timedelta(seconds=round(age.total_seconds())))
