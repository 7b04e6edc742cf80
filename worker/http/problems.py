"""Errors as problem details (RFC 9457): what was given, what is accepted, what to do, in one line."""

from collections.abc import Callable, Coroutine, Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tasks import errors
from tasks.text import one_line, shown

log = structlog.get_logger()

# Of an error that has several of these among its base classes, the nearest one counts.
_STATUS: dict[type, int] = {
    errors.UnknownDeletion: 404, errors.UnknownPlan: 404, errors.IdConflict: 409, errors.PlanRefused: 409,
    errors.NotInReview: 409,
    errors.InvalidRequest: 422, errors.LedgerUnavailable: 503, errors.WrongLedger: 503, errors.JanitorError: 500,
}  # fmt: skip
_MOST_DETAIL = 1000  # characters: what was sent may be a megabyte
_MEANINGS = {
    400: "the body cannot be read",
    401: "no token, or one that is not known",
    403: "the token lacks the scope or the account",
    404: "not known, or not for this token to see",
    408: "the body did not come within 30 seconds",
    409: "it contradicts what is on record",
    413: "the body is larger than 1 MiB",
    422: "not acceptable; nothing was written",
    429: "the token is over its quota, or has too many calls at a time: call again after `Retry-After`",
    503: "Redis cannot be reached, is nearly full, or has a newer ledger: call again after `Retry-After`",
}


class Problem(BaseModel):
    """RFC 9457; `detail` says what was given, what is accepted and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


def problem(status: int, detail: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    detail = one_line(detail, most=_MOST_DETAIL)
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail).model_dump()
    headers = {"Retry-After": "5"} if status == 503 else headers
    return JSONResponse(body, status, headers, media_type="application/problem+json")


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these."""
    content = {"application/problem+json": {"schema": Problem.model_json_schema()}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


async def _ours(_: Request, error: errors.JanitorError) -> JSONResponse:
    return problem(next(_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), str(error))


async def _refused(_: Request, error: HTTPException) -> JSONResponse:
    return problem(error.status_code, error.detail, error.headers)


async def _misshapen(_: Request, error: RequestValidationError) -> JSONResponse:
    first, *more = error.errors()
    given = first.get("input")
    if isinstance(given, bytes):
        return problem(422, "the body was not read as JSON: send it with `Content-Type: application/json`")
    where = one_line(".".join(map(str, first["loc"])), most=200)
    given_as = "" if first["type"] in ("missing", "json_invalid") else f" is {shown(given)}"
    also = f" (and {len(more)} more)" if more else ""
    words = one_line(first["msg"].removeprefix("Value error, "))
    return problem(422, f"{where}{given_as}: {words}{also}; /openapi.json has what is accepted")


async def _bug(request: Request, error: Exception) -> JSONResponse:
    log.error("http.bug", method=request.method, path=request.url.path, exc_info=error)
    return problem(500, "an internal error: the service's log has it")


# For `FastAPI(exception_handlers=...)`: every error is answered as a problem.
HANDLERS: dict[int | type[Exception], Callable[[Request, Any], Coroutine[Any, Any, Response]]] = {
    errors.JanitorError: _ours, HTTPException: _refused, RequestValidationError: _misshapen, Exception: _bug,
}  # fmt: skip
