"""Scheduled cleanups. The ledger decides what is due, however many beats and workers there are."""

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from threading import Lock
from typing import Any

import structlog
from cronsim import CronSim

from tasks.api.errors import Reshaped
from tasks.cleanup.gone import gone_among
from tasks.cleanup.inventory import Inventory
from tasks.cleanup.plans import APPLY_WITHIN, Plan, apply_plan, empty_plan, make_plan, store
from tasks.cleanup.policies import Policy
from tasks.cleanup.survey import Advance, Surveyor, no_progress
from tasks.errors import InvalidRequest, JanitorError, PlanRefused
from tasks.intake import Intake
from tasks.ledger.types import Act
from tasks.records import from_ms, to_ms

log = structlog.get_logger()

Read = Callable[[], Sequence[Policy]]
_RUN_FOR = timedelta(minutes=10)  # a run whose process died is started again after this
_PLANS = uuid.UUID("a1c2f9a4-7d0c-4c6e-9d36-3a2f0e6b7c11")


@dataclass(frozen=True)
class Cleaner(Surveyor):
    """Surveys accounts, makes plans and applies them."""

    intake: Intake = field(kw_only=True)
    _ticking: Lock = field(default_factory=Lock, init=False)

    def plan(
        self, policy: Policy, plan_id: str | None = None, advance: Advance = no_progress,
        tell: Callable[[Inventory], object] = lambda _: None,
    ) -> Plan:  # fmt: skip
        """Make a plan and keep it; a list that cannot be relied on makes a blocked one. Raises like `survey`.

        tell: is told what was surveyed, of which the plan does not keep all.
        """
        plan_id = plan_id or str(uuid.uuid4())
        try:
            inventory = self.survey(policy.account, [policy], advance)
            tell(inventory)
            gone = gone_among(self.ledger, policy.account, inventory.seen, inventory.now)
            plan = make_plan(policy, inventory, gone, plan_id)
        except Reshaped as error:
            plan = empty_plan(policy, from_ms(self.ledger.now_ms()), plan_id, blocked=str(error))
        return store(self.ledger, plan)

    def tick(self, read: Read | None) -> None:
        """Run each policy that is due and whose key is here, once; one that fails is tried again at the next.

        read: the policies as they are when it is called; a plan is applied only if its policy is then among them.
        None if this process has no policies file: it says nothing of them.
        """
        self.ledger.redis.set(self.ledger.keys.tick, self.ledger.now_ms())
        if read is None:
            return
        try:
            policies = read()
        except InvalidRequest as error:
            log.error("cleanup.policies_refused", error=str(error))
            policies = ()
        self._forget_absent(policies)
        # Surveys take as long as accounts are large. More than one at a time would fill the slots of this process.
        if self._ticking.acquire(blocking=False):
            try:
                self._run_due(policies, read)
            finally:
                self._ticking.release()

    def _run_due(self, policies: Sequence[Policy], read: Read) -> None:
        for policy in policies:
            try:
                self._take_turn(policy, read)
            except JanitorError as error:
                log.warning("cleanup.failed", policy=policy.name, account=policy.account, error=str(error))
            except Exception:  # the next ones must not wait for this one
                log.exception("cleanup.failed", policy=policy.name, account=policy.account)

    def _forget_absent(self, policies: Sequence[Policy]) -> None:
        """A policy that is not scheduled now, or whose file was refused, is a new one when it comes back.

        Else the run that it missed meanwhile would delete at once.
        """
        runs, redis = self.ledger.keys.policy_runs, self.ledger.redis
        scheduled = {policy.name for policy in policies if policy.schedule}
        absent = sorted(set(map(str, redis.hkeys(runs))) - scheduled)
        if absent:
            redis.hdel(runs, *absent)
            log.warning("cleanup.policies_absent", policies=absent)

    def _run(self, policy: Policy, window: datetime, now: datetime, read: Read) -> None:
        # Started again after a crash, it is the same plan and the same requests, unless the policy was edited
        # meanwhile or the plan is too old to be applied.
        run = f"{policy} {window.isoformat()} {(now - window) // APPLY_WITHIN}"
        plan = self.plan(policy, str(uuid.uuid5(_PLANS, run)))
        (log.warning if plan.blocked or plan.warnings else log.info)(
            "cleanup.planned", policy=policy.name, account=policy.account, plan=plan.id, window=window.isoformat(),
            deletions=plan.deletions, total=plan.total, blocked=plan.blocked, warnings=plan.warnings,
        )  # fmt: skip
        if policy.mode == "apply" and not plan.blocked:
            try:
                applied = apply_plan(self.ledger, self.intake, plan, Act("schedule", "janitor"), read())
            except PlanRefused as error:  # and it would be, each minute
                log.warning("cleanup.refused", policy=policy.name, account=policy.account, error=str(error))
                return
            kept = sum(one.kept is not None for one in applied)
            errors = [one.error for one in applied if one.error]
            done = len(applied) - kept - len(errors)
            log.info("cleanup.applied", policy=policy.name, plan=plan.id, deletions=done, kept=kept, errors=errors)

    def _take_turn(self, policy: Policy, read: Read) -> None:
        """Make the run that is due, unless another process is at it. It is noted as made if all went well."""
        keys, redis = self.ledger.keys, self.ledger.redis
        lease, ours = keys.policy_lease(policy.name), uuid.uuid4().hex
        if policy.schedule is None or not redis.set(lease, ours, nx=True, px=_RUN_FOR):
            return
        try:
            now = from_ms(self.ledger.now_ms())
            window = last_window(policy.schedule, now)
            # Without its key the run is left to others. Until one makes it, it is overdue.
            if self._is_due(policy, window) and policy.account in self.readers:
                before = redis.hget(keys.policy_runs, policy.name)
                self._run(policy, window, now, read)
                # If it stood still for longer than its lease, another process may have made a later run.
                if redis.hget(keys.policy_runs, policy.name) == before:
                    redis.hset(keys.policy_runs, policy.name, noted(policy, window))
        finally:
            if redis.get(lease) == ours:
                redis.delete(lease)

    def _is_due(self, policy: Policy, window: datetime) -> bool:
        """Whether the run of this window is still to be made.

        A new or edited policy has no missed runs: its first run is at its next scheduled time. Otherwise an edit
        to a time earlier today, or a file that is half written, would delete at once. The same holds for one whose
        last run is in the future: Redis's clock was wrong then.
        """
        runs, redis, note = self.ledger.keys.policy_runs, self.ledger.redis, noted(policy, window)
        before: Any = redis.hget(runs, policy.name)
        last_ms, _, rule = (before or "0").partition(" ")
        is_same = rule == note.partition(" ")[2]
        if is_same and int(last_ms) <= to_ms(window):
            return int(last_ms) < to_ms(window)
        redis.hset(runs, policy.name, note)
        if before:
            event = "cleanup.clock_stepped" if is_same else "cleanup.policy_changed"
            log.warning(event, policy=policy.name, account=policy.account, before=before, now=note)
        return False


def noted(policy: Policy, window: datetime) -> str:
    """What is kept of the last run: when it was due, and of which policy."""
    return f"{to_ms(window)} {policy.schedule} {policy.digest} {policy.account}"


def last_window(schedule: str, now: datetime) -> datetime:
    """The last time at or before `now` that a cron schedule names, in UTC."""
    return next(CronSim(schedule, now.replace(microsecond=0) + timedelta(seconds=1), reverse=True))
