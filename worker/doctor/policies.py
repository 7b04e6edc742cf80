"""What is known of each scheduled cleanup: its last and next time, and its newest plan."""

from datetime import datetime, timedelta
from typing import Any, NamedTuple

from cronsim import CronSim

from tasks.cleanup.plans import Plan, newest_plans
from tasks.ledger import Ledger
from tasks.records import DEFAULT_ACCOUNT, from_ms


class ScheduledPolicy(NamedTuple):
    """A policy that beat knows. last: the last scheduled time that was carried out.

    plan: its newest one, made by the policy as it is now; a plan of another file or of before an edit is none.
    """

    name: str
    account: str
    schedule: str
    last: datetime
    plan: Plan | None

    @property
    def is_blocked(self) -> bool:
        """Whether its newest plan is, other than by a person who withdrew it."""
        return bool(self.plan and self.plan.needs_a_person)

    def next_after(self, moment: datetime) -> datetime:
        """The first scheduled time after a moment."""
        return next(CronSim(self.schedule, moment))

    def overdue(self, now: datetime) -> timedelta:
        """How long ago a run was due that was not made; 0 if none is owed."""
        return max(now - self.next_after(self.last), timedelta(0))


def scheduled_policies(ledger: Ledger) -> list[ScheduledPolicy]:
    """All of them, by name. Raises `LedgerUnavailable`."""
    runs: Any = ledger.redis.hgetall(ledger.keys.policy_runs)
    notes = {name: _read(run) for name, run in sorted(runs.items())}
    newest = newest_plans(ledger, [digest for _, _, digest, _ in notes.values()])
    return [
        ScheduledPolicy(name, account, schedule, from_ms(at), newest.get(digest))
        for name, (at, schedule, digest, account) in notes.items()
    ]


def _read(run: str) -> tuple[str, str, str, str]:
    """What `tasks.cleanup.schedule.noted` wrote: its time, schedule (five fields), digest and account."""
    at, *words = run.split()
    digest, account = [*words[5:], "", DEFAULT_ACCOUNT][:2]  # an older worker notes neither
    return at, " ".join(words[:5]), digest, account
