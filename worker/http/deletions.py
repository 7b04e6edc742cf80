"""`/v1/deletions`: ask for deletions, follow, list and withdraw them.

What calls the ledger is not a coroutine: FastAPI runs it on a pool of 40 threads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import structlog
from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse

from tasks.errors import IdConflict, UnknownDeletion
from tasks.intake import Intake
from tasks.ledger import Accepted, Ledger
from tasks.ledger.queries import Filter, get, get_many, list_deletions
from tasks.records import (
    MAX_REQUEST_ID_LENGTH,
    Deletion,
    NewRequest,
    State,
    check_account,
    check_finetune_id,
    check_request_id,
)
from worker.http.guard import check_accounts, needs
from worker.http.models import Answers, Line, Listed, NewDeletions, Wanted
from worker.http.problems import documented, problem
from worker.http.tokens import Token
from worker.http.waiting import Waiting

log = structlog.get_logger()


@dataclass(frozen=True)
class Office:
    """What the routes work with."""

    ledger: Ledger
    intake: Intake
    waiting: Waiting


async def _office(request: Request) -> Office:
    office: Office = request.app.state.office
    return office


Here = Annotated[Office, Depends(_office)]
Reader = Annotated[Token, Depends(needs("read"))]
Enqueuer = Annotated[Token, Depends(needs("enqueue"))]
Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="the same call again under the same key changes nothing and gets the same answer; keys of "
        "other tokens do not matter",
        json_schema_extra={"minLength": 1, "maxLength": MAX_REQUEST_ID_LENGTH},
    ),
]
Seconds = Annotated[int, Query(ge=0, le=60, description="seconds to wait for the end, at most")]

router = APIRouter(prefix="/v1/deletions", tags=["deletions"], responses=documented(401, 403, 422, 503))


@router.post(
    "",
    operation_id="askForDeletions",
    status_code=202,
    response_model=Answers,
    responses=documented(400, 408, 409, 413)
    | {200: {"model": Answers, "description": "Nothing new: all were known"}},
)
def ask(body: NewDeletions, office: Here, caller: Enqueuer, key: Key = None) -> JSONResponse:
    """Ask for finetunes to be deleted: all are accepted or none. It is on record before this answers."""
    check_accounts(caller, [one.account for one in body.deletions])
    requests = body.requests(caller.name, check_request_id(key) if key is not None else None)
    accepted = _accept(office.intake, requests, key)
    found = get_many(office.ledger, [request.id for request in requests])
    answers = [
        {"created": one.answer == "accepted", "deletion": deletion.to_json()}
        for one, deletion in zip(accepted, found, strict=True)
        if deletion
    ]
    any_new = any(one.answer == "accepted" for one in accepted)
    log.info("http.accepted", requested_by=caller.name, requests=len(requests), any_new=any_new)
    return JSONResponse({"deletions": answers}, 202 if any_new else 200)


@router.get("", operation_id="listDeletions", response_model=Listed)
def list_(office: Here, caller: Reader, wanted: Annotated[Wanted, Query()]) -> JSONResponse:
    """List deletions, newest first."""
    if wanted.account is not None:
        check_accounts(caller, [check_account(wanted.account)])
    if wanted.finetune_id is not None:
        check_finetune_id(wanted.finetune_id, allow_org_ids=True)
    where = Filter(
        account=wanted.account, accounts=caller.limited_to, states=tuple(wanted.state),
        finetune_id=wanted.finetune_id, since=wanted.since, until=wanted.until,
    )  # fmt: skip
    page = list_deletions(office.ledger, where, limit=wanted.limit, cursor=wanted.cursor)
    return JSONResponse({"deletions": [one.to_json() for one in page.deletions], "cursor": page.cursor})


@router.get("/{deletion_id:path}", operation_id="showDeletion", response_model=Deletion, responses=documented(404))
async def show(
    deletion_id: str, request: Request, office: Here, caller: Reader, wait: Seconds = 0
) -> JSONResponse:
    """The record; with `wait`, once it has ended or the time is over."""
    until = time.monotonic() + wait
    while True:
        deletion = await run_in_threadpool(_visible, office.ledger, deletion_id, caller)
        left = until - time.monotonic()
        if deletion.is_final or left <= 0 or not await office.waiting.for_end(deletion.id, left, request):
            return JSONResponse(deletion.to_json())


@router.post(
    "/{deletion_id:path}/cancel",
    operation_id="cancelDeletion",
    response_model=Deletion,
    responses=documented(404, 409)
    | {202: {"model": Deletion, "description": "A call may be under way: an observation decides how it ends"}},
)
def cancel(
    deletion_id: str, office: Here, caller: Enqueuer, reason: Annotated[Line | None, Query()] = None
) -> JSONResponse:
    """Withdraw one deletion; 409 if it had ended otherwise already. `reason` is kept on record."""
    _visible(office.ledger, deletion_id, caller)
    # The Celery result of a request by name is written by a worker's maintenance.
    (answer,), _ = office.ledger.cancel([deletion_id], by=caller.name, reason=reason)
    deletion = get(office.ledger, deletion_id)
    if answer == "final" and deletion.state != State.CANCELLED:
        return problem(409, f"the deletion {deletion_id!r} had ended already: it is {deletion.state}")
    return JSONResponse(deletion.to_json(), 202 if answer == "requested" else 200)


def _visible(ledger: Ledger, deletion_id: str, caller: Token) -> Deletion:
    """The deletion, if it is of an account that the caller may see; raises `UnknownDeletion`."""
    deletion = get(ledger, deletion_id)
    if not caller.may_use(deletion.account):
        raise UnknownDeletion(f"no deletion has the id {deletion_id!r}")
    return deletion


def _accept(intake: Intake, requests: Sequence[NewRequest], key: str | None) -> list[Accepted]:
    """Accept all; raises `IdConflict` if the key was used for another body, before anything is written."""
    intake.check(requests)
    # Under a key, the first request has the same id in every body: it decides before the others are written.
    first = 1 if key is not None else 0
    accepted: list[Accepted] = []
    for part in (requests[:first], requests[first:]):
        accepted += intake.accept(part) if part else []
        if any(one.answer == "conflict" for one in accepted):
            raise IdConflict(
                f"the Idempotency-Key {key!r} was used before, for another body: give each call its own"
            )
    return accepted
