"""The state of the whole system at one moment: what needs a person first, then what happens.

`janitor status` and HTTP show the same. What needs a person is what `janitor doctor` finds in the ledger.
"""

from collections import Counter
from datetime import datetime, timedelta

from pydantic import BaseModel

from tasks.durations import iso
from tasks.ledger import Ledger
from tasks.ledger.holds import holds
from tasks.ledger.queries import Stop, each, stopped_accounts
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.statistics import Statistics, statistics
from tasks.records import State, from_ms, to_ms
from tasks.waiting import running_workers
from worker.doctor.ledger import check_ledger
from worker.doctor.policies import scheduled_policies
from worker.doctor.retries import Retries, retries
from worker.doctor.server import Finding, check_server

_HOUR = timedelta(hours=1)
_MOST_ENDED = 500  # of the last hour, whose states are read


class LastHour(BaseModel):
    """Deletions accepted, and ended, in the last hour. by_state: of the last 500 that ended."""

    accepted: int
    ended: int
    by_state: dict[str, int]


class NextCleanup(BaseModel):
    """When a scheduled policy runs next. blocked: whether its last plan was, and so deleted nothing."""

    policy: str
    at: str
    blocked: bool


class Status(BaseModel):
    """The system at one moment. states: how many deletions are in each. stopped: account, or *, and why.

    held: how many finetunes of an account are held; accounts without any are left out. oldest_due_seconds: since
    the time that was asked for, retries included; 0 if nothing is due.
    """

    at: str
    needs: list[Finding]
    states: dict[str, int]
    retrying: list[Retries]
    stopped: dict[str, str]
    held: dict[str, int]
    last_hour: LastHour
    oldest_due_seconds: float
    cleanups: list[NextCleanup]
    workers: list[str]


def status(ledger: Ledger, tick_every: timedelta) -> Status:
    """Read all of it; the work grows with the number of holds, not of records. Raises `LedgerUnavailable`.

    tick_every: of beat.
    """
    found, now = statistics(ledger), from_ms(ledger.now_ms())
    tried_again = retries(ledger, found.accounts)
    with unavailable():
        findings = [one for one in check_server(ledger.client) if one.level == "error"]
    findings += [one for one in check_ledger(ledger, tick_every, found, tried_again) if one.level != "ok"]
    # If beat never ran, none is meant to run.
    needs = [one for one in findings if one.check != "beat" or found.beat_age_seconds < float("inf")]
    # That something is late follows from the others, if there are any.
    needs = [one for one in needs if one.check != "queue" or len(needs) == 1]
    states: Counter[str] = Counter()
    for account in found.accounts.values():
        states.update(account.states)
    return Status(
        at=str(iso(now)),
        needs=sorted(needs, key=lambda one: one.level != "error"),
        states={state: states[state] for state in State},
        retrying=tried_again,
        stopped={name: _stopped(stop) for name, stop in stopped_accounts(ledger).items()},
        held={name: held for name in found.accounts if (held := len(holds(ledger, name)))},
        last_hour=_last_hour(ledger, found, now),
        oldest_due_seconds=max(one.oldest_due_seconds for one in found.accounts.values()),
        cleanups=_next_cleanups(ledger, now),
        workers=[f"{one.name} {one.version}" for one in running_workers(ledger)],
    )  # fmt: skip


def _stopped(stop: Stop) -> str:
    words = zip(("paused", "parked", "cooling down"), stop[:3], strict=True)
    return ", ".join(f"{word} ({why})" for word, why in words if why is not None)


def _last_hour(ledger: Ledger, found: Statistics, now: datetime) -> LastHour:
    keys, since = ledger.keys, to_ms(now - _HOUR)
    lists = [keys.finished, *(keys.index(account, state) for account in found.accounts for state in State)]
    ended, *accepted = each(ledger, lists, lambda pipe, key: pipe.zcount(key, since, "+inf"))
    ((*ids,),) = each(
        ledger, [keys.finished],
        lambda pipe, key: pipe.zrevrangebyscore(key, "+inf", since, 0, _MOST_ENDED),
    )  # fmt: skip
    by_state = Counter(filter(None, each(ledger, ids, lambda pipe, id_: pipe.hget(keys.deletion(id_), "state"))))
    return LastHour(accepted=sum(accepted), ended=ended, by_state=dict(by_state.most_common()))


def _next_cleanups(ledger: Ledger, now: datetime) -> list[NextCleanup]:
    rows = sorted((one.next_after(now), one.name, one.is_blocked) for one in scheduled_policies(ledger))
    return [NextCleanup(policy=name, at=str(iso(at)), blocked=is_blocked) for at, name, is_blocked in rows]
