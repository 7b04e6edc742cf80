"""Does the work get done? What the ledger shows of workers, beat, clocks, stops and waiting deletions."""

import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from tasks.durations import format_duration
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import MOST_KEPT, list_dead_letters
from tasks.ledger.queries import Filter, list_deletions, stopped_accounts
from tasks.ledger.server import free_memory
from tasks.ledger.statistics import Statistics
from tasks.records import State, from_ms
from tasks.text import in_command
from tasks.waiting import ALARM, key_variable, paused, running_workers
from worker.doctor.policies import scheduled_policies
from worker.doctor.retries import LATE, Retries, check_retries
from worker.doctor.server import Finding, judged
from worker.doctor.work import check_work

SKEW = timedelta(seconds=5)
_MOST_REVIEWS = 200


def check_ledger(
    ledger: Ledger, tick_every: timedelta, found: Statistics, tried_again: Sequence[Retries]
) -> Iterator[Finding]:
    """One finding at a time. Raises `LedgerUnavailable`. tick_every: of beat."""
    overdue = timedelta(seconds=max(one.oldest_due_seconds for one in found.accounts.values()))
    now = from_ms(ledger.now_ms())
    yield _clock(ledger)
    yield from _room(ledger)
    yield from check_work(ledger, found.accounts)
    yield from check_retries(tried_again, now)
    yield from _beat(ledger, now, found.beat_age_seconds, late=3 * tick_every)
    yield judged(
        "queue", f"the oldest due deletion has waited {_rounded(overdue)}" if overdue else "nothing is due",
        (overdue > LATE, "warning", "see whether workers run, the account is stopped, and the API answers"),
    )  # fmt: skip
    yield from _stops(ledger)
    letters, fact = list_dead_letters(ledger), "every message could be read"
    if letters:
        count = f"{len(letters)} messages" + (" or more" if len(letters) >= MOST_KEPT else "")
        fact = f"{count} were refused, the last one because {letters[0].reason!r}"
    yield judged("dead letters", fact, (letters, "warning", "tell their senders, `janitor dead-letters list`"))
    yield _reviews(ledger)


def _clock(ledger: Ledger) -> Finding:
    """Two clocks that are at most 5 s apart agree."""
    before = time.time()
    theirs = ledger.now_ms() / 1000
    skew = timedelta(seconds=theirs - (before + time.time()) / 2)
    where = "ahead of" if skew > timedelta(0) else "behind"
    fact = f"the clock of Redis is {_rounded(abs(skew))} {where} that of this host"
    return judged("clock", fact, (abs(skew) > SKEW, "warning", "synchronise both (NTP)"))


def _room(ledger: Ledger) -> Iterator[Finding]:
    free, least = free_memory(ledger.redis)
    if free is not None and free < least:
        fact = f"Redis is full ({max(free, 0) >> 10} KiB are left) and nothing new is accepted"
        yield Finding("full", "error", f"{fact}: give it more memory (maxmemory)")


def _beat(ledger: Ledger, now: datetime, age_seconds: float, *, late: timedelta) -> Iterator[Finding]:
    """age_seconds: since the last tick; infinite if there was none."""
    age = None if age_seconds == float("inf") else timedelta(seconds=age_seconds)
    yield judged(
        "beat", "no beat is seen" if age is None else f"the last tick of beat is {_rounded(age)} old",
        (age is None or age > late, "warning",
         "start one with `janitor beat` or `janitor up`; without it no cleanup runs"),
    )  # fmt: skip
    if age is not None:
        yield from _policies(ledger, now, late)


def _policies(ledger: Ledger, now: datetime, late: timedelta) -> Iterator[Finding]:
    """Whether each scheduled policy runs, and deletes something: its newest plan may be blocked."""
    workers = running_workers(ledger)
    for one in scheduled_policies(ledger):
        if one.plan and one.is_blocked:
            fact = f"{one.name!r} of account {one.plan.account} is blocked and deletes nothing: {one.plan.blocked}"
            when = f"{fact} ({_utc(one.plan.created_at)})"
            yield Finding("policy", "error", f"{when}: find out why, `janitor cleanup show {one.plan.id}`")
            continue
        has_key = not workers or any(worker.has("accounts", one.account) for worker in workers)
        yield judged(
            "policy", f"{one.name} ({one.schedule}): its last scheduled time was {_utc(one.last)}",
            (not has_key, "warning",
             f"no running worker has the key of account {one.account}: set {key_variable(one.account)} for a "
             "worker and restart it, or correct the policy"),
            (one.overdue(now) > late, "warning",
             f"that of {_utc(one.next_after(one.last))} did not run; a worker's log says why"),
        )  # fmt: skip


def _stops(ledger: Ledger) -> Iterator[Finding]:
    for name, stop in stopped_accounts(ledger).items():
        what = "all accounts" if name == "*" else f"account {name}"
        if stop.paused is not None:
            by_alarm = stop.paused_by == ALARM
            yield Finding("paused", "error" if by_alarm else "warning", paused(name, stop, _utc))
        if stop.parked is not None:
            why = f"{what}: the API refuses its key ({stop.parked}); correct it, a worker tries it every 30s"
            yield Finding("parked", "error", why)
        if stop.cooling is not None:
            yield Finding("cool-down", "ok", f"{what} waits, as the API asked: {stop.cooling}")


def _reviews(ledger: Ledger) -> Finding:
    """Reviews that wait for a person: neither resolved nor tried again."""
    page = list_deletions(ledger, Filter(states=(State.REVIEW,)), limit=_MOST_REVIEWS)
    opened = [one for one in page.deletions if one.needs_person]
    if not opened:
        return Finding("reviews", "ok", "no deletion waits for a person")
    one, count = opened[0], f"{len(opened)} or more" if page.cursor else len(opened)
    fact = f"deletions with an unknown outcome: {count}, the newest is of {one.finetune_id} ({one.message})"
    show = f"`janitor show {in_command(one.id)}`"
    return Finding("reviews", "error", f"{fact}: `janitor list --open-reviews`, {show}")


def _rounded(age: timedelta) -> str:
    return format_duration(timedelta(seconds=round(age.total_seconds())))


def _utc(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%d %H:%M UTC")
