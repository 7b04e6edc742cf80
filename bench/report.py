"""What was found, as text: the machine, a table for each measure, the goals."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from redis import Redis

RESULTS = Path(__file__).parent / "results"
_VERSIONS = ("celery", "dramatiq", "rq", "taskiq", "taskiq-redis", "saq", "aiohttp", "uvloop", "requests", "redis")
Found = dict[tuple[str, str, str], dict[str, float]]
BEST = "the best peer"
_OURS, _PREPARED = "janitor", "bare prepared requests"


class Sample(NamedTuple):
    """One measured life. what: the measure's group, such as `throughput`; found: figures by name."""

    what: str
    candidate: str
    where: str
    found: dict[str, float]


def machine(redis_url: str) -> dict[str, str]:
    """What it was measured on: no name, no path."""
    with Redis.from_url(redis_url) as client:
        server: Any = client.info("server")
        fsync: Any = client.config_get("appendfsync")
    cpu = platform.processor() or platform.machine()
    with Path("/proc/cpuinfo").open() as lines:
        cpu = next((line.partition(": ")[2].strip() for line in lines if line.startswith("model name")), cpu)
    return {
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": f"{os.cpu_count()} cores, {cpu}",
        "python": platform.python_version(),
        "redis": f"{server['redis_version']}, appendonly, appendfsync {fsync['appendfsync']}, unix socket",
        "versions": ", ".join(f"{name} {version(name)}" for name in _VERSIONS),
    }


def medians(samples: Iterable[Sample]) -> Found:
    """The median of each figure, by (what, candidate, where)."""
    grouped: dict[tuple[str, str, str], list[dict[str, float]]] = defaultdict(list)
    for sample in samples:
        grouped[sample[:3]].append(sample.found)
    return {
        key: {name: statistics.median(one[name] for one in found if name in one) for name in found[0]}
        for key, found in grouped.items()
    }


def text(described: dict[str, str], samples: Sequence[Sample], failed: Sequence[str]) -> str:
    """All of it in Markdown."""
    found = medians(samples)
    parts = ["# Measured", *(f"- {name}: {value}" for name, value in described.items())]
    for what in dict.fromkeys(what for what, _, _ in found):
        wheres = dict.fromkeys(where for w, _, where in found if w == what)
        for where in wheres:
            rows = {c: figures for (w, c, at), figures in found.items() if (w, at) == (what, where)}
            parts += ["", f"## {what}{f', {where}' if where else ''}", "", *_table(rows)]
    parts += ["", "## Goals", "", *_goals(found)]
    if failed:
        parts += ["", "## Failed", "", *(f"- {line}" for line in failed)]
    return "\n".join(parts) + "\n"


def write(described: dict[str, str], samples: Sequence[Sample], failed: Sequence[str]) -> Path:
    """Write `<date>.md` and `.json`; the path of the former."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d-%H%M}.md"
    path.write_text(text(described, samples, failed), encoding="utf-8")
    raw = {"machine": described, "samples": [sample._asdict() for sample in samples], "failed": list(failed)}
    path.with_suffix(".json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
    return path


def _table(rows: dict[str, dict[str, float]]) -> list[str]:
    names = list(dict.fromkeys(name for figures in rows.values() for name in figures))
    first = names[0]
    ordered = sorted(rows, key=lambda row: -rows[row].get(first, 0))
    lines = [f"| | {' | '.join(name.replace('_', ' ') for name in names)} |", "|---" * (len(names) + 1) + "|"]
    for row in ordered:
        lines.append(f"| {row} | {' | '.join(_shown(rows[row].get(name)) for name in names)} |")
    return lines


def _shown(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


class _Ratio(NamedTuple):
    """One of the project's goals. above, below: what, candidate, where, figure; BEST is whichever peer's is."""

    measure: str
    goal: str
    above: tuple[str, str, str, str]
    below: tuple[str, str, str, str]


def _goals(found: Found) -> list[str]:
    lines = ["| measure | goal | here |", "|---|---|---|"]
    for ratio in _ratios(found):
        above, below = _figure(found, *ratio.above), _figure(found, *ratio.below)
        if above is not None and below is not None:
            lines.append(f"| {ratio.measure} | {ratio.goal} | {above / below:.2f} |")
    return lines


def _ratios(found: Found) -> Iterator[_Ratio]:
    rate, idle = "per_second", "idle_p50_ms"

    def at(latency: str, candidate: str, figure: str) -> tuple[str, str, str, str]:
        return "throughput", candidate, latency, figure

    yield _Ratio(
        "throughput at 0 ms, to the fastest peer's",
        "at least 1.1",
        at("0 ms", _OURS, rate),
        at("0 ms", BEST, rate),
    )
    for latency in ("50 ms", "200 ms"):
        ours, prepared = at(latency, _OURS, rate), at(latency, _PREPARED, rate)
        yield _Ratio(f"throughput at {latency}, to the bare prepared loop's", "at least 0.97", ours, prepared)
    stock = at("0 ms", "celery, threads", idle)
    yield _Ratio("idle p50, by name, to stock Celery's", "at most 1", at("0 ms", _OURS, idle), stock)
    for name in dict.fromkeys(name for what, name, _ in found if what == "ledger"):
        goal = "under 5" if name.startswith("list") else "at most 1.2"
        large, small = ("ledger", name, "1,000,000 records", "ms"), ("ledger", name, "1,000 records", "ms")
        yield _Ratio(f"{name} at 1,000,000 records, to 1,000", goal, large, small)
    for what, name, where in found:
        if what == "memory" and name.startswith(_OURS):
            _, _, early, *_, late = found[what, name, where]  # after two rounds, and at the end
            measure = f"memory of {name} after {late} deletions, to {early}"
            yield _Ratio(measure, "at most 1.04", (what, name, where, late), (what, name, where, early))


def _figure(found: Found, what: str, candidate: str, where: str, figure: str) -> float | None:
    if candidate != BEST:
        return found.get((what, candidate, where), {}).get(figure)
    others = [
        figures[figure]
        for (w, name, at), figures in found.items()
        if (w, at) == (what, where) and not name.startswith(("janitor", "bare"))
    ]
    best = max if figure.endswith("per_second") else min
    return best(others, default=None)
