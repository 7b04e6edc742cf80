"""What an account costs while it has nothing to do: each worker looks after each of its accounts once a second."""

from __future__ import annotations

import os
import sys
import time

import psutil

from bench.lives import Place
from tasks.ledger import Ledger
from tasks.ledger.queries import workers_seen
from worker.local.supervise import Spec, started
from worker.redis_url import connect

_START_SECONDS, _SECONDS = 5.0, 20.0


def idle(place: Place, accounts: int) -> dict[str, float]:
    """Per cent of a core that one worker and Redis use, and MiB of the worker."""
    place.emptied()
    ledger = Ledger(connect(place.redis_url))
    own = {f"BFL_API_KEY_{n}": "bench" for n in range(1, accounts)}  # beside the default one
    own |= {f"BFL_API_URL{_of(n)}": place.fastest_api for n in range(accounts)}
    argv = [sys.executable, "-m", "worker.cli", "worker"]
    spec = Spec(
        "worker", argv, os.environ | own, lambda: bool(workers_seen(ledger)), log=place.logs / "worker.log"
    )
    with started(spec) as child:
        time.sleep(_START_SECONDS)
        both = {"worker": psutil.Process(child.process.pid), "redis": psutil.Process(place.redis_pid)}
        before = {name: sum(process.cpu_times()[:2]) for name, process in both.items()}
        time.sleep(_SECONDS)
        found = {
            f"{name}_%_of_a_core": (sum(process.cpu_times()[:2]) - before[name]) * 100 / _SECONDS
            for name, process in both.items()
        }
        return found | {"worker_mib": both["worker"].memory_info().rss / 2**20}


def _of(n: int) -> str:
    return f"_{n}" if n else ""
