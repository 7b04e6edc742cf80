"""Scheduled cleanups: what is due is decided in the ledger, however many beats and workers there are."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
from cronsim import CronSim

from tasks.bfl import BflReader
from tasks.errors import JanitorError, Reshaped
from tasks.intake import Intake
from tasks.inventory import Inventory
from tasks.ledger import Ledger
from tasks.plans import APPLY_WITHIN, Applied, Plan, apply_plan, empty_plan, make_plan, store
from tasks.policies import Policy
from tasks.records import check_account, from_ms, to_ms
from tasks.redis_errors import unavailable
from tasks.survey import Advance, Surveyor, unwatched

log = structlog.get_logger()

_RUN_FOR = timedelta(minutes=10)  # a run that was lost in the middle is begun anew after this
_PLANS = uuid.UUID("a1c2f9a4-7d0c-4c6e-9d36-3a2f0e6b7c11")


@dataclass(frozen=True)
class Cleaner:
    """Makes plans and applies them. readers: clients without a delete method, by account.

    max_concurrent, retry_budget, sleep: see `tasks.survey.Surveyor`.
    """

    ledger: Ledger
    intake: Intake
    readers: Mapping[str, BflReader]
    max_concurrent: int
    retry_budget: timedelta
    sleep: Callable[[float], None]

    def survey(self, account: str, policies: Sequence[Policy], advance: Advance = unwatched) -> Inventory:
        """What the account has now. Raises `InvalidRequest` where there is no key for it, `ApiError`."""
        check_account(account, self.readers)
        waits = (self.max_concurrent, self.retry_budget, self.sleep)
        return Surveyor(self.readers[account], self.ledger, account, *waits, advance).survey(policies)

    def plan(self, policy: Policy, plan_id: str | None = None, advance: Advance = unwatched) -> Plan:
        """Make a plan and keep it; a list that cannot be read makes a blocked one. Raises like `survey`."""
        plan_id = plan_id or str(uuid.uuid4())
        try:
            plan = make_plan(policy, self.survey(policy.account, [policy], advance), plan_id)
        except Reshaped as error:
            plan = empty_plan(policy, from_ms(self.ledger.now_ms()), plan_id, blocked=str(error))
        return store(self.ledger, plan)

    def apply(self, plan: Plan, requested_by: str | None = None) -> list[Applied]:
        """Carry out a plan; raises `PlanRefused`."""
        return apply_plan(self.ledger, self.intake, plan, requested_by=requested_by)

    def tick(self, policies: Sequence[Policy]) -> None:
        """Run each policy whose time has come and whose key is here, once; one that fails is tried again."""
        now = from_ms(self.ledger.now_ms())
        with unavailable():
            self.ledger.redis.set(f"{self.ledger.prefix}tick", to_ms(now))
        for policy in policies:
            if policy.schedule is None or policy.account not in self.readers:
                continue
            window = last_window(policy.schedule, now)
            try:
                with self._turn(policy, window) as ours:
                    if ours:
                        self._run(policy, window, now)
            except JanitorError as error:
                log.warning("cleanup.failed", policy=policy.name, account=policy.account, error=str(error))

    def _run(self, policy: Policy, window: datetime, now: datetime) -> None:
        # Begun again after a crash, it is the same plan and the same requests; but not where the policy was edited
        # meanwhile, or the plan is too old to be applied.
        run = f"{policy} {window.isoformat()} {(now - window) // APPLY_WITHIN}"
        plan = self.plan(policy, str(uuid.uuid5(_PLANS, run)))
        log.info(
            "cleanup.planned", policy=policy.name, account=policy.account, plan=plan.id, window=window.isoformat(),
            deletions=plan.deletions, total=plan.total, blocked=plan.blocked,
        )  # fmt: skip
        if policy.mode == "apply" and not plan.blocked:
            applied = self.apply(plan, requested_by="schedule")
            kept = sum(one.kept is not None for one in applied)
            log.info("cleanup.applied", policy=policy.name, plan=plan.id, deletions=len(applied) - kept, kept=kept)

    @contextmanager
    def _turn(self, policy: Policy, window: datetime) -> Iterator[bool]:
        """Whether this run is ours and was not made before; noted as made if all went well.

        A policy that is new has no past: its first run is the next one.
        """
        runs, redis = f"{self.ledger.prefix}policy-runs", self.ledger.redis
        lease = f"{self.ledger.prefix}policy-lease:{policy.name}"
        with unavailable():
            redis.hsetnx(runs, policy.name, str(to_ms(window)))
            due = int(redis.hget(runs, policy.name) or 0) < to_ms(window)
            held = due and redis.set(lease, "1", nx=True, px=_RUN_FOR)
            # It may have been made between these two questions.
            ours = bool(held) and int(redis.hget(runs, policy.name) or 0) < to_ms(window)
        try:
            yield ours
            if ours:
                with unavailable():
                    redis.hset(runs, policy.name, str(to_ms(window)))
        finally:
            if held:
                with unavailable():
                    redis.delete(lease)


def last_window(schedule: str, now: datetime) -> datetime:
    """The last time at or before `now` that a cron schedule names, in UTC."""
    return next(CronSim(schedule, now.replace(microsecond=0) + timedelta(seconds=1), reverse=True))
