"""Commands that run processes: up, worker, beat, sandbox."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import click

from tasks.errors import InvalidRequest
from worker.cli.common import extra
from worker.local import embedded, supervise
from worker.local.supervise import Spec
from worker.redis_url import celery_url
from worker.sandbox.api import Sandbox
from worker.settings import Settings, load_settings, require_accounts

_STOP_SECONDS_OVER_CALL = 7  # a worker needs 5 at most
_JANITOR = (sys.executable, "-m", "worker.cli")
_EXTRA = {"ignore_unknown_options": True}


@click.command()
@click.option("--http", "http", is_flag=True, help="Run the HTTP service too; it needs JANITOR_TOKENS_FILE.")
@click.option("--http-port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Its port.")
def up(*, http: bool, http_port: int) -> int:
    """Run Redis, worker and beat here, in one foreground process tree.

    Everything is kept in JANITOR_STATE_DIR; other commands find it there while REDIS_URL is not set. A process
    that dies is started again; Ctrl-C stops all of them and loses nothing.

    \b
    BFL_API_KEY=... janitor up
    BFL_API_KEY=... JANITOR_TOKENS_FILE=tokens.toml janitor up --http
    """
    settings = load_settings()
    require_accounts(settings)
    if http:
        with extra():
            import fastapi  # noqa: F401, PLC0415 -- is the extra installed?

            from worker.http.tokens import read_tokens  # noqa: PLC0415 -- not needed for --help
        read_tokens(settings.tokens_file)  # reported now, and not by a process that is started again and again
    with embedded.lock(settings.state_dir):
        url = embedded.url(settings.state_dir)
        click.echo(f"state in {settings.state_dir}")
        click.echo(f"broker and result backend for by-name producers: {celery_url(url)}")
        return supervise.supervise(_tree(settings, url, http_port if http else None), on_event=click.echo)


@click.command(context_settings=_EXTRA)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(*, celery_options: tuple[str, ...]) -> int:
    """Run a worker: `celery -A worker worker -P threads`. Further options go to Celery as they are.

    It makes up to JANITOR_THREADS API calls at once. More processes are more workers.

    \b
    janitor worker
    JANITOR_THREADS=16 janitor worker --loglevel INFO
    """
    settings = load_settings()
    require_accounts(settings)
    # Mingle and gossip exchange revokes and clocks that nothing here uses, and delay a start by over a second.
    argv = ["worker", "--pool", "threads", "--without-mingle", "--without-gossip", *celery_options]
    return _celery(settings, argv)


@click.command(context_settings=_EXTRA)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def beat(*, celery_options: tuple[str, ...]) -> int:
    """Run beat, which starts what is scheduled: `celery -A worker beat`.

    \b
    janitor beat
    """
    return _celery(load_settings(), ["beat", *celery_options])


@click.command()
@click.option("--port", type=click.IntRange(0, 65535), default=8899, show_default=True, help="0 picks a free one.")
@click.option("--key", "keys", multiple=True, default=["sandbox-key"], show_default=True, help="An accepted key.")
@click.option("--finetune", "finetunes", multiple=True, metavar="ID", help="A finetune that exists at the start.")
@click.option("--journal", type=click.Path(dir_okay=False, path_type=Path), help="Append each call to this file.")
@click.option(
    "--latency", type=click.FloatRange(0, 60), default=0.05, show_default=True, help="Seconds an answer takes."
)
def sandbox(
    *, port: int, keys: tuple[str, ...], finetunes: tuple[str, ...], journal: Path | None, latency: float
) -> int:
    """Run a simulated BFL API on this machine, for trying things out without a key.

    \b
    janitor sandbox --port 8899 --finetune my-finetune
    BFL_API_URL=http://127.0.0.1:8899 BFL_API_KEY=sandbox-key janitor up
    """
    try:
        api = Sandbox(port=port, keys=keys, latency_seconds=latency, journal_path=journal)
    except OSError as error:
        if error.filename:
            raise InvalidRequest(f"the journal {error.filename} cannot be written: {error.strerror}") from None
        raise InvalidRequest(f"port {port} cannot be used: {error.strerror}; give another with --port") from None
    for finetune_id in finetunes:
        api.create(finetune_id)
    with api, suppress(KeyboardInterrupt):
        click.echo(f"a simulated BFL API at {api.url}, with {len(api.finetunes())} finetunes")
        api.closing.wait()
    return 0


def _celery(settings: Settings, argv: list[str]) -> int:
    """Celery's own command, with its exit code: `app.start` does the same and loses it."""
    from celery.bin.celery import celery as command  # noqa: PLC0415 -- brings in Celery

    from worker.app import create_app  # noqa: PLC0415 -- brings in Celery

    command.params[0].default = create_app(settings)
    return int(command.main(args=argv, standalone_mode=False) or 0)


def _tree(settings: Settings, url: str, http_port: int | None) -> list[Spec]:
    """Redis, worker, beat, HTTP. Only the worker has the API keys in its environment."""
    here = {"REDIS_URL": url, "JANITOR_STATE_DIR": str(settings.state_dir)}
    patience = settings.call_deadline.total_seconds() + _STOP_SECONDS_OVER_CALL
    keyless = supervise.without_keys(os.environ) | here
    serve = [] if http_port is None else [Spec("http", [*_JANITOR, "serve", "--port", str(http_port)], keyless)]
    return [
        embedded.spec(settings.state_dir),
        Spec("worker", [*_JANITOR, "worker"], {**os.environ, **here}, stop_seconds=patience),
        Spec("beat", [*_JANITOR, "beat"], keyless),
        *serve,
    ]
