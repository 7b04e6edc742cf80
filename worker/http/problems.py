"""Errors as problem details (RFC 9457): what was given, what is accepted, what to do, in one line."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from tasks import errors

log = structlog.get_logger()

RETRY_AFTER = {"Retry-After": "5"}
_STATUS: list[tuple[type[errors.JanitorError], int]] = [
    (errors.UnknownDeletion, 404), (errors.UnknownPlan, 404), (errors.IdConflict, 409), (errors.PlanRefused, 409),
    (errors.InvalidRequest, 422), (errors.LedgerUnavailable, 503), (errors.WrongLedger, 503),
]  # fmt: skip
_MEANINGS = {
    400: "the body cannot be read",
    401: "no token, or one that is not known",
    403: "the token lacks the scope or the account",
    404: "not known, or of an account that this token may not see",
    408: "the body did not come within 30 seconds",
    409: "it contradicts what is on record",
    413: "the body is larger than 1 MiB",
    422: "not acceptable; nothing was written",
    503: "Redis cannot be reached, or is full: call again after `Retry-After`",
}


class Problem(BaseModel):
    """RFC 9457; `detail` says what was given, what is accepted and what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str


class _ProblemResponse(JSONResponse):
    media_type = "application/problem+json"


def problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    body = Problem(title=HTTPStatus(status).phrase, status=status, detail=detail)
    return _ProblemResponse(body.model_dump(), status, RETRY_AFTER if status == 503 else headers)


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's `responses` for these."""
    schema = Problem.model_json_schema()
    content = {"application/problem+json": {"schema": schema}}
    return {status: {"description": _MEANINGS[status], "content": content} for status in statuses}


def install(app: FastAPI) -> None:
    """Have every error of `app` answered as a problem."""

    @app.exception_handler(errors.JanitorError)
    async def ours(_: Request, error: errors.JanitorError) -> JSONResponse:
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        return problem(status, str(error))

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, error.detail, error.headers)

    @app.exception_handler(RequestValidationError)
    async def misshapen(_: Request, error: RequestValidationError) -> JSONResponse:
        return problem(422, _one_line(error))

    @app.exception_handler(Exception)
    async def bug(request: Request, error: Exception) -> JSONResponse:
        log.error("http.bug", method=request.method, path=request.url.path, exc_info=error)
        return problem(500, "an internal error: the service's log has it")


def _one_line(error: RequestValidationError) -> str:
    first, *more = error.errors()
    where = ".".join(map(str, first["loc"]))
    given = first.get("input")
    if isinstance(given, bytes):
        return "the body was not read as JSON: send it with `Content-Type: application/json`"
    shown = "" if first["type"] in ("missing", "json_invalid") else f" is {_shown(given)}"
    also = f" (and {len(more)} more)" if more else ""
    return (
        f"{where}{shown}: {first['msg'].removeprefix('Value error, ')}{also}; /openapi.json has what is accepted"
    )


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
