"""Commands that run processes: up, worker, beat, sandbox."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tasks.errors import InvalidRequest
from worker import embedded, supervise
from worker.cli.common import extra
from worker.connections import celery_url
from worker.sandbox import Sandbox
from worker.settings import Settings, load_settings, require_accounts
from worker.supervise import Spec

if TYPE_CHECKING:
    from celery import Celery

_STOP_SECONDS_OVER_CALL = 5
_CALLS_A_PROCESS, _MOST_THREADS = 8, 256
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
        read_tokens(settings.tokens_file)  # told now, and not by a process that is started again and again
    with embedded.lock(settings.state_dir):
        url = embedded.url(settings.state_dir)
        click.echo(f"state in {settings.state_dir}")
        click.echo(f"broker and result backend for by-name producers: {celery_url(url)}")
        return supervise.supervise(_tree(settings, url, http_port if http else None), on_event=click.echo)


@click.command(context_settings=_EXTRA)
@click.option("--pool", type=click.Choice(["threads", "prefork"]), default="threads", show_default=True)
@click.option("--processes", type=click.IntRange(1, 64), help="Celery workers; as the cores and permits ask for.")
@click.option("--threads", type=click.IntRange(1, 256), help="API calls at once in each; else JANITOR_THREADS.")
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def worker(*, pool: str, processes: int | None, threads: int | None, celery_options: tuple[str, ...]) -> int:
    """Run workers: `celery -A worker worker`, ready for this job.

    One process does up to 8 API calls at once; where more are permitted, there are as many as the machine has
    cores, each kept to one core, and the calls are shared among their threads. Further options go to Celery as
    they are.

    \b
    janitor worker
    janitor worker --processes 2 --threads 12
    janitor worker --pool prefork --concurrency 2
    """
    settings = load_settings()
    require_accounts(settings)
    processes, threads = _fitted(settings, processes or (1 if pool == "prefork" else None), threads)
    if processes > 1:
        return _several(settings, processes, threads, ["--pool", pool, *celery_options])
    from worker.app import create_app  # noqa: PLC0415 -- brings in Celery

    # Mingle and gossip carry revokes and clocks that nothing here uses, and slow a start by a second and more.
    argv = ["worker", "--without-mingle", "--without-gossip", "--pool", pool, *celery_options]
    return _celery(create_app(settings.model_copy(update={"threads": threads})), argv)


@click.command(context_settings=_EXTRA)
@click.argument("celery_options", nargs=-1, type=click.UNPROCESSED)
def beat(*, celery_options: tuple[str, ...]) -> int:
    """Run beat, which starts what is scheduled: `celery -A worker beat`.

    \b
    janitor beat
    """
    from worker.app import create_app  # noqa: PLC0415 -- brings in Celery

    return _celery(create_app(load_settings()), ["beat", *celery_options])


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


def _fitted(settings: Settings, processes: int | None, threads: int | None) -> tuple[int, int]:
    """How many processes, and threads in each: what is not given follows from the cores and the permits."""
    permits = settings.max_concurrent * len(settings.accounts)
    if threads is None and "threads" in settings.model_fields_set:
        threads = settings.threads
    if processes is None:
        processes = max(1, min(len(_cores()), permits // (threads or _CALLS_A_PROCESS)))
    return processes, threads or min(-(-permits // processes), _MOST_THREADS)


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else list(range(os.cpu_count() or 1))


def _several(settings: Settings, processes: int, threads: int, celery_options: Sequence[str]) -> int:
    from worker import supervise  # noqa: PLC0415 -- not needed for --help
    from worker.connections import redis_url  # noqa: PLC0415

    redis_url(settings)  # said once, and not by each
    patience = settings.call_deadline.total_seconds() + _STOP_SECONDS_OVER_CALL
    argv = [*_JANITOR, "worker", "--processes", "1", "--threads", str(threads)]
    cores = _cores()
    specs = [
        Spec(
            f"worker {n + 1}",
            [*argv, "--hostname", f"worker{n + 1}@%h", *celery_options],
            stop_seconds=patience,
            # Python runs one thread of a process at a time, and handing that turn to another core costs more than
            # it gives. Only where each core has its process, so that none is crowded.
            core=cores[n] if len(cores) == processes else None,
        )
        for n in range(processes)
    ]
    return supervise.supervise(specs, on_event=partial(click.echo, err=True), alike=True)


def _celery(app: Celery, argv: list[str]) -> int:
    """Celery's own command, with its exit code: `app.start` does the same and loses it."""
    from celery.bin.celery import celery as command  # noqa: PLC0415 -- brings in Celery

    command.params[0].default = app
    return int(command.main(args=argv, standalone_mode=False) or 0)


def _tree(settings: Settings, url: str, http_port: int | None) -> list[Spec]:
    env = {**os.environ, "REDIS_URL": url, "JANITOR_STATE_DIR": str(settings.state_dir)}
    patience = settings.call_deadline.total_seconds() + _STOP_SECONDS_OVER_CALL
    serve = [] if http_port is None else [Spec("http", [*_JANITOR, "serve", "--port", str(http_port)], env)]
    return [
        embedded.spec(settings.state_dir),
        # With a moment more than the processes that this one may have under it.
        Spec("worker", [*_JANITOR, "worker"], env, stop_seconds=patience + 2),
        Spec("beat", [*_JANITOR, "beat"], env),
        *serve,
    ]
