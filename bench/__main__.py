"""Run it: `make bench`, or a part of it with `make bench ONLY=throughput`."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from redis import Redis

from bench.accounts import idle
from bench.candidates import CANDIDATES
from bench.cleanup_costs import plans
from bench.ledger_costs import costs
from bench.lives import Candidate, Place, live, opened
from bench.memory import memory
from bench.producing import produced
from bench.records import loads, sizes
from bench.report import Sample, machine, text, write
from worker.local import embedded

JOBS = {0.0: 6000, 0.05: 4000, 0.2: 960}
PROBES = 200
ENQUEUED = 10_000
FINETUNES = 10_000
RECORDS = (1_000, 1_000_000)
SIZED = 10_000
ACCOUNTS = (1, 100, 500)
DELETIONS = 100_000
_PARTS = ("throughput", "enqueue", "cleanup", "memory", "accounts", "records", "ledger")
Task = tuple[str, Callable[[], list[Sample]]]


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended all the same
    options = _options()
    chosen = [one for one in CANDIDATES if any(part in one.name for part in options.candidates.split(","))]
    latencies = [float(ms) / 1000 for ms in options.latency.split(",")]
    samples: list[Sample] = []
    failed: list[str] = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, embedded.running(Path(folder)) as url:
        # Before the candidates' modules are imported, which read them.
        os.environ.update(REDIS_URL=url, RQ_REDIS_URL=url, BFL_API_KEY="bench", JANITOR_STATE_DIR=folder)
        with Redis.from_url(url) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)  # never in the middle of a measurement
            pid = client.info("server")["process_id"]
        with opened(url, pid, latencies, Path(folder)) as place:
            tasks = list(_tasks(options, chosen, place))
            began = time.monotonic()
            for n, (name, task) in enumerate(tasks, 1):
                _say(f"[{n}/{len(tasks)}, {time.monotonic() - began:.0f}s] {name}")
                try:
                    samples += task()
                except Exception as error:  # one that fails must not end the others
                    failed.append(f"{name}: {type(error).__name__}: {error}")
                    _say(failed[-1])
            described = machine(url)
            for log in Path(folder).glob("*.log") if failed else ():
                _say(f"{log.name}: " + log.read_text(errors="replace")[-2000:])
    print(text(described, samples, failed))
    if options.write:
        _say(f"written to bench/results/{write(described, samples, failed).name}")
    return 1 if failed else 0


def _tasks(options: argparse.Namespace, chosen: list[Candidate], place: Place) -> Iterator[Task]:
    """What is to be measured: the candidates interleaved, each round in an order of its own."""

    def lived(one: Candidate, latency: float) -> list[Sample]:
        jobs, probes = round(JOBS.get(latency, 1000) * options.scale), 0 if latency else PROBES
        return [Sample("throughput", one.name, f"{latency * 1000:g} ms", live(one, place, latency, jobs, probes))]

    def asked(one: Candidate) -> list[Sample]:
        return [Sample("enqueue", one.name, "", produced(one, place, round(ENQUEUED * options.scale)))]

    def kept(records: int) -> list[Sample]:
        found = costs(place, round(records * options.scale), _say)
        samples = [Sample("ledger", name, f"{records:,} records", {"ms": ms}) for name, ms in found.items()]
        if records == max(RECORDS):
            where = f"{round(records * options.scale):,} records"
            samples += [Sample("loading", name, where, took) for name, took in loads(place, _say).items()]
        return samples

    def sized(records: int) -> list[Sample]:
        found = sizes(place, records, _say)
        return [Sample("records", name, "bytes of memory each", bytes_) for name, bytes_ in found.items()]

    def planned(finetunes: int) -> list[Sample]:
        return [Sample("cleanup", "a plan", f"{finetunes:,} finetunes, an API of 20 ms", plans(place, finetunes))]

    def grown(deletions: int) -> list[Sample]:
        found = memory(place, deletions, _say)
        return [Sample("memory", name, "MiB after so many deletions", mib) for name, mib in found.items()]

    def looked_after(accounts: int) -> list[Sample]:
        return [Sample("accounts", f"{accounts:,} idle accounts", "", idle(place, accounts))]

    for _ in range(options.runs):
        this_round: list[Task] = []
        if "throughput" in options.only:
            pairs = [(one, latency) for one in chosen for latency in place.apis]
            this_round += [(f"{one.name}, {at * 1000:g} ms", partial(lived, one, at)) for one, at in pairs]
        if "enqueue" in options.only:
            candidates = list({one.module: one for one in reversed(chosen) if one.kind != "limit"}.values())
            this_round += [(f"enqueue: {one.name}", partial(asked, one)) for one in candidates]
        random.shuffle(this_round)
        yield from this_round
    if "cleanup" in options.only:
        finetunes = round(FINETUNES * options.scale)
        yield f"cleanup, {finetunes:,} finetunes", partial(planned, finetunes)
    if "memory" in options.only:
        deletions = round(DELETIONS * options.scale)
        yield f"memory, {deletions:,} deletions", partial(grown, deletions)
    if "accounts" in options.only:
        yield from ((f"accounts, {accounts:,}", partial(looked_after, accounts)) for accounts in ACCOUNTS)
    if "records" in options.only:
        records = round(SIZED * options.scale)
        yield f"records, {records:,} of each kind", partial(sized, records)
    if "ledger" in options.only:
        yield from ((f"ledger, {records:,} records", partial(kept, records)) for records in RECORDS)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "bench", description="The janitor beside other Python queues at the same job."
    )
    parser.add_argument("--only", default=",".join(_PARTS), help=f"some of {', '.join(_PARTS)}, with commas")
    parser.add_argument("--candidates", default="", help="parts of their names, with commas; all unless given")
    parser.add_argument("--latency", default="0,50,200", help="of the API, in milliseconds")
    parser.add_argument("--runs", type=int, default=3, help="of each, for the median")
    parser.add_argument("--scale", type=float, default=1.0, help="how much of the work: 0.2 for a quick look")
    parser.add_argument("--dry", dest="write", action="store_false", help="print, but write no result")
    return parser.parse_args()


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
