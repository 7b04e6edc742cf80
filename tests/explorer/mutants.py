"""A copy of the package with one mutation in it, played in a process of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.explorer.mutations import Mutation

ROOT = Path(__file__).resolve().parents[2]
_HERE = "import sys; sys.path[:0] = [{copy!r}, {root!r}]; from tests.explorer.replay import main; sys.exit(main(*sys.argv[1:]))"


def changed(mutation: Mutation) -> str:
    """The text of the mutation's file with the change. Raises `ValueError` if the code that it changes has moved."""
    text = (ROOT / "tasks" / mutation.file).read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        raise ValueError(
            f"{mutation.name}: stands {text.count(mutation.old)} times in {mutation.file}: {mutation.old!r}"
        )
    return text.replace(mutation.old, mutation.new)


def mutated(mutation: Mutation, folder: Path) -> Path:
    """A folder with a mutated copy of `tasks`."""
    shutil.copytree(ROOT / "tasks", folder / "tasks", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tasks" / mutation.file).write_text(changed(mutation), encoding="utf-8")
    return folder


def play_mutant(folder: Path, redis_url: str, *scenarios: str) -> subprocess.CompletedProcess[str]:
    """Status 1 if a scenario failed, 0 if the mutant survived."""
    code = _HERE.format(copy=str(folder), root=str(ROOT))
    env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-c", code, redis_url, *scenarios]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=300, check=False, cwd=folder)
