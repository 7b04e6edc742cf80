"""Who takes part, each as its own documentation recommends for short jobs that wait for a network."""

from __future__ import annotations

from bench.lives import PROCESSES, THREADS, Candidate

AT_ONCE = PROCESSES * THREADS
# A log as quiet as the peers are told to keep theirs.
_OURS = {
    "JANITOR_MAX_CONCURRENT": str(AT_ONCE), "JANITOR_THREADS": str(THREADS), "JANITOR_LOG_LEVEL": "WARNING",
}  # fmt: skip


def _janitor(_: float) -> list[list[str]]:
    return [["worker.cli", "worker"] for _ in range(PROCESSES)]


def _celery(pool: str, processes: int, at_once: int) -> list[list[str]]:
    options = ["--without-mingle", "--without-gossip", "--loglevel", "warning", "-P", pool, "-c", str(at_once)]
    return [
        ["celery", "-A", "bench.on_celery", "worker", "-n", f"{pool}{n}@bench", *options] for n in range(processes)
    ]


def _prefork(latency: float) -> list[list[str]]:
    # A process for each core where the work is only CPU, one for each call where it waits.
    return _celery("prefork", 1, AT_ONCE if latency else PROCESSES)


def _rq(latency: float) -> list[list[str]]:
    count = str(AT_ONCE if latency else PROCESSES)
    return [["rq.cli", "worker-pool", "default", "-n", count, "-w", "rq.worker.SimpleWorker", "-q"]]


def _dramatiq(_: float) -> list[list[str]]:
    return [["dramatiq", "bench.on_dramatiq", "-p", str(PROCESSES), "-t", str(THREADS)]]


def _taskiq(_: float) -> list[list[str]]:
    options = ["--workers", str(PROCESSES), "--max-async-tasks", str(THREADS), "--ack-type", "when_saved"]
    return [["taskiq", "worker", "bench.on_taskiq:broker", *options, "--log-level", "WARNING"]]


def _saq(_: float) -> list[list[str]]:
    return [["saq", "bench.on_saq.settings", "--workers", str(PROCESSES), "--quiet"]]


def _bare(call: str) -> list[list[str]]:
    return [["bench.bare", str(THREADS), call] for _ in range(PROCESSES)]


CANDIDATES = [
    Candidate("janitor", "on_janitor", _janitor, _OURS, "ours"),
    Candidate("celery, prefork", "on_celery", _prefork),
    Candidate("celery, threads", "on_celery", lambda _: _celery("threads", PROCESSES, THREADS)),
    Candidate("dramatiq", "on_dramatiq", _dramatiq),
    Candidate("rq, no fork", "on_rq", _rq),
    Candidate("taskiq, aiohttp", "on_taskiq", _taskiq),
    Candidate("saq, aiohttp", "on_saq", _saq),
    Candidate("bare requests", "bare", lambda _: _bare("plain"), kind="limit"),
    Candidate("bare prepared requests", "bare", lambda _: _bare("prepared"), kind="limit"),
]
