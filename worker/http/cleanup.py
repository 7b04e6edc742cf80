"""What is kept from cleanups, and their plans: reported, listed, applied."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from tasks import inventory
from tasks.errors import UnknownPlan
from tasks.plans import Plan, apply_plan, get_plan, list_plans
from tasks.records import DEFAULT_ACCOUNT, Deletion
from worker.http.deletions import Enqueuer, Here, Reader
from worker.http.guard import check_accounts, needs
from worker.http.models import Moment
from worker.http.problems import documented
from worker.http.tokens import Token

Admin = Annotated[Token, Depends(needs("admin"))]
router = APIRouter(prefix="/v1", tags=["cleanup"], responses=documented(401, 403, 404, 422, 503))


class Whose(BaseModel):
    """Whose finetune it is."""

    model_config = ConfigDict(extra="forbid")

    account: str = DEFAULT_ACCOUNT


class Protection(Whose):
    """Whose finetune it is, and how long it is protected."""

    until: Moment | None = Field(None, description="for good where it is not given")


class Withdrawn(BaseModel):
    """The deletions from which a cleanup's request was withdrawn at once."""

    withdrawn: list[str]


class Plans(BaseModel):
    """Newest first, without their items."""

    plans: list[Plan]


class AppliedItem(BaseModel):
    """What became of one deletion of a plan. kept: why the finetune is kept, where it is."""

    created: bool
    kept: str | None
    deletion: Deletion


class AppliedPlan(BaseModel):
    """What became of a plan's deletions."""

    deletions: list[AppliedItem]


@router.post("/finetunes/{finetune_id:path}/touch", operation_id="touchFinetune", response_model=Withdrawn)
def touch(finetune_id: str, office: Here, caller: Enqueuer, whose: Annotated[Whose, Query()]) -> JSONResponse:
    """Report that a finetune is used, now."""
    check_accounts(caller, [whose.account])
    return JSONResponse({"withdrawn": inventory.touch(office.ledger, whose.account, [finetune_id])})


@router.post("/finetunes/{finetune_id:path}/protect", operation_id="protectFinetune", response_model=Withdrawn)
def protect(finetune_id: str, office: Here, caller: Admin, whose: Annotated[Protection, Query()]) -> JSONResponse:
    """Keep a finetune from every cleanup."""
    check_accounts(caller, [whose.account])
    kept = inventory.protect(office.ledger, whose.account, [finetune_id], whose.until)
    return JSONResponse({"withdrawn": kept})


@router.post("/finetunes/{finetune_id:path}/unprotect", operation_id="unprotectFinetune", response_model=Withdrawn)
def unprotect(finetune_id: str, office: Here, caller: Admin, whose: Annotated[Whose, Query()]) -> JSONResponse:
    """Let cleanups have it again."""
    check_accounts(caller, [whose.account])
    inventory.unprotect(office.ledger, whose.account, [finetune_id])
    return JSONResponse({"withdrawn": []})


@router.get("/plans", operation_id="listPlans", response_model=Plans)
def plans(office: Here, caller: Reader, limit: Annotated[int, Query(ge=1, le=500)] = 50) -> JSONResponse:
    """List the latest plans, newest first; those of accounts that the token may not see are left out."""
    found = [plan.summary() for plan in list_plans(office.ledger, limit=limit) if caller.may_use(plan.account)]
    return JSONResponse({"plans": found})


@router.get("/plans/{plan_id}", operation_id="showPlan", response_model=Plan)
def show(plan_id: str, office: Here, caller: Reader) -> JSONResponse:
    """A plan with every finetune of its account."""
    return JSONResponse(_visible(office, plan_id, caller).to_json())


@router.post(
    "/plans/{plan_id}/apply",
    operation_id="applyPlan",
    status_code=202,
    response_model=AppliedPlan,
    responses=documented(409) | {200: {"model": AppliedPlan, "description": "Nothing new: it was applied before"}},
)
def apply(plan_id: str, office: Here, caller: Admin) -> JSONResponse:
    """Ask for just the plan's deletions, each guarded by its fingerprint; twice applied is once applied.

    409 where it is blocked, or older than 24 hours.
    """
    plan = _visible(office, plan_id, caller)
    applied = apply_plan(office.ledger, office.intake, plan, requested_by=caller.name)
    items: list[dict[str, Any]] = [
        {"created": one.created, "kept": one.kept, "deletion": one.deletion.to_json()} for one in applied
    ]
    return JSONResponse({"deletions": items}, 202 if any(one.created for one in applied) else 200)


def _visible(office: Here, plan_id: str, caller: Token) -> Plan:
    plan = get_plan(office.ledger, plan_id)
    if not caller.may_use(plan.account):
        raise UnknownPlan(f"no plan has the id {plan_id!r}")
    return plan
