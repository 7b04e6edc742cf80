"""Plans: what a policy would delete, kept with an id, and carried out exactly or not at all."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from pydantic import TypeAdapter

from tasks.cleanup import Item, blocked
from tasks.durations import format_duration
from tasks.errors import PlanRefused, UnknownPlan
from tasks.intake import Intake
from tasks.inventory import Inventory
from tasks.ledger import Ledger
from tasks.policies import Policy
from tasks.queries import each, get_many
from tasks.records import MAX_TEXT_LENGTH, Deletion, NewRequest, Plain, State, from_ms, moment, to_ms
from tasks.redis_errors import unavailable

APPLY_WITHIN = timedelta(hours=24)


@dataclass(frozen=True, kw_only=True)
class Plan(Plain):
    """What a policy would do with each finetune of its account. blocked: why it must not be applied."""

    id: str
    policy: str
    account: str
    created_at: datetime
    blocked: str | None = None
    applied_at: datetime | None = None
    grace_seconds: float
    deletions: int = 0
    total: int = 0
    items: tuple[Item, ...] = ()

    def summary(self) -> dict[str, Any]:
        """The JSON form, without the items."""
        whole = replace(self, items=()).to_json()
        del whole["items"]
        return whole


_PLANS = TypeAdapter(Plan)


class Applied(NamedTuple):
    """What became of one item: the deletion, whether it is new, and why the finetune is kept, if it is."""

    deletion: Deletion
    created: bool
    kept: str | None


def make_plan(policy: Policy, inventory: Inventory, plan_id: str) -> Plan:
    """The plan of `policy` for what was surveyed. Pure."""
    items = inventory.select(policy)
    why = blocked(policy, items, seen_before=inventory.seen_before, deleted_by_us=inventory.deleted_by_us)
    plan = empty_plan(policy, inventory.now, plan_id, blocked=why)
    deletions = sum(item.action == "delete" for item in items)
    return replace(plan, items=tuple(items), total=len(items), deletions=deletions)


def empty_plan(policy: Policy, now: datetime, plan_id: str, *, blocked: str | None) -> Plan:
    """A plan without items, as for a list that could not be read."""
    return Plan(
        id=plan_id, policy=policy.name, account=policy.account, created_at=now, blocked=blocked,
        grace_seconds=policy.grace.total_seconds(),
    )  # fmt: skip


def store(ledger: Ledger, plan: Plan) -> Plan:
    """Keep a plan as long as records; answers the one that is kept, the first under its id."""
    key, index, life = f"{ledger.prefix}plan:{plan.id}", f"{ledger.prefix}plans", ledger.terms.retention
    with unavailable(), ledger.redis.pipeline(transaction=True) as pipe:
        pipe.hsetnx(key, "summary", json.dumps(plan.summary()))
        pipe.hsetnx(key, "items", json.dumps(plan.to_json()["items"]))
        pipe.pexpire(key, life)
        pipe.zadd(index, {plan.id: to_ms(plan.created_at)}, nx=True)
        pipe.zremrangebyscore(index, "-inf", to_ms(plan.created_at - life))
        pipe.execute()
    return get_plan(ledger, plan.id)


def get_plan(ledger: Ledger, plan_id: str) -> Plan:
    """The plan with this id; raises `UnknownPlan`."""
    with unavailable():
        stored: Any = ledger.redis.hgetall(f"{ledger.prefix}plan:{plan_id}")
    if not stored:
        raise UnknownPlan(f"no plan has the id {plan_id!r}: `janitor cleanup list` shows those there are")
    return _plan(stored["summary"], stored.get("applied_at"), stored["items"])


def list_plans(ledger: Ledger, *, limit: int = 50) -> list[Plan]:
    """Plans, newest first, without their items."""
    with unavailable():
        ids: Any = ledger.redis.zrevrange(f"{ledger.prefix}plans", 0, limit - 1)
    rows = each(ledger, ids, lambda pipe, id_: pipe.hmget(f"{ledger.prefix}plan:{id_}", "summary", "applied_at"))
    return [_plan(*row) for row in rows if row[0]]


def apply_plan(ledger: Ledger, intake: Intake, plan: Plan, *, requested_by: str | None) -> list[Applied]:
    """Ask for just the plan's deletions, each once, however often it is applied. Raises `PlanRefused`.

    What was used, protected or replaced since the plan was made is kept: its request is withdrawn at once.
    """
    if plan.blocked:
        raise PlanRefused(f"plan {plan.id} is blocked, nothing was written: {plan.blocked}")
    age = from_ms(ledger.now_ms()) - plan.created_at
    if age > APPLY_WITHIN:
        old = format_duration(timedelta(minutes=age // timedelta(minutes=1)))
        raise PlanRefused(
            f"plan {plan.id} is {old} old, and the limit is {format_duration(APPLY_WITHIN)}: "
            f"`janitor cleanup plan --policy {plan.policy}` makes a new one"
        )
    requests = [_request(plan, item, requested_by) for item in plan.items if item.action == "delete"]
    accepted = intake.accept(requests) if requests else []
    with unavailable():
        ledger.redis.hsetnx(f"{ledger.prefix}plan:{plan.id}", "applied_at", str(ledger.now_ms()))
    deletions = get_many(ledger, [request.id for request in requests])
    return [
        Applied(deletion, answer.created, _kept(deletion, request.id))
        for request, answer, deletion in zip(requests, accepted, deletions, strict=True)
        if deletion
    ]


def _request(plan: Plan, item: Item, requested_by: str | None) -> NewRequest:
    return NewRequest(
        id=str(uuid.uuid5(uuid.UUID(plan.id), item.finetune_id)),
        finetune_id=item.finetune_id,
        account=plan.account,
        source=f"cleanup:{plan.id}",
        requested_by=requested_by,
        reason=f"{plan.policy}: {item.reason}"[:MAX_TEXT_LENGTH],
        delay=timedelta(seconds=plan.grace_seconds),
        requested_at=plan.created_at,
        fingerprint=item.fingerprint,
        bulk=True,
    )


def _kept(deletion: Deletion, request_id: str) -> str | None:
    request = deletion.request(request_id)
    if request is None or request.withdrawn_at is None or deletion.state is State.DELETED:
        return None
    if deletion.state.is_final:
        return deletion.message
    if deletion.cancel_requested_at:
        return "if the call under way has not deleted it; a look will show"
    return "kept from the cleanup; another request goes on"


def _plan(summary: str, applied_at: str | None, items: str = "[]") -> Plan:
    stored = {**json.loads(summary), "items": json.loads(items), "applied_at": moment(applied_at)}
    return _PLANS.validate_python(stored)
