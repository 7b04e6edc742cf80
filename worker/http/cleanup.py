"""Cleanups: reports of use, protection, and plans."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import JSONResponse

from tasks.cleanup import inventory, plans
from tasks.cleanup.plans import Plan
from tasks.cleanup.policies import read_policies
from tasks.errors import UnknownPlan
from tasks.intake import Intake
from tasks.ledger import holds
from tasks.ledger.holds import Hold
from tasks.ledger.types import Act, Withdrawn
from tasks.records import DEFAULT_ACCOUNT, Deletion
from worker.http.deletions import TheIntake
from worker.http.guard import Admin, Enqueuer, Reader, check_account
from worker.http.models import Line, Moment, Why
from worker.http.problems import documented
from worker.http.strict import no_body
from worker.http.tokens import Token

router = APIRouter(
    prefix="/v1", tags=["cleanup"], responses=documented(401, 403, 422, 429, 503),
    dependencies=[Depends(no_body)],
)  # fmt: skip


class Where(BaseModel):
    """The account that has the finetune."""

    model_config = ConfigDict(extra="forbid")

    account: str = DEFAULT_ACCOUNT


class WhereAndWhy(Why, Where):
    """The account that has the finetune, and why this is done."""


class Protection(WhereAndWhy):
    """The same, and how long it is protected."""

    until: Moment | None = Field(None, description="for good if it is not given")


class Holding(Where):
    """The account that has the finetune, how long it is held, and why."""

    reason: Line = Field(min_length=1,
        description="why; shown to everybody who asks for a deletion of this finetune")  # fmt: skip
    until: Moment | None = Field(None, description="without it the hold lasts until it is released")


class Latest(BaseModel):
    """How many plans."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(50, ge=1, le=500)


class Kept(BaseModel):
    """The deletions that this call withdrew: those of cleanups, or all of the finetune by a hold."""

    withdrawn: list[str] = Field(description="these deleted nothing")
    under_way: list[str] = Field(description="a call may be under way, and may still delete: their records tell")
    known: bool = Field(description="false if the last survey did not see the finetune")


class Released(BaseModel):
    """Whether it was held."""

    released: bool


class Holds(BaseModel):
    """The holds of an account, by name."""

    holds: list[Hold]


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


@router.post("/finetunes/{finetune_id:path}/touch", operation_id="touchFinetune")
def touch_finetune(
    finetune_id: str, intake: TheIntake, caller: Enqueuer, where: Annotated[Where, Query()]
) -> Kept:
    """Report that a finetune is used, now."""
    check_account(caller, where.account)
    withdrawn = inventory.touch(intake.ledger, where.account, [finetune_id])
    return _kept(intake, where.account, finetune_id, withdrawn)


@router.post("/finetunes/{finetune_id:path}/protect", operation_id="protectFinetune")
def protect_finetune(
    finetune_id: str, intake: TheIntake, caller: Admin, where: Annotated[Protection, Query()]
) -> Kept:
    """Keep a finetune from every cleanup."""
    check_account(caller, where.account)
    act = Act(caller.name, "http", where.reason)
    withdrawn = inventory.protect(intake.ledger, where.account, [finetune_id], where.until, act)
    return _kept(intake, where.account, finetune_id, withdrawn)


@router.post("/finetunes/{finetune_id:path}/unprotect", operation_id="unprotectFinetune")
def unprotect_finetune(
    finetune_id: str, intake: TheIntake, caller: Admin, where: Annotated[WhereAndWhy, Query()]
) -> Kept:
    """Allow cleanups to delete it again."""
    check_account(caller, where.account)
    inventory.unprotect(intake.ledger, where.account, [finetune_id], Act(caller.name, "http", where.reason))
    return _kept(intake, where.account, finetune_id, Withdrawn([], []))


@router.post("/finetunes/{finetune_id:path}/hold", operation_id="holdFinetune")
def hold_finetune(finetune_id: str, intake: TheIntake, caller: Admin, where: Annotated[Holding, Query()]) -> Kept:
    """Keep a finetune from every deletion, a person's too, until its release. Unfinished ones are withdrawn."""
    check_account(caller, where.account)
    act = Act(caller.name, "http", where.reason)
    withdrawn = holds.hold(intake.ledger, where.account, finetune_id, where.until, act)
    return _kept(intake, where.account, finetune_id, withdrawn)


@router.post("/finetunes/{finetune_id:path}/release", operation_id="releaseFinetune")
def release_finetune(
    finetune_id: str, intake: TheIntake, caller: Admin, where: Annotated[WhereAndWhy, Query()]
) -> Released:
    """Let a finetune that is held be deleted again; what the hold withdrew stays cancelled."""
    check_account(caller, where.account)
    act = Act(caller.name, "http", where.reason)
    return Released(released=holds.release(intake.ledger, where.account, finetune_id, act))


@router.get("/holds", operation_id="listHolds", response_model=Holds)
def list_holds(intake: TheIntake, caller: Reader, where: Annotated[Where, Query()]) -> JSONResponse:
    """List what is held in an account, by name: since when, until when, who holds it and why."""
    check_account(caller, where.account)
    return JSONResponse({"holds": [one.to_json() for one in holds.holds(intake.ledger, where.account)]})


@router.get("/plans", operation_id="listPlans", response_model=Plans)
def list_plans(intake: TheIntake, caller: Reader, wanted: Annotated[Latest, Query()]) -> JSONResponse:
    """List the latest plans, newest first; those of accounts that the token may not see are left out."""
    found = plans.list_plans(intake.ledger, limit=wanted.limit, accounts=caller.limited_to)
    return JSONResponse({"plans": [plan.summary() for plan in found]})


@router.get("/plans/{plan_id}", operation_id="getPlan", response_model=Plan, responses=documented(404))
def get_plan(plan_id: str, intake: TheIntake, caller: Reader) -> JSONResponse:
    """A plan with every finetune of its account."""
    return JSONResponse(_visible(intake, plan_id, caller).to_json())


@router.post(
    "/plans/{plan_id}/apply", operation_id="applyPlan", status_code=202, response_model=AppliedPlan,
    responses=documented(404, 409)
    | {200: {"model": AppliedPlan, "description": "Nothing new: it was applied before"}},
)  # fmt: skip
def apply_plan(
    plan_id: str, request: Request, intake: TheIntake, caller: Admin, given: Annotated[Why, Query()]
) -> JSONResponse:
    """Ask for exactly the plan's deletions, each bound to what the plan saw. Repeating it is harmless.

    409 if the plan is blocked or older than 24 hours, or if its policy was changed or removed since; the service
    can tell that only if it has `JANITOR_POLICY_FILE`.
    """
    plan, file = _visible(intake, plan_id, caller), request.app.state.settings.policy_file
    policies = read_policies(file) if file else None
    applied = plans.apply_plan(intake.ledger, intake, plan, Act(caller.name, "http", given.reason), policies)
    items = [one._asdict() | {"deletion": one.deletion.to_json() if one.deletion else None} for one in applied]
    return JSONResponse({"deletions": items}, 202 if any(one.created for one in applied) else 200)


def _kept(intake: Intake, account: str, finetune_id: str, withdrawn: Withdrawn) -> Kept:
    known = not inventory.unknown_among(intake.ledger, account, [finetune_id])
    return Kept(**withdrawn._asdict(), known=known)


def _visible(intake: Intake, plan_id: str, caller: Token) -> Plan:
    plan = plans.get_plan(intake.ledger, plan_id)
    if not caller.may_use(plan.account):
        raise UnknownPlan(f"no plan has the id {plan_id!r}")
    return plan
