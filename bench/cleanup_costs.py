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
_POLICY = "[[policy]]\nname = 'old'\nolder_than = '30d'\nkeep_newest = {kept}\n"


def plans(place: Place, finetunes: int) -> dict[str, float]:
    """Seconds of each plan, and the most memory that it had; ten of the finetunes are to be deleted."""
    place.emptied()
    policies = place.logs / "policies.toml"
    policies.write_text(_POLICY.format(kept=finetunes - 10), encoding="utf-8")
    with Sandbox(keys={"bench"}, latency_seconds=LATENCY.total_seconds()) as api:
        for n in range(finetunes):
            api.create(f"finetune-{n:06}")
        found: dict[str, float] = {}
        for what in ("first_sight", "seen_before"):
            found[f"{what}_s"], found[f"{what}_mib"] = _planned(api.url, policies)
        return found


def _planned(api_url: str, policies: Path) -> tuple[float, float]:
    argv = [sys.executable, "-m", "worker.cli", "cleanup", "plan", "--file", str(policies), "--json"]
    env = os.environ | {"BFL_API_URL": api_url}
    began = time.perf_counter()
    with subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, argv)
    return time.perf_counter() - began, usage.ru_maxrss / 1024
