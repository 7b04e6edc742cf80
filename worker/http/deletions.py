"""`/v1/deletions`: ask for deletions, follow, list and withdraw them.

What calls the ledger is not a coroutine: FastAPI runs it on a pool of 40 threads.
"""

import time
from collections.abc import Sequence
from typing import Annotated, Any

import structlog
from fastapi import APIRouter, Depends, Header, Query
from fastapi.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from tasks import records
from tasks.errors import IdConflict, UnknownDeletion
from tasks.intake import Intake
from tasks.labels import parse_labels
from tasks.ledger import Ledger, queries
from tasks.ledger.types import Act
from tasks.records import Deletion, NewRequest, State
from tasks.waiting import explained
from worker.http.guard import Admin, Canceller, Enqueuer, Follower, Reader, check_account
from worker.http.models import Answers, Listed, NewDeletions, Resolution, Wanted, Why
from worker.http.problems import documented, problem
from worker.http.quotas import Quotas
from worker.http.strict import StrictRoute, no_body, no_query
from worker.http.tokens import Scope, Token
from worker.http.waiting import Waiting

log = structlog.get_logger()


async def _intake(request: Request) -> Intake:
    intake: Intake = request.app.state.intake
    return intake


TheIntake = Annotated[Intake, Depends(_intake)]
Key = Annotated[str | None, Header(
    alias="Idempotency-Key", json_schema_extra={"minLength": 1, "maxLength": records.MAX_REQUEST_ID_LENGTH},
    description="the same call again under the same key changes nothing and gets the same answer; keys of other "
    "tokens do not matter",
)]  # fmt: skip
Seconds = Annotated[int, Query(ge=0, le=60, description="seconds to wait for the end, at most")]
router = APIRouter(
    prefix="/v1/deletions", tags=["deletions"], route_class=StrictRoute,
    responses=documented(401, 403, 422, 429, 503),
)  # fmt: skip


@router.post(
    "", operation_id="createDeletions", status_code=202, response_model=Answers,
    responses=documented(400, 408, 409, 413)
    | {200: {"model": Answers, "description": "Nothing new: all were known"}}, dependencies=[Depends(no_query)],
)  # fmt: skip
def create_deletions(
    body: NewDeletions, request: Request, intake: TheIntake, caller: Enqueuer, key: Key = None
) -> JSONResponse:
    """Ask for finetunes to be deleted: all are accepted or none. It is on record before this answers."""
    for one in body.deletions:
        check_account(caller, one.account)
    requests = body.requests(caller.name, records.check_request_id(key) if key is not None else None)
    intake.check(requests)
    ids = [one.id for one in requests]
    quotas: Quotas = request.app.state.quotas
    quotas.reserve(caller.name, ids)
    created = dict(zip(ids, _accept(intake, requests, key), strict=True))
    found = [one for one in queries.get_many(intake.ledger, ids) if one]
    answers = [{"created": created[one["id"]], "deletion": one} for one in _shown(intake.ledger, found, caller)]
    log.info("http.accepted", requested_by=caller.name, requests=len(ids), any_new=any(created.values()))
    return JSONResponse({"deletions": answers}, 202 if any(created.values()) else 200)


@router.get("", operation_id="listDeletions", response_model=Listed)
def list_deletions(intake: TheIntake, caller: Reader, wanted: Annotated[Wanted, Query()]) -> JSONResponse:
    """List deletions, newest first."""
    if wanted.account is not None:
        check_account(caller, records.check_account(wanted.account))
    if wanted.finetune_id is not None:
        records.check_finetune_id(wanted.finetune_id, allow_org_ids=True)
    filters = wanted.model_dump(include={"account", "finetune_id", "since", "until", "requested_by", "name"})
    labels = parse_labels(wanted.label)
    where = queries.Filter(accounts=caller.limited_to, states=tuple(wanted.state), labels=labels, **filters)
    page = queries.list_deletions(intake.ledger, where, limit=wanted.limit, cursor=wanted.cursor)
    deletions = explained(intake.ledger, page.deletions)
    return JSONResponse({"deletions": [one.to_json() for one in deletions], "cursor": page.cursor})


