"""A plan for many finetunes, by the command, at the shipped limits: on first sight, and when all were seen."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from bench.lives import Place
from worker.sandbox.api import Sandbox

LATENCY = timedelta(milliseconds=20)
_LONGEST_SECONDS = 600.0
_POLICY = "[[policy]]\nname = 'old'\nolder_than = '30d'\nkeep_newest = {kept}\n"


def plans(place: Place, finetunes: int) -> dict[str, float]:
    """Seconds of each plan; ten of the finetunes are to be deleted."""
    place.emptied()
    policies = place.logs / "policies.toml"
    policies.write_text(_POLICY.format(kept=finetunes - 10), encoding="utf-8")
    with Sandbox(keys={"bench"}, latency_seconds=LATENCY.total_seconds()) as api:
        for n in range(finetunes):
            api.create(f"finetune-{n:06}")
        return {f"{what}_s": _timed(api.url, policies) for what in ("first_sight", "seen_before")}


def _timed(api_url: str, policies: Path) -> float:
    argv = [sys.executable, "-m", "worker.cli", "cleanup", "plan", "--file", str(policies), "--json"]
    env = os.environ | {"BFL_API_URL": api_url}
    began = time.perf_counter()
    subprocess.run(argv, env=env, stdout=subprocess.DEVNULL, check=True, timeout=_LONGEST_SECONDS)
    return time.perf_counter() - began
