"""Plans: what a policy would delete, kept with an id, and carried out exactly or not at all."""

import json
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from tasks.cleanup.gone import gone_among
from tasks.cleanup.inventory import Inventory
from tasks.cleanup.policies import Policy
from tasks.cleanup.rules import Item, blocked, too_large_a_part, unfitting
from tasks.durations import format_duration, iso
from tasks.errors import PlanRefused, UnknownPlan
from tasks.intake import Intake
from tasks.ledger import Accepted, Ledger
from tasks.ledger.queries import each, get_many
from tasks.ledger.store import BATCH
from tasks.ledger.types import Act
from tasks.records import MAX_TEXT_LENGTH, Deletion, NewRequest, Plain, State, from_ms, moment, to_ms

APPLY_WITHIN = timedelta(hours=24)
_WITHDRAWN = "withdrawn by "
CLOCKS_DIFFER = timedelta(minutes=5)  # at most: Redis's when a plan is made, and when it is applied


@dataclass(frozen=True, kw_only=True)
class Plan(Plain):
    """What a policy would do with each finetune of its account.

    policy_digest: of the policy as it was then. created_at: when its survey began. blocked: why it must not be
    applied. applied_at: when apply began. warnings: what may be mistyped in the policy.
    needs_use: whether the policy asks for use. max_percent: of the policy.
    """

    id: str
    policy: str
    policy_digest: str = ""
    account: str
    created_at: datetime
    blocked: str | None = None
    warnings: tuple[str, ...] = ()
    applied_at: datetime | None = None
    grace_seconds: float
    needs_use: bool = False
    max_percent: int = 100
    deletions: int = 0
    total: int = 0
    items: tuple[Item, ...] = ()

    @property
    def needs_a_person(self) -> bool:
        """Whether it is blocked, and not because somebody withdrew it."""
        return bool(self.blocked) and not str(self.blocked).startswith(_WITHDRAWN)

    def summary(self) -> dict[str, Any]:
        """The JSON form, without the items."""
        whole = replace(self, items=()).to_json()
        del whole["items"]
        return whole


_PLANS = TypeAdapter(Plan)


class Applied(NamedTuple):
    """What became of one item of an applied plan.

    deletion: None if there is an error. created: whether it is new. kept: why the finetune is kept, if it is.
    error: why no deletion was asked for.
    """

    finetune_id: str
    deletion: Deletion | None
    created: bool = False
    kept: str | None = None
    error: str | None = None


def make_plan(policy: Policy, inventory: Inventory, gone: Collection[str], plan_id: str) -> Plan:
    """The plan of `policy` for what was surveyed, of which `gone` is or will soon be deleted. Pure."""
    items = inventory.select(policy)
    why = blocked(
        policy, items, seen_before=inventory.seen_before, deleted_by_us=inventory.deleted_by_us, gone=gone
    )
    plan = empty_plan(policy, inventory.now, plan_id, blocked=why)
    deletions = sum(item.action == "delete" for item in items)
    warnings = unfitting(policy, inventory.seen)
    return replace(plan, items=tuple(items), total=len(items), deletions=deletions, warnings=warnings)


def empty_plan(policy: Policy, now: datetime, plan_id: str, *, blocked: str | None) -> Plan:
    """A plan without items, as for a list that could not be read."""
    return Plan(
        id=plan_id, policy=policy.name, policy_digest=policy.digest, account=policy.account, created_at=now,
        blocked=blocked, grace_seconds=policy.grace.total_seconds(), needs_use=policy.unused_for is not None,
        max_percent=policy.max_percent,
    )  # fmt: skip


def store(ledger: Ledger, plan: Plan) -> Plan:
    """Keep a plan as long as records; answers the one that is kept, the first under its id."""
    key, index, life = ledger.keys.plan(plan.id), ledger.keys.plans, ledger.terms.retention
    with ledger.redis.pipeline(transaction=True) as pipe:
        pipe.hsetnx(key, "summary", json.dumps(plan.summary()))
        pipe.hsetnx(key, "items", json.dumps(plan.to_json()["items"]))
        pipe.pexpire(key, life)
        pipe.zadd(index, {plan.id: to_ms(plan.created_at)}, nx=True)
        pipe.zremrangebyscore(index, "-inf", to_ms(plan.created_at - life))
        pipe.set(ledger.keys.newest_plan(plan.policy_digest), plan.id, px=life)
        pipe.execute()
    return get_plan(ledger, plan.id)


