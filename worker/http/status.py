"""`/v1/status`: the state of the whole system."""

from datetime import timedelta

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request

from worker.doctor.status import Status, status
from worker.http.guard import Reader
from worker.http.problems import documented

router = APIRouter(prefix="/v1/status", tags=["status"], responses=documented(401, 403, 429, 503))


@router.get("", operation_id="getStatus")
def get_status(request: Request, caller: Reader) -> Status:
    """What needs a person and what to do, counts, retries, rates: as `janitor status` shows it.

    For tokens with `read` and all accounts. `needs` is empty if all is well.
    """
    if caller.limited_to:
        raise HTTPException(
            403, f"the token {caller.name!r} is limited to some accounts: the status is of all of them"
        )
    tick_every: timedelta = request.app.state.tick_every
    return status(request.app.state.intake.ledger, tick_every)
