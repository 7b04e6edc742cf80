"""The application: its routes, the probes for orchestrators, metrics."""

from __future__ import annotations

from collections.abc import Sequence

from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from worker.http import cleanup, deletions
from worker.http.deletions import Office, Reader
from worker.http.guard import Guard
from worker.http.problems import documented, install
from worker.http.tokens import Token
from worker.metrics import registry

_DESCRIPTION = (
    "Deletes finetunes at the BFL API: requested here, carried out by workers, every outcome on record. What is "
    "answered with 202 or 200 is on record; errors are problem details (RFC 9457)."
)


def create_api(office: Office, tokens: Sequence[Token], version: str) -> FastAPI:
    """The service for these tokens."""
    app = FastAPI(
        title="Finetune Janitor", version=version, description=_DESCRIPTION, docs_url=None, redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,  # a field with a default may be left out of an answer
    )  # fmt: skip
    app.state.office = office
    app.add_middleware(Guard, tokens=tokens)
    install(app)
    app.include_router(deletions.router)
    app.include_router(cleanup.router)
    _add_probes(app, office)
    return app


def _add_probes(app: FastAPI, office: Office) -> None:
    collected = registry(office.ledger)

    @app.get("/healthz", tags=["probes"], operation_id="isAlive")
    async def healthz() -> JSONResponse:
        """The process runs."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["probes"], operation_id="isReady", responses=documented(503))
    def readyz() -> JSONResponse:
        """Redis answers, and its ledger is one that this version works with."""
        office.ledger.check_schema()
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", tags=["probes"], operation_id="metrics", response_class=PlainTextResponse,
             responses=documented(401, 403))  # fmt: skip
    def metrics(caller: Reader) -> Response:
        """Prometheus metrics of all accounts, for tokens with `read` and all accounts."""
        if caller.limited_to:
            raise HTTPException(
                403, f"the token {caller.name!r} is limited to some accounts: metrics are of all of them"
            )
        return Response(generate_latest(collected), media_type=CONTENT_TYPE_LATEST)
