"""Commands that run processes: up, worker, beat, serve, metrics, sandbox."""

import os
import sys
from contextlib import suppress
from typing import Any

import click
from click.core import ParameterSource

from tasks.errors import InvalidRequest
from worker.local import embedded, supervise
from worker.local.supervise import Spec
from worker.logs import configure as configure_logs
from worker.redis_url import celery_url
from worker.sandbox.api import Sandbox
from worker.settings import Settings, load_settings, require_accounts

_STOP_SECONDS_OVER_CALL = 7  # a worker needs 5 at most
_JANITOR = (sys.executable, "-m", "worker.cli")
_options_of_celery = click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
_host_option = click.option("--host", default="127.0.0.1", help="The address to listen on.")
_PORT = click.IntRange(0, 65535)
# Settings of a Redis that is not ours, with their variables.
_OF_REDIS = {
    "redis_url": "REDIS_URL",
    "redis_password_file": "REDIS_PASSWORD_FILE",
    "callbacks_url": "JANITOR_CALLBACKS_URL",
}
_UNSUPPORTED = {
    "detach": "it stays in the foreground; systemd or a container runs it in the background",
    "loglevel": "set JANITOR_LOG_LEVEL",
    "logfile": "the log goes to stderr",
}
_Texts = tuple[str, ...]


@click.command()
@click.option("--http", is_flag=True, help="Run the HTTP service too; it needs JANITOR_TOKENS_FILE.")
@click.option("--http-port", type=click.IntRange(1, 65535), default=8080, help="Its port.")
def up(*, http: bool, http_port: int) -> int:
    """Run Redis, worker and beat here, in one foreground process tree.

    Everything is kept in JANITOR_STATE_DIR, and other commands find it there. REDIS_URL must not be set: it names
    another Redis. A process that dies is started again; Ctrl-C stops all of them and loses nothing.

    \b
    BFL_API_KEY=... janitor up
    BFL_API_KEY=... JANITOR_TOKENS_FILE=tokens.toml janitor up --http
    """
    settings = load_settings()
    for field, variable in _OF_REDIS.items():
        if field in settings.model_fields_set:
            raise InvalidRequest(
                f"{variable} is set, and `janitor up` runs a Redis of its own, which other commands would not "
                "use: unset it, or run `janitor worker` and `janitor beat`"
            )
    require_accounts(settings)
    if http:
        from worker.http import server, tokens  # noqa: PLC0415 -- brings in FastAPI

        # An error is told now, and not by a process that is started again and again.
        tokens.read_tokens(settings.tokens_file)
        server.listen("127.0.0.1", http_port).close()
    with embedded.lock(settings.state_dir):
        url = embedded.url(settings.state_dir)
        click.echo(f"state in {settings.state_dir}")
        click.echo(f"broker and result backend for by-name producers: {celery_url(url)}")
        return supervise.supervise(_tree(settings, url, http_port if http else None), on_event=click.echo)


@click.command(context_settings={"ignore_unknown_options": True})
@_options_of_celery
def worker(*, celery_options: _Texts) -> int:
    """Run a worker: `celery -A worker worker -P threads`. Further options go to Celery as they are.

    It makes up to JANITOR_THREADS API calls at once. More processes are more workers. It stays in the foreground
    and logs to stderr, so --detach, --logfile and --loglevel are refused.

    \b
    janitor worker
    JANITOR_THREADS=16 janitor worker
    """
    settings = load_settings()
    require_accounts(settings)
    # Mingle and gossip exchange revokes and clocks that nothing here uses, and delay a start by over a second.
    quick = ("--without-mingle", "--without-gossip")
    return _celery(settings, "worker", "--pool", "threads", *quick, *celery_options)


@click.command(context_settings={"ignore_unknown_options": True})
@_options_of_celery
def beat(*, celery_options: _Texts) -> int:
    """Run beat, which starts what is scheduled: `celery -A worker beat`.

    \b
    janitor beat
    """
    return _celery(load_settings(), "beat", *celery_options)


@click.command()
@_host_option
@click.option("--port", type=_PORT, default=8080, help="0 picks a free one.")
def serve(*, host: str, port: int) -> None:
    """Run the HTTP service, for clients with a token in JANITOR_TOKENS_FILE.

    It speaks plain HTTP: if other machines use it, put a proxy that does TLS in front of it. It needs no API key.

    \b
    janitor tokens new billing
    JANITOR_TOKENS_FILE=tokens.toml janitor serve --port 8080
    """
    from worker.http import server, tokens  # noqa: PLC0415 -- brings in FastAPI

    settings = load_settings()
    known = tokens.read_tokens(settings.tokens_file)
    configure_logs(settings.log_level)
    with server.listen(host, port) as listening:
        click.echo(f"listening on {_url(host, listening.getsockname()[1])}")
        server.serve(settings, known, listening)


@click.command()
@_host_option
@click.option("--port", type=_PORT, default=9464, help="0 picks a free one.")
def metrics(*, host: str, port: int) -> None:
    """Serve Prometheus metrics, and nothing else, without a token.

    They are computed from Redis at each scrape: one such process is enough for any number of workers.

    \b
    janitor metrics --port 9464
    """
    from worker.http import server  # noqa: PLC0415 -- brings in uvicorn

    settings = load_settings()
    configure_logs(settings.log_level)
    with server.listen(host, port) as listening:
        click.echo(f"listening on {_url(host, listening.getsockname()[1])}/metrics")
        server.serve_metrics(settings, listening)


@click.command()
@click.option("--port", type=_PORT, default=8899, help="0 picks a free one.")
@click.option("--key", "keys", multiple=True, default=["sandbox-key"], help="An accepted key.")
@click.option("--finetune", "finetunes", multiple=True, metavar="ID", help="A finetune that exists at the start.")
@click.option("--latency", type=click.FloatRange(0, 60), default=0.05, help="Seconds an answer takes.")
def sandbox(*, port: int, keys: _Texts, finetunes: _Texts, latency: float) -> None:
    """Run a simulated BFL API on this machine, for trying things out without a key.

    \b
    janitor sandbox --port 8899 --finetune my-finetune
    BFL_API_URL=http://127.0.0.1:8899 BFL_API_KEY=sandbox-key janitor up
    """
    try:
        api = Sandbox(port=port, keys=keys, latency_seconds=latency)
    except OSError as error:
        raise InvalidRequest(f"port {port} cannot be used: {error.strerror}; give another with --port") from None
    for finetune_id in finetunes:
        api.create(finetune_id)
    with api, suppress(KeyboardInterrupt):
        click.echo(f"a simulated BFL API at {api.url}, with {len(api.finetunes())} finetunes")
        api.closing.wait()


def _celery(settings: Settings, *argv: str) -> int:
    """Celery's own command, with its exit code: `app.start` does the same and loses it."""
    from celery.bin.celery import celery as command  # noqa: PLC0415 -- brings in Celery

    from worker.app import create_app  # noqa: PLC0415 -- brings in Celery

    for option in command.commands[argv[0]].params:
        if option.name in _UNSUPPORTED:
            option.callback = _refuse
    command.params[0].default = create_app(settings)
    return int(command.main(args=argv, standalone_mode=False) or 0)


def _refuse(context: click.Context, option: click.Parameter, given: Any) -> Any:
    if context.get_parameter_source(str(option.name)) is ParameterSource.COMMANDLINE:
        raise InvalidRequest(f"--{option.name} is not supported: {_UNSUPPORTED[str(option.name)]}")
    return given


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


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
