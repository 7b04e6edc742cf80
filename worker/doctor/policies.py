"""What is known of each scheduled cleanup: its last and next time, and its newest plan."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from cronsim import CronSim

from tasks.cleanup.plans import Plan, list_plans
from tasks.ledger import Ledger
from tasks.records import DEFAULT_ACCOUNT, from_ms

_MOST_PLANS = 200  # of the newest are read


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
        """Whether its newest plan is, and nobody has looked at it yet."""
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
    newest = {plan.policy_digest: plan for plan in reversed(list_plans(ledger, limit=_MOST_PLANS) if runs else [])}
    return [_read(name, run, newest) for name, run in sorted(runs.items())]


def _read(name: str, run: str, newest: Mapping[str, Plan]) -> ScheduledPolicy:
    """What `tasks.cleanup.schedule.noted` wrote; its schedule has five fields. newest: by the policy's digest."""
    at, *words = run.split()
    digest, account = [*words[5:], "", DEFAULT_ACCOUNT][:2]  # an older worker notes neither
    return ScheduledPolicy(name, account, " ".join(words[:5]), from_ms(at), newest.get(digest))
