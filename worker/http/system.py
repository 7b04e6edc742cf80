"""`/v1/status` and `/v1/audit`: the whole system, for tokens that may see all accounts."""

from itertools import islice
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse

from tasks.ledger import audit
from worker.doctor.status import Status, status
from worker.http.deletions import TheIntake
from worker.http.guard import AdminOfAll, ReaderOfAll
from worker.http.models import Moment
from worker.http.problems import documented
from worker.settings import Settings

_MOST_READ = 10_000  # entries for one page
router = APIRouter(prefix="/v1", responses=documented(401, 403, 422, 429, 503))


class Page(BaseModel):
    """Oldest first. `cursor` asks for what follows, now or later.

    If it is null, the page is empty: keep the one before.
    """

    entries: list[audit.Entry]
    cursor: str | None


class Asked(BaseModel):
    """Which entries; all filters must match."""

    model_config = ConfigDict(extra="forbid")

    since: Moment | None = Field(None, description="done at or after this time")
    until: Moment | None = Field(None, description="done at or before this time")
    who: str | None = Field(None, description="a login, the name of a token, or what a message said of its sender")
    act: str | None = Field(None, description="such as pause, cancel, protect, apply, resolve, retry")
    limit: int = Field(100, ge=1, le=500)
    cursor: str = Field("", description="that of the page before")


@router.get("/status", tags=["status"], operation_id="getStatus")
def get_status(request: Request, intake: TheIntake, _: ReaderOfAll) -> Status:
    """What needs a person and what to do, counts, retries, rates: as `janitor status` shows it.

    For tokens with `read` and all accounts. `needs` is empty if all is well.
    """
    settings: Settings = request.app.state.settings
    return status(intake.ledger, settings.tick_every)


@router.get("/audit", tags=["audit"], operation_id="listActs", response_model=Page)
def list_acts(intake: TheIntake, _: AdminOfAll, asked: Annotated[Asked, Query()]) -> JSONResponse:
    """List what people and services did, oldest first, for tokens with `admin` and all accounts.

    A page may have fewer than `limit` entries, or none, and still a cursor: at most 10,000 are read for one.
    """
    wanted = audit.Wanted(asked.since, asked.until, asked.who, asked.act)
    found: list[audit.Entry] = []
    cursor: str | None = None
    for place, entry in islice(audit.read(intake.ledger, wanted, asked.cursor), _MOST_READ):
        cursor = place
        found += [entry] if entry else []
        if len(found) == asked.limit:
            break
    return JSONResponse({"entries": [one.to_json() for one in found], "cursor": cursor})
