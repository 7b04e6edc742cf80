"""The life of one candidate: started, warmed up, measured, ended.

Its workers are stopped (SIGSTOP) while the work is put in, so that the producer takes nothing from them; the time
runs from their going on to the last stored result.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import psutil
from redis import Redis

ROOT = Path(__file__).parents[1]
PROCESSES, THREADS = 2, 12
_LONGEST_SECONDS = 120.0
_PYTHON = [sys.executable, "-m"]


class Producer(Protocol):
    def one_by_one(self, ids: list[str]) -> None: ...
    def many(self, ids: list[str]) -> None: ...
    def done(self) -> int:
        """How many results are stored, of all that this producer sent."""


@dataclass(frozen=True)
class Candidate:
    """command: what starts its workers (each of them), given the API's latency."""

    name: str
    module: str
    commands: Callable[[float], list[list[str]]]
    env: Mapping[str, str] = field(default_factory=dict)
    kind: str = "peer"  # ours, peer, limit

    def producer(self, url: str) -> Producer:
        made: Producer = import_module(f"bench.{self.module}").producer(url)
        return made


@dataclass(frozen=True)
class Place:
    """Where all of it happens: one Redis, an API for each latency."""

    redis_url: str
    redis_pid: int
    apis: Mapping[float, int]  # latency in seconds -> port
    logs: Path

    @property
    def fastest_api(self) -> str:
        return f"http://127.0.0.1:{self.apis[min(self.apis)]}"

    def count(self, latency: float) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.apis[latency])
        connection.request("GET", "/count")
        return int(json.load(connection.getresponse())["deleted"])

    def emptied(self) -> None:
        with Redis.from_url(self.redis_url) as client:
            client.flushall()
            client.bgrewriteaof()
            until(lambda: not client.info("persistence")["aof_rewrite_in_progress"], "the rewrite")


@contextmanager
def opened(redis_url: str, redis_pid: int, latencies: list[float], logs: Path) -> Iterator[Place]:
    """A place whose APIs run inside."""
    apis = {}
    with ExitStack() as stack:
        for latency in latencies:
            api = subprocess.Popen(
                [*_PYTHON, "bench.api", str(latency)], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            stack.callback(_end, api)
            apis[latency] = int(api.stdout.readline()) if api.stdout else 0
        yield Place(redis_url, redis_pid, apis, logs)


def live(candidate: Candidate, place: Place, latency: float, jobs: int, probes: int) -> dict[str, float]:
    """One life; probes: how many single jobs are timed on the idle system first."""
    place.emptied()
    producer = candidate.producer(place.redis_url)
    found: dict[str, float] = {}
    before = time.perf_counter()
    with _workers(candidate, place, latency) as workers:
        sent = _warmed_up(producer, workers, found, before)
        if probes:
            took = [_probe(producer, sent + n) for n in range(probes)]
            found |= {"idle_p50_ms": _part(took, 0.5), "idle_p99_ms": _part(took, 0.99)}
            sent += probes
        tree = _tree(workers)
        for process in tree:
            process.suspend()
        producer.many([f"job-{n}" for n in range(jobs)])
        calls, cpu, redis_cpu = place.count(latency), _cpu(tree), _cpu([psutil.Process(place.redis_pid)])
        began = time.perf_counter()
        for process in tree:
            process.resume()
        until(lambda: place.count(latency) >= calls + jobs, "the last call", every=0.02)
        until(lambda: producer.done() >= sent + jobs, "the last result")
        seconds = time.perf_counter() - began
        found["per_second"] = jobs / seconds
        found["cpu_s_per_1000"] = (_cpu(_tree(workers)) - cpu) * 1000 / jobs
        redis_cpu = _cpu([psutil.Process(place.redis_pid)]) - redis_cpu
        found["redis_cpu_s_per_1000"] = redis_cpu * 1000 / jobs
        found["memory_mb"] = sum(process.memory_full_info().pss for process in _tree(workers)) / 1e6
    return found


def _warmed_up(producer: Producer, workers: list[Any], found: dict[str, float], before: float) -> int:
    """Connections open, processes idle; the number of jobs that took."""
    producer.many(["first"])
    until(lambda: producer.done() >= 1, "the first result")
    found["start_s"] = time.perf_counter() - before
    _settled(workers)
    producer.many([f"warm-{n}" for n in range(200)])
    until(lambda: producer.done() >= 201, "the warm-up")
    _settled(workers)
    return 201


def _probe(producer: Producer, before: int) -> float:
    began = time.perf_counter()
    producer.one_by_one([f"probe-{before}"])
    while producer.done() <= before:
        if time.perf_counter() - began > _LONGEST_SECONDS:
            raise TimeoutError(f"a single job took longer than {_LONGEST_SECONDS:g}s")
        time.sleep(0.0002)
    took = time.perf_counter() - began
    time.sleep(0.01)
    return took * 1000


@contextmanager
def _workers(candidate: Candidate, place: Place, latency: float) -> Iterator[list[subprocess.Popen[bytes]]]:
    api = f"http://127.0.0.1:{place.apis[latency]}"
    env = {**os.environ, "BFL_API_URL": api, "PYTHONPATH": str(ROOT), **candidate.env}
    with ExitStack() as stack, (place.logs / f"{candidate.module}.log").open("ab") as log:
        workers = []
        for command in candidate.commands(latency):
            worker = subprocess.Popen([*_PYTHON, *command], cwd=ROOT, env=env, stdout=log, stderr=log)
            stack.callback(_end, worker)
            workers.append(worker)
        yield workers


def _end(process: subprocess.Popen[Any]) -> None:
    tree = _tree([process])
    for one in tree:
        with suppress(psutil.Error):
            one.resume()
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for one in tree:
        with suppress(psutil.Error):
            one.kill()
    process.wait()


def _tree(processes: list[Any]) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for process in processes:
        with suppress(psutil.Error):
            parent = psutil.Process(process.pid)
            found += [parent, *parent.children(recursive=True)]
    return found


def _cpu(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def _settled(workers: list[Any]) -> None:
    """Nothing is being started or worked on: for a while they use no CPU."""

    def quiet() -> bool:
        before = _cpu(_tree(workers))
        time.sleep(0.4)
        return _cpu(_tree(workers)) - before < 0.04

    until(quiet, "an idle moment")


def until(met: Callable[[], bool], what: str, *, every: float = 0.005, longest: float = _LONGEST_SECONDS) -> None:
    over = time.perf_counter() + longest
    while not met():
        if time.perf_counter() > over:
            raise TimeoutError(f"{what} did not come within {longest:g}s")
        time.sleep(every)


def _part(values: list[float], part: float) -> float:
    return sorted(values)[int(part * (len(values) - 1))]