@router.get("/{deletion_id:path}", operation_id="getDeletion", response_model=Deletion, responses=documented(404))
async def get_deletion(
    deletion_id: str, request: Request, intake: TheIntake, caller: Follower, wait: Seconds = 0
) -> JSONResponse:
    """The record; with `wait`, once it has ended or the time is over.

    With `enqueue`, only of what the token asked for.
    """
    waiting: Waiting = request.app.state.waiting
    until = time.monotonic() + wait
    while True:
        deletion = await run_in_threadpool(_allowed, intake.ledger, deletion_id, caller, "read")
        await request.scope["janitor.place"].aclose()
        left = until - time.monotonic()
        if deletion.is_final or left <= 0 or not await waiting.for_end(deletion.id, left, request):
            return JSONResponse(await run_in_threadpool(_with_reason, intake.ledger, deletion, caller))


@router.post(
    "/{deletion_id:path}/cancel", operation_id="cancelDeletion", response_model=Deletion,
    responses=documented(404, 409)
    | {202: {"model": Deletion, "description": "A call may be under way: an observation decides how it ends"}},
    dependencies=[Depends(no_body)],
)  # fmt: skip
def cancel_deletion(
    deletion_id: str, intake: TheIntake, caller: Canceller, given: Annotated[Why, Query()]
) -> JSONResponse:
    """Withdraw one deletion: the token's own, with `admin` any; 409 if it had ended otherwise already.

    `reason` is kept on record.
    """
    _allowed(intake.ledger, deletion_id, caller, "admin")
    # The Celery result of a request by name is written by a worker's maintenance.
    (answer,), _ = intake.ledger.cancel([deletion_id], Act(caller.name, "http", given.reason))
    deletion = queries.get(intake.ledger, deletion_id)
    if answer == "final" and deletion.state != State.CANCELLED:
        return problem(409, f"the deletion {deletion_id!r} had ended already: it is {deletion.state}")
    return JSONResponse(_with_reason(intake.ledger, deletion, caller), 202 if answer == "requested" else 200)


@router.post(
    "/{deletion_id:path}/resolve", operation_id="resolveDeletion", response_model=Deletion,
    responses=documented(404, 409), dependencies=[Depends(no_body)],
)  # fmt: skip
def resolve_deletion(
    deletion_id: str, intake: TheIntake, caller: Admin, given: Annotated[Resolution, Query()]
) -> JSONResponse:
    """Note what was found out about a deletion in review: then it no longer waits for a person. Its state stays.

    409 if it is in another state, or was resolved before.
    """
    _allowed(intake.ledger, deletion_id, caller, "admin")
    intake.ledger.resolve(deletion_id, given.found, given.note, Act(caller.name, "http", given.reason))
    return JSONResponse(_shown(intake.ledger, [queries.get(intake.ledger, deletion_id)], caller)[0])


def _allowed(ledger: Ledger, deletion_id: str, caller: Token, scope: Scope) -> Deletion:
    """The deletion, if it is the caller's own or the scope allows it; raises `UnknownDeletion`, or a 403."""
    deletion = queries.get(ledger, deletion_id)
    if caller.may(scope, deletion):
        return deletion
    if caller.may("read", deletion):
        words = f"the token {caller.name!r} did not ask for the deletion {deletion_id!r}"
        raise HTTPException(403, f"{words}: use one with the scope {scope!r}")
    raise UnknownDeletion(f"no deletion has the id {deletion_id!r}")


def _with_reason(ledger: Ledger, deletion: Deletion, caller: Token) -> dict[str, Any]:
    """The record, with why it waits. A sibling is named to those who may read its record."""
    return _shown(ledger, explained(ledger, [deletion], name_others="read" in caller.scopes), caller)[0]


def _shown(ledger: Ledger, deletions: Sequence[Deletion], caller: Token) -> list[dict[str, Any]]:
    """The records, with `deleted_by` if the caller may see that deletion, too."""
    others = {} if "read" in caller.scopes else {one.deleted_by: None for one in deletions if one.deleted_by}
    found = queries.get_many(ledger, list(others))
    hidden = {id_ for id_, one in zip(others, found, strict=True) if not (one and caller.may("read", one))}
    return [one.to_json() | ({"deleted_by": None} if one.deleted_by in hidden else {}) for one in deletions]


def _accept(intake: Intake, requests: Sequence[NewRequest], key: str | None) -> list[bool]:
    """Accept all, and say which are new.

    Raises `IdConflict` if the key was used for another body, before anything is written.
    """
    # Under a key, the first request has the same id in every body: it decides before the others are written.
    first = 1 if key is not None else len(requests)
    answers: list[str] = []
    for part in filter(None, (requests[:first], requests[first:])):
        answers += [one.answer for one in intake.accept(part)]
        if "conflict" in answers:
            raise IdConflict(
                f"the Idempotency-Key {key!r} was used before, for another body: give each call its own"
            )
    return [answer == "accepted" for answer in answers]
