"""The application: its routes, the probes for orchestrators, metrics."""

from importlib.metadata import version

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, PlainTextResponse, Response

from tasks.intake import Intake
from tasks.ledger import Ledger
from worker.http import cleanup, deletions, system
from worker.http.guard import Guard, ReaderOfAll
from worker.http.problems import HANDLERS, documented
from worker.http.quotas import Quotas
from worker.http.tokens import TokenFile
from worker.http.waiting import Waiting
from worker.metrics import registry
from worker.settings import Settings

_DESCRIPTION = (
    "Deletes finetunes at the BFL API: requested here, carried out by workers, every outcome on record. What is "
    "answered with 202 or 200 is on record; errors are problem details (RFC 9457)."
)


def create_api(settings: Settings, intake: Intake, tokens: TokenFile, quotas: Quotas) -> FastAPI:
    """The service for these tokens; `state.waiting` has its long polls."""
    app = FastAPI(
        title="Finetune Janitor", version=version("finetune-janitor"), description=_DESCRIPTION, docs_url=None,
        redoc_url=None, redirect_slashes=False, exception_handlers=HANDLERS,
        separate_input_output_schemas=False,  # a field with a default may be left out of an answer
    )  # fmt: skip
    app.state.intake, app.state.waiting, app.state.quotas = intake, Waiting(intake.ledger), quotas
    app.state.settings = settings
    app.add_middleware(Guard, tokens=tokens, quotas=quotas)
    app.include_router(deletions.router)
    app.include_router(cleanup.router)
    app.include_router(system.router)
    _add_probes(app, intake.ledger)
    return app


def _add_probes(app: FastAPI, ledger: Ledger) -> None:
    collected, thread = registry(ledger), CapacityLimiter(1)  # of its own: probes must not wait for calls

    @app.get("/healthz", tags=["probes"], operation_id="isAlive")
    async def healthz() -> JSONResponse:
        """The process runs."""
        return JSONResponse({"status": "ok"})

    @app.get("/readyz", tags=["probes"], operation_id="isReady", responses=documented(503))
    async def readyz() -> JSONResponse:
        """Redis answers, and its ledger is one that this version works with."""
        await to_thread.run_sync(ledger.check_schema, limiter=thread)
        return JSONResponse({"status": "ok"})

    @app.get("/metrics", tags=["probes"], operation_id="getMetrics", response_class=PlainTextResponse,
             responses=documented(401, 403, 422, 429))  # fmt: skip
    def metrics(_: ReaderOfAll) -> Response:
        """Prometheus metrics of all accounts, for tokens with `read` and all accounts."""
        return Response(generate_latest(collected), media_type=CONTENT_TYPE_LATEST)
