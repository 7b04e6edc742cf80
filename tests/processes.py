"""Real processes for the tests: workers, producers and commands, each ended by its process id."""

import io
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest
import structlog
from celery import Celery

from tasks.ledger import Ledger
from tasks.ledger.queries import workers_seen
from worker.cli import main
from worker.local import embedded
from worker.local.supervise import NotReady, Spec, started
from worker.redis_url import celery_url, connect

KEY = "s3cret-key-of-the-tests"
ROOT = Path(__file__).parents[1]
OURS = ("BFL_", "JANITOR_", "REDIS_")


def skip_before_redis_7():
    """The users in deploy/redis/users.acl have selectors, which an older server cannot read."""
    said = subprocess.run([embedded.find_server(), "--version"], capture_output=True, text=True, check=True).stdout
    if "v=6." in said:
        pytest.skip(f"needs Redis 7 or newer, found {said.split(' sha')[0]}")


def redis_cli():
    """The client beside the server, or any other one: a wheel has a server alone."""
    server = embedded.find_server()
    beside = server.with_name(server.name.replace("server", "cli"))
    found = beside if beside.exists() else shutil.which("redis-cli") or shutil.which("valkey-cli")
    if not found:
        pytest.skip("needs redis-cli or valkey-cli on PATH")
    return Path(found)


def environment(redis_url=None, api_url=None, **more):
    """An environment with these settings alone; a value of None leaves one out."""
    given = {"REDIS_URL": redis_url, "BFL_API_URL": api_url, "BFL_API_KEY": api_url and KEY, **more}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
    return kept | {name: str(value) for name, value in given.items() if value is not None}


@contextmanager
def worker(env, log, *options):
    """`celery -A worker worker`, ready inside: its maintenance, which starts last, has made it known."""
    ledger = Ledger(connect(env["REDIS_URL"], patient=False))
    before = set(workers_seen(ledger))
    argv = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-P", "threads", "--without-mingle"]
    argv += ["-n", log.stem]
    spec = Spec("worker", [*argv, *options], env, ready=lambda: bool(set(workers_seen(ledger)) - before), log=log)
    with started(spec) as child:
        yield child


def until(met, *, seconds, what):
    """Return once `met()`; raises `NotReady` after `seconds`."""
    over = time.monotonic() + seconds
    while not met():
        if time.monotonic() > over:
            raise NotReady(f"{what} did not happen within {seconds:g}s")
        time.sleep(0.05)


def janitor(env, *arguments, timeout=60, **more):
    """Run the command; the finished process with its texts."""
    return subprocess.run(
        [sys.executable, "-m", "worker.cli", *arguments],
        env=env,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
        **more,
    )


def janitor_here(env, *arguments):
    """The same command without a process of its own, for tables of many rows."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.dict(os.environ, env, clear=True), redirect_stdout(out), redirect_stderr(err), _own_logging():
        try:
            main(list(arguments))
        except SystemExit as stop:
            return subprocess.CompletedProcess(arguments, int(stop.code or 0), out.getvalue(), err.getvalue())


@contextmanager
def _own_logging():
    """A command configures the logging of its process; here that must not outlive it, cached loggers included."""
    configure = structlog.configure

    def uncached(**options):
        configure(**{**options, "cache_logger_on_first_use": False})

    with mock.patch.object(structlog, "configure", uncached):
        try:
            yield
        finally:
            structlog.reset_defaults()


def records(done):
    """The records in the output of a command called with `--json`."""
    return [json.loads(line) for line in done.stdout.splitlines()]


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def producer(redis_url):
    """A Celery application that knows nothing of ours."""
    url = celery_url(redis_url)
    app = Celery("somebody-else", broker=url, backend=url, set_as_current=False)
    app.conf.update(broker_connection_timeout=5, result_backend_transport_options={"visibility_timeout": 3600})
    return app


__all__ = [
    "KEY",
    "ROOT",
    "environment",
    "free_ports",
    "janitor",
    "producer",
    "records",
    "started",
    "until",
    "worker",
]
