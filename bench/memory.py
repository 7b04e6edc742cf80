"""The memory of each process: after its first work, and as the work goes on. It has to stay flat."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import psutil

from bench.lives import Place, until
from bench.on_janitor import Producer
from tasks.ledger.queries import workers_seen
from worker.local.supervise import Spec, started

ROUNDS = 5
_FIRST = 10
_SLOWEST_PER_SECOND = 50
_TOKEN = "bench"  # noqa: S105 -- for a service that ends with the measurement
_ANY_PORT = ("--port", "0")


class _System(NamedTuple):
    processes: dict[str, psutil.Process]
    asked: http.client.HTTPConnection
    scraped: http.client.HTTPConnection


def memory(place: Place, deletions: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """MiB of resident memory: by process, then by how many deletions are done.

    Of ten deletions, one is asked for by name, one by HTTP, the others by the way of the command. The settings are
    the default ones; but beat ticks once a second, and the HTTP service has no quota.
    """
    place.emptied()
    producer = Producer(place.redis_url)
    found: dict[str, dict[str, float]] = {}
    with _system(place, producer) as system:
        done = 0
        for count in (_FIRST, *[deletions // ROUNDS] * ROUNDS):
            _work(system, producer, [f"job-{done + n}" for n in range(count)])
            done += count
            _until_done(producer, done, count)
            for name, process in system.processes.items():
                found.setdefault(name, {})[f"{done:,}"] = process.memory_info().rss / 2**20
            say(
                f"{done:,} deletions: "
                + ", ".join(f"{name} {mib[f'{done:,}']:.1f}" for name, mib in found.items())
            )
    return found


def _work(system: _System, producer: Producer, names: list[str]) -> None:
    tenth = len(names) // 10
    producer.one_by_one(names[:tenth])
    for connection in (system.asked, system.scraped):
        connection.close()  # the other end did, after some idle seconds; the next call opens it
    for n, name in enumerate(names[tenth : 2 * tenth]):
        _called(system.asked, "POST", "/v1/deletions", 202, json.dumps({"deletions": [{"finetune_id": name}]}))
        if n % 10 == 0:
            _called(system.scraped, "GET", "/metrics", 200)
    producer.many(names[2 * tenth :])


def _called(
    at: http.client.HTTPConnection, method: str, path: str, expected: int, body: str | None = None
) -> None:
    headers = {"Authorization": f"Bearer {_TOKEN}", "Content-Type": "application/json"}
    at.request(method, path, body, headers)
    answer = at.getresponse()
    said = answer.read()
    if answer.status != expected:
        raise RuntimeError(f"{method} {path}: HTTP {answer.status} {said[:200]!r}")


def _until_done(producer: Producer, done: int, count: int) -> None:
    until(lambda: producer.done() >= done, "the last result", every=0.1, longest=60 + count / _SLOWEST_PER_SECOND)


@contextmanager
def _system(place: Place, producer: Producer) -> Iterator[_System]:
    """The processes that are started by default, one of each, and connections to the two that listen."""
    tokens = place.logs / "tokens.toml"
    digest = hashlib.sha256(_TOKEN.encode()).hexdigest()
    tokens.write_text(f'[bench]\nsha256 = "{digest}"\nscopes = ["enqueue"]\naccounts = ["*"]\n', encoding="utf-8")
    env = os.environ | {
        "BFL_API_URL": place.fastest_api,
        "JANITOR_TOKENS_FILE": str(tokens), "JANITOR_TICK_EVERY": "1s",
        "JANITOR_HTTP_REQUESTS_PER_MINUTE": "1000000", "JANITOR_HTTP_OPEN_DELETIONS": "1000000",
    }  # fmt: skip
    with ExitStack() as stack:
        processes = {"redis": psutil.Process(place.redis_pid)}

        def start(name: str, *options: str, ready: Callable[[], bool] | None = None) -> Path:
            log = place.logs / f"{name}.log"
            argv = [sys.executable, "-m", "worker.cli", name, *options]
            child = stack.enter_context(started(Spec(name, argv, env, ready or (lambda: _port(log) > 0), log=log)))
            processes[f"janitor {name}"] = psutil.Process(child.process.pid)
            return log

        start("worker", ready=lambda: bool(workers_seen(producer.ledger)))
        start("beat", ready=lambda: True)
        ports = [_port(start(name, *_ANY_PORT)) for name in ("serve", "metrics")]
        yield _System(processes, *(http.client.HTTPConnection("127.0.0.1", port) for port in ports))


def _port(log: Path) -> int:
    """The port that a process says it listens on; 0 if it says none yet."""
    found = re.search(r"listening on http://[\d.]+:(\d+)", log.read_text(encoding="utf-8") if log.exists() else "")
    return int(found[1]) if found else 0