def get_plan(ledger: Ledger, plan_id: str) -> Plan:
    """The plan with this id; raises `UnknownPlan`."""
    stored: Any = ledger.redis.hgetall(ledger.keys.plan(plan_id))
    if not stored:
        raise UnknownPlan(f"no plan has the id {plan_id!r}: `janitor cleanup list` shows those there are")
    return _plan(stored["summary"], stored.get("applied_at"), stored["items"])


def list_plans(ledger: Ledger, *, limit: int = 50, accounts: Sequence[str] = ()) -> list[Plan]:
    """Plans, newest first, without their items. accounts: only of these; empty: of all."""
    ids: Any = ledger.redis.zrevrange(ledger.keys.plans, 0, -1 if accounts else limit - 1)
    return list(islice((one for one in _summaries(ledger, ids) if not accounts or one.account in accounts), limit))


def newest_plans(ledger: Ledger, digests: Iterable[str]) -> dict[str, Plan]:
    """The newest plan of each policy that has one, by the policy's digest, without its items."""
    ids = each(ledger, digests, lambda pipe, digest: pipe.get(ledger.keys.newest_plan(digest)))
    return {plan.policy_digest: plan for plan in _summaries(ledger, filter(None, ids))}


def _summaries(ledger: Ledger, ids: Iterable[str]) -> Iterator[Plan]:
    rows = each(ledger, ids, lambda pipe, id_: pipe.hmget(ledger.keys.plan(id_), "summary", "applied_at"))
    return (_plan(*row) for row in rows if row and row[0])


