"""What records need: bytes of Redis's memory for each, and the time in which a server loads many of them."""

from __future__ import annotations

import os
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis import Redis

from bench.lives import Place, until
from bench.on_janitor import Producer
from tasks.labels import MAX_LABELS
from tasks.ledger.queries import workers_seen
from tasks.records import MAX_ID_LENGTH, MAX_TEXT_LENGTH, NewRequest
from worker.local import embedded
from worker.local.embedded import Server
from worker.local.supervise import Spec, started

_SHORT_NAME_LENGTH = 24
_LONGEST: dict[str, Any] = {
    "reason": "r" * MAX_TEXT_LENGTH, "requested_by": "b" * MAX_TEXT_LENGTH,
    "labels": {f"{n:k>63}": "v" * 63 for n in range(MAX_LABELS)},
}  # fmt: skip
# Of a request: whether it comes by name, the length of its finetune's name, its other fields.
_KINDS: dict[str, tuple[bool, int, dict[str, Any]]] = {
    "by command, short": (False, _SHORT_NAME_LENGTH, {}),
    "by name, short": (True, _SHORT_NAME_LENGTH, {}),
    "by command, longest": (False, MAX_ID_LENGTH, _LONGEST),
    "by name, longest": (True, MAX_ID_LENGTH, _LONGEST),
}
_SLOWEST_PER_SECOND = 50
_LONGEST_LOAD_SECONDS = 900.0


def sizes(place: Place, count: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Bytes of Redis's memory for each record: by server, then by kind. A worker carries every deletion out.

    A record by name has a Celery result too. Short: a name of 24 characters and nothing else. Longest: every text
    is as long as it may be.
    """
    found: dict[str, dict[str, float]] = {}
    for server in embedded.find_servers():
        with TemporaryDirectory(prefix="bench-") as folder, _running(server, Path(folder)) as url:
            producer, done = Producer(url), 0
            with _worker(place, url, producer, Path(folder)), Redis.from_url(url) as client:
                for kind in ("by command, short", *_KINDS):  # the first one is a warm-up
                    before = _used_bytes(client)
                    _ask(producer, kind, count)
                    done += count
                    longest = 60 + count / _SLOWEST_PER_SECOND
                    until(lambda: producer.done() >= done, "the last result", every=0.1, longest=longest)  # noqa: B023 -- at once
                    found.setdefault(str(server), {})[kind] = (_used_bytes(client) - before) / count
                    say(f"{server}, {kind}: {found[str(server)][kind]:.0f} bytes")
    return found


def loads(place: Place, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Seconds in which servers load a copy of what this Redis holds: by server, then by the form of the file.

    As written: every change since the start as a command. Rewritten: the form after BGREWRITEAOF, a snapshot.
    """
    found: dict[str, dict[str, float]] = {}
    with Redis.from_url(place.redis_url) as client:
        original: Any = client.config_get("dir")
        for form in ("as written", "rewritten"):
            if form == "rewritten":
                client.bgrewriteaof()
                until(lambda: not _is_rewriting(client), "the rewrite", every=0.1, longest=_LONGEST_LOAD_SECONDS)
            for server in embedded.find_servers():
                seconds, mb = _loaded(server, Path(original["dir"]))
                found.setdefault(str(server), {}).update({f"{form}, s": seconds, f"{form}, MB on disk": mb})
                say(f"{server}, {form}: {seconds:.1f} s, {mb:.0f} MB on disk")
    return found


def _loaded(server: Server, original: Path) -> tuple[float, float]:
    with TemporaryDirectory(prefix="bench-") as parent:
        copy = Path(parent) / "copy"
        shutil.copytree(original, copy, ignore=shutil.ignore_patterns("*.sock", "*.log", "*.lock"))
        copy.chmod(0o700)
        size = sum(file.stat().st_size for file in copy.rglob("*.*") if "appendonly" in file.name)
        began = time.perf_counter()
        with _running(server, copy):
            return time.perf_counter() - began, size / 1e6


@contextmanager
def _running(server: Server, folder: Path) -> Iterator[str]:
    """The URL of this server, once it has loaded what the folder holds."""
    spec = embedded.spec(folder)
    argv = [str(server.path), *spec.argv[1:]]
    with started(replace(spec, argv=argv, ready_seconds=_LONGEST_LOAD_SECONDS)):
        yield embedded.url(folder)


@contextmanager
def _worker(place: Place, url: str, producer: Producer, folder: Path) -> Iterator[None]:
    env = os.environ | {"REDIS_URL": url, "BFL_API_URL": place.fastest_api, "JANITOR_LOG_LEVEL": "WARNING"}
    argv = [sys.executable, "-m", "worker.cli", "worker"]
    ready = lambda: bool(workers_seen(producer.ledger))  # noqa: E731 -- one expression
    with started(Spec("worker", argv, env, ready, log=folder / "worker.log")):
        yield


def _ask(producer: Producer, kind: str, count: int) -> None:
    is_by_name, length, fields = _KINDS[kind]
    names = [uuid.uuid4().hex[:24].rjust(length, "n") for _ in range(count)]
    if not is_by_name:
        producer.intake.accept([NewRequest(str(uuid.uuid4()), name, bulk=True, **fields) for name in names])
        return
    for name in names:
        producer.app.send_task("finetunes.delete", [name], fields, queue="deletions")


def _used_bytes(client: Any) -> int:
    return int(client.info("memory")["used_memory"])


def _is_rewriting(client: Any) -> bool:
    persistence = client.info("persistence")
    return bool(persistence["aof_rewrite_in_progress"] or persistence["aof_rewrite_scheduled"])
