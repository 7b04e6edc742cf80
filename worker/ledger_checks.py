"""Does the work get done? What the ledger shows of workers, beat, clocks, stops and what waits."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from importlib.metadata import version
from typing import Any

from tasks.durations import format_duration, iso
from tasks.ledger import Ledger
from tasks.poison import list_poison
from tasks.queries import oldest_due, stopped_accounts, workers_seen
from tasks.records import from_ms
from tasks.redis_errors import unavailable
from worker.server_checks import Finding

LATE = timedelta(minutes=5)
SKEW = timedelta(seconds=5)


def check_ledger(ledger: Ledger, tick_every: timedelta) -> Iterator[Finding]:
    """One finding at a time. Raises `LedgerUnavailable`. tick_every: of beat."""
    yield clock_finding("clock", "Redis", "this host", redis_ahead(ledger))
    yield _workers(ledger)
    yield from _beat(ledger, late=3 * tick_every)
    yield _due(ledger)
    yield from _stops(ledger)
    yield _poison(ledger)


def redis_ahead(ledger: Ledger) -> timedelta:
    """How far Redis's clock is ahead of this host's. Raises `LedgerUnavailable`."""
    before = time.time()
    theirs = ledger.now_ms() / 1000
    return timedelta(seconds=theirs - (before + time.time()) / 2)


def clock_finding(
    check: str, one: str, other: str, skew: timedelta, *, error_from: timedelta | None = None
) -> Finding:
    """How far the clock of `one` is ahead of that of `other`; within 5 s nothing is said against it."""
    apart = abs(skew)
    if apart <= SKEW:
        return Finding(check, "ok", f"the clocks of {one} and {other} agree")
    ahead = "ahead of" if skew > timedelta(0) else "behind"
    text = f"the clock of {one} is {_rounded(apart)} {ahead} that of {other}: synchronise both (NTP)"
    return Finding(check, "error" if error_from is not None and apart > error_from else "warning", text)


def _workers(ledger: Ledger) -> Finding:
    seen = workers_seen(ledger)
    if not seen:
        nobody = "no worker is seen: start one with `janitor worker` or `janitor up`"
        return Finding("workers", "error" if oldest_due(ledger) else "warning", nobody)
    text = f"worker processes: {', '.join(seen)}"
    versions = {name.rpartition(" ")[2] for name in seen}
    if versions != {ours := version("finetune-janitor")}:
        return Finding("workers", "warning", f"{text}; this is {ours}: bring all to one version")
    return Finding("workers", "ok", text)


def _beat(ledger: Ledger, *, late: timedelta) -> Iterator[Finding]:
    with unavailable():
        ticked_at: Any = ledger.redis.get(f"{ledger.prefix}tick")
        runs: Any = ledger.redis.hgetall(f"{ledger.prefix}policy-runs")
    start = "start one with `janitor beat` or `janitor up`; without it no cleanup runs"
    if ticked_at is None:
        yield Finding("beat", "warning", f"no beat is seen: {start}")
        return
    age = from_ms(ledger.now_ms()) - from_ms(ticked_at)
    if age > late:
        yield Finding("beat", "warning", f"the last tick of beat is {_rounded(age)} old: {start}")
    else:
        yield Finding("beat", "ok", f"beat ticked {_rounded(max(age, timedelta(0)))} ago")
    for policy, at in sorted(runs.items()):
        yield Finding("policy", "ok", f"{policy}: its last scheduled time was {iso(from_ms(at))}")


def _due(ledger: Ledger) -> Finding:
    due = oldest_due(ledger)
    if due is None:
        return Finding("queue", "ok", "nothing is due")
    age = from_ms(ledger.now_ms()) - due
    text = f"the oldest due deletion has waited {_rounded(age)}"
    if age > LATE:
        return Finding(
            "queue", "warning", f"{text} (since {iso(due)}): are workers running, is the account stopped?"
        )
    return Finding("queue", "ok", text)


def _stops(ledger: Ledger) -> Iterator[Finding]:
    for name, stop in stopped_accounts(ledger).items():
        whom, option = ("all accounts", "") if name == "*" else (f"account {name}", f" --account {name}")
        if stop.paused is not None:
            yield Finding("paused", "warning", f"{whom}: {stop.paused}; `janitor resume{option}` goes on")
        if stop.parked is not None:
            why = f"{whom}: the API refuses its key ({stop.parked}); correct it, the worker tries it every 30s"
            yield Finding("parked", "error", why)
        if stop.cooling is not None:
            yield Finding("cool-down", "ok", f"{whom} waits, as the API asked: {stop.cooling}")


def _poison(ledger: Ledger) -> Finding:
    found = list_poison(ledger)
    if not found:
        return Finding("poison", "ok", "no unreadable message was put aside")
    text = f"{len(found)} unreadable messages were put aside, the last for {found[0].reason!r}"
    return Finding("poison", "warning", f"{text}: see `janitor poison list`")


def _rounded(age: timedelta) -> str:
    return format_duration(timedelta(seconds=round(age.total_seconds())))