def check_plan(
    plan: Plan, now: datetime, policies: Sequence[Policy] | None = None, file: object = "the policies file"
) -> None:
    """Raise `PlanRefused` if a plan must not be applied. policies: those of now, None if nobody can tell.

    file: where they are from.
    """
    if plan.blocked:
        nothing = "nothing more" if plan.applied_at else "nothing"
        raise PlanRefused(f"plan {plan.id} is blocked, {nothing} was written: {plan.blocked}")
    if policies is not None and plan.policy_digest not in [policy.digest for policy in policies]:
        raise PlanRefused(
            f"policy {plan.policy} is not in {file} as it was when plan {plan.id} was made, nothing was written: "
            "make a new plan with `janitor cleanup plan`, or give the file that made it with --file"
        )
    age, again = now - plan.created_at, f"`janitor cleanup plan --policy {plan.policy}` makes a new one"
    if age < -CLOCKS_DIFFER:
        # Its ages are too great, and it would stay fresh for too long.
        raise PlanRefused(f"plan {plan.id} is of {iso(plan.created_at)}, and it is {iso(now)}: {again}")
    if age > APPLY_WITHIN:
        old = format_duration(timedelta(minutes=age // timedelta(minutes=1)))
        raise PlanRefused(
            f"plan {plan.id} is {old} old, and the limit is {format_duration(APPLY_WITHIN)}: {again}"
        )


def is_asked_for(ledger: Ledger, plan: Plan) -> bool:
    """Whether each of its deletions was asked for: an apply that died may have left some."""
    ids = [_request_id(plan, item.finetune_id) for item in plan.items if item.action == "delete"]
    return all(each(ledger, ids, lambda pipe, id_: pipe.exists(ledger.keys.deletion(id_))))


def apply_plan(
    ledger: Ledger, intake: Intake, plan: Plan, act: Act, policies: Sequence[Policy] | None = None
) -> list[Applied]:
    """Ask for exactly the plan's deletions, each once, however often it is applied. Raises like `check_plan`.

    What was used, protected, replaced or asked for since the plan was made is kept: its deletion is withdrawn at
    once.
    """
    check_plan(plan, from_ms(ledger.now_ms()), policies)
    if not is_asked_for(ledger, plan):
        _check_part(ledger, plan)
    requests = [_request(plan, item, act.who) for item in plan.items if item.action == "delete"]
    accepted: list[Accepted] = []
    for start in range(0, len(requests) or 1, BATCH):  # once if there is nothing to ask for
        if why := _blocked_by_now(ledger, plan):
            done = f"{start} of its {len(requests)} deletions were asked for"
            raise PlanRefused(f"plan {plan.id} was blocked meanwhile, {done}: {why}")
        # First, so that one that dies after its first part is not told as not applied.
        ledger.redis.hsetnx(ledger.keys.plan(plan.id), "applied_at", str(ledger.now_ms()))
        accepted += intake.accept(requests[start : start + BATCH], act=act)
    deletions = get_many(ledger, [request.id for request in requests])
    return [_applied(*one) for one in zip(requests, accepted, deletions, strict=True)]


def withdraw(ledger: Ledger, plan: Plan, act: Act) -> None:
    """Block the plan: no further deletion is asked for, even by an apply that runs or that is repeated."""
    if plan.blocked:
        return
    why = f"{_WITHDRAWN}{act.who}{f': {act.why}' if act.why else ''}"
    summary = json.dumps(replace(plan, blocked=why).summary())
    ledger.act("withdraw", act, ids=[plan.id], plan=(plan.id, summary))


def _blocked_by_now(ledger: Ledger, plan: Plan) -> str | None:
    summary: Any = ledger.redis.hget(ledger.keys.plan(plan.id), "summary")
    why: str | None = json.loads(summary)["blocked"]
    return why


def _check_part(ledger: Ledger, plan: Plan) -> None:
    """Plans that were made together must not delete too much together."""
    ids = [item.finetune_id for item in plan.items]
    gone = gone_among(ledger, plan.account, ids, plan.created_at)
    if why := too_large_a_part(plan.items, gone, plan.max_percent):
        raise PlanRefused(f"plan {plan.id} is refused: {why}")


def _request_id(plan: Plan, finetune_id: str) -> str:
    return str(uuid.uuid5(uuid.UUID(plan.id), finetune_id))


def _request(plan: Plan, item: Item, requested_by: str | None) -> NewRequest:
    source = f"cleanup:{plan.id}"
    return NewRequest(
        id=_request_id(plan, item.finetune_id),
        finetune_id=item.finetune_id, account=plan.account, source=source, requested_by=requested_by,
        reason=f"{plan.policy}: {item.reason}"[:MAX_TEXT_LENGTH],
        delay=timedelta(seconds=plan.grace_seconds), requested_at=plan.created_at,
        incarnation=json.dumps(item.incarnation, separators=(",", ":"), sort_keys=True),
        observed_at=item.observed_at, vantage=item.vantage,
        known_use=to_ms(item.last_used) if item.last_used else 0, needs_use=plan.needs_use,
        # Not `requested_by`: the same plan applied by another person is the same request.
        digest=f"{source} {plan.account} {item.finetune_id}",
    )  # fmt: skip


def _applied(request: NewRequest, accepted: Accepted, deletion: Deletion | None) -> Applied:
    if accepted.answer == "conflict":
        error = f"the request id {request.id} belongs to another request: make a new plan"
        return Applied(request.finetune_id, None, error=error)
    if deletion is None:
        return Applied(request.finetune_id, None, error=f"the record {request.id} is missing or cannot be read")
    return Applied(request.finetune_id, deletion, created=accepted.answer == "accepted", kept=_kept(deletion))


def _kept(deletion: Deletion) -> str | None:
    by_cleanup = deletion.cancelled_by == "cleanup" or (deletion.message or "").startswith("kept: ")
    if deletion.state == State.CANCELLED:
        return deletion.message if by_cleanup else None
    if by_cleanup and not deletion.is_final:
        return "if the call under way has not deleted it; an observation will show"
    return None


def _plan(summary: str, applied_at: str | None, items: str = "[]") -> Plan:
    stored = {**json.loads(summary), "items": json.loads(items), "applied_at": moment(applied_at)}
    return _PLANS.validate_python(stored)
