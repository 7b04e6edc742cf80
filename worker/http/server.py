"""The service as a process on one port. A stop does not wait for long polls."""

import asyncio
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import structlog
import uvicorn
from anyio import CapacityLimiter, to_thread
from prometheus_client import make_asgi_app

from tasks.celery_tasks import wake
from tasks.errors import InvalidRequest, LedgerUnavailable
from tasks.intake import Intake
from tasks.ledger import Ledger
from worker.app import create_app
from worker.health import Heart
from worker.http.app import create_api
from worker.http.quotas import Quotas
from worker.http.tokens import Token, TokenFile, required
from worker.metrics import registry
from worker.redis_url import connect, redis_url
from worker.settings import Settings, terms

log = structlog.get_logger()

STOP_SECONDS = 10
_BEAT_SECONDS = 5
_BEAT_COUNTS = timedelta(seconds=30)  # above two of them, and what a slow Redis takes


def listen(host: str, port: int) -> socket.socket:
    """A socket on this address; raises `InvalidRequest` if it cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family)
    except OSError as error:
        raise InvalidRequest(
            f"{host} port {port} cannot be used: {error.strerror}; give another with --port"
        ) from None
    # Inherited by each connection; asyncio sets it only if the socket names its protocol. Without it every
    # answer waits 40 ms for the client's delayed acknowledgement.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def allow_open_files() -> None:
    """Allow as many as may be: a long poll is one, and the usual soft limit of 1,024 would end at as many."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    # macOS may have no hard limit, and refuses a soft limit of that kind: then the usual one stays.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def serve(settings: Settings, tokens: list[Token], listening: socket.socket) -> None:
    """Serve on this socket until SIGINT or SIGTERM; needs no API key. tokens: those of the file at the start.

    Raises `LedgerUnavailable` if no Redis is named, `WrongLedger` if another version wrote the ledger.
    """
    url = redis_url(settings)
    celery = create_app(settings, url)
    intake = Intake(_ledger(settings, url), lambda account: wake(celery, account), settings.allow_org_ids)
    quotas = Quotas(intake.ledger, settings.http_requests_per_minute, settings.http_open_deletions)
    file = TokenFile(required(settings.tokens_file), tokens)
    api = create_api(settings, intake, file, quotas)
    allow_open_files()
    heart = Heart("http", settings.state_dir, _BEAT_COUNTS)

    thread = CapacityLimiter(1)

    async def beat() -> None:
        """Say that the loop runs and Redis answers, as /readyz does; calls of tenants must not delay it."""
        # Whatever it is, /readyz says it too; raised here, it would end the service.
        with suppress(Exception):
            await to_thread.run_sync(intake.ledger.check_schema, limiter=thread)
            heart.beat()

    _run(api, listening, api.state.waiting.stop, beat)


def serve_metrics(settings: Settings, listening: socket.socket) -> None:
    """Serve metrics alone, likewise."""
    _run(make_asgi_app(registry(_ledger(settings, redis_url(settings)))), listening)


def _ledger(settings: Settings, url: str) -> Ledger:
    """A ledger that does not retry: a client is told at once, and can call again. Raises `WrongLedger`."""
    ledger = Ledger(connect(url, patient=False), terms(settings))
    try:
        ledger.check_schema()
    except LedgerUnavailable as error:
        log.warning("redis.away", error=str(error))  # /readyz checks it when Redis is back
    return ledger


def _run(
    app: Any, listening: socket.socket, before_stop: Callable[[], None] = lambda: None,
    beat: Callable[[], Awaitable[None]] | None = None,
) -> None:  # fmt: skip
    class Server(uvicorn.Server):
        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            before_stop()
            await super().shutdown(sockets)

    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, lifespan="off",
        timeout_graceful_shutdown=STOP_SECONDS, callback_notify=beat, timeout_notify=_BEAT_SECONDS,
    )  # fmt: skip
    for number in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them once more when it has stopped
        signal.signal(number, lambda *_: None)
    asyncio.run(Server(config).serve([listening]))
