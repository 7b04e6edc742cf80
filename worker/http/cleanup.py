"""Cleanups: reports of use, protection, and plans."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from tasks.cleanup import inventory
from tasks.cleanup.plans import Plan, apply_plan, get_plan, list_plans
from tasks.errors import UnknownPlan
from tasks.records import DEFAULT_ACCOUNT, Deletion
from worker.http.deletions import Enqueuer, Here, Reader
from worker.http.guard import check_accounts, needs
from worker.http.models import Moment
from worker.http.problems import documented
from worker.http.tokens import Token

Admin = Annotated[Token, Depends(needs("admin"))]
router = APIRouter(prefix="/v1", tags=["cleanup"], responses=documented(401, 403, 404, 422, 503))


class Where(BaseModel):
    """The account that has the finetune."""

    model_config = ConfigDict(extra="forbid")

    account: str = DEFAULT_ACCOUNT


class Protection(Where):
    """The account that has the finetune, and how long it is protected."""

    until: Moment | None = Field(None, description="for good if it is not given")


class Withdrawn(BaseModel):
    """The ids of cleanup deletions that are withdrawn by this."""

    withdrawn: list[str]


class Plans(BaseModel):
    """Newest first, without their items."""

    plans: list[Plan]


class AppliedItem(BaseModel):
    """What became of one item of a plan.

    kept: why the finetune is kept, if it is. error: why no deletion was asked for; then there is no record.
    """

    finetune_id: str
    created: bool
    kept: str | None
    error: str | None
    deletion: Deletion | None


class AppliedPlan(BaseModel):
    """What became of a plan's deletions."""

    deletions: list[AppliedItem]


@router.post("/finetunes/{finetune_id:path}/touch", operation_id="touchFinetune", response_model=Withdrawn)
def touch(finetune_id: str, office: Here, caller: Enqueuer, where: Annotated[Where, Query()]) -> JSONResponse:
    """Report that a finetune is used, now."""
    check_accounts(caller, [where.account])
    return JSONResponse({"withdrawn": inventory.touch(office.ledger, where.account, [finetune_id])})


@router.post("/finetunes/{finetune_id:path}/protect", operation_id="protectFinetune", response_model=Withdrawn)
def protect(finetune_id: str, office: Here, caller: Admin, where: Annotated[Protection, Query()]) -> JSONResponse:
    """Keep a finetune from every cleanup."""
    check_accounts(caller, [where.account])
    withdrawn = inventory.protect(office.ledger, where.account, [finetune_id], where.until)
    return JSONResponse({"withdrawn": withdrawn})


@router.post("/finetunes/{finetune_id:path}/unprotect", operation_id="unprotectFinetune", response_model=Withdrawn)
def unprotect(finetune_id: str, office: Here, caller: Admin, where: Annotated[Where, Query()]) -> JSONResponse:
    """Allow cleanups to delete it again."""
    check_accounts(caller, [where.account])
    inventory.unprotect(office.ledger, where.account, [finetune_id])
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
    """Ask for exactly the plan's deletions, each bound to what the plan saw. Repeating it is harmless.

    409 if the plan is blocked, or older than 24 hours.
    """
    plan = _visible(office, plan_id, caller)
    applied = apply_plan(office.ledger, office.intake, plan, requested_by=caller.name)
    items = [one._asdict() | {"deletion": one.deletion.to_json() if one.deletion else None} for one in applied]
    return JSONResponse({"deletions": items}, 202 if any(one.created for one in applied) else 200)


def _visible(office: Here, plan_id: str, caller: Token) -> Plan:
    plan = get_plan(office.ledger, plan_id)
    if not caller.may_use(plan.account):
        raise UnknownPlan(f"no plan has the id {plan_id!r}")
    return plan
