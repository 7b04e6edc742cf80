"""Health: a process that does its work says so in a file, and `janitor health` reads the files.

The probe runs in each container every few seconds. So it imports the standard library alone and asks nobody: the
process itself has asked Redis. A file also says how long it counts, so that the probe needs no settings.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

KINDS = ("worker", "beat", "http")


@dataclass
class Heart:
    """Writes the file of this process. state_dir: JANITOR_STATE_DIR. counts: how long one beat says "healthy"."""

    kind: str
    state_dir: Path
    counts: timedelta
    _is_failing: bool = False

    def beat(self, trouble: str = "") -> None:
        """Say that the work goes on, or what is wrong. A file that cannot be written stops no work."""
        try:
            self._write(trouble)
        except OSError as error:
            if not self._is_failing:
                import structlog  # noqa: PLC0415 -- the probe has no use for it

                structlog.get_logger().warning(
                    "health.not_written", folder=str(self.state_dir), error=error.strerror
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def _write(self, trouble: str) -> None:
        pid = os.getpid()
        folder = self.state_dir / "health"
        file = folder / f"{_prefix(self.kind)}{pid}"
        if not file.exists():
            # Each closed to others: `mode` counts for the last part alone, and `janitor up` may use the first.
            self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            _forget_the_dead(folder, self.kind)
        until = time.monotonic() + self.counts.total_seconds()
        said = {"pid": pid, "started": _started(pid), "at": time.monotonic(), "until": until, "trouble": trouble}
        part = folder / f".{file.name}"
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as text:
            json.dump(said, text)
        part.replace(file)  # a probe reads the old one or the new one


def probe(kind: str, state_dir: Path) -> tuple[bool, str]:
    """Whether all processes of this kind on this machine or in this container are healthy, and one line.

    None at all is unhealthy.
    """
    now = time.monotonic()
    found = [said for file in _files(state_dir / "health", kind) if (said := _read(file)) and _is_alive(said)]
    if not found:
        return False, f"{kind}: none has reported in {state_dir / 'health'}: it is starting, or it does not run"
    bad = [line for said in found if (line := _trouble(said, now))]
    if bad:
        return False, f"{kind}: {'; '.join(bad)}"
    return True, f"{kind}: healthy ({len(found)} process{'es' if len(found) > 1 else ''})"


def _trouble(said: dict[str, object], now: float) -> str:
    if said["trouble"]:
        return f"process {said['pid']}: {said['trouble']}"
    at, until = float(str(said["at"])), float(str(said["until"]))
    if at <= now <= until:
        return ""
    return f"process {said['pid']}: no sign for {now - at:.0f}s, {until - at:.0f}s are allowed; does Redis answer?"


def _prefix(kind: str) -> str:
    # With the host: containers may share the folder, and each has a process 7.
    return f"{kind}.{socket.gethostname()}."


def _files(folder: Path, kind: str) -> list[Path]:
    with suppress(OSError):
        return [file for file in folder.iterdir() if file.name.startswith(_prefix(kind))]
    return []


def _read(file: Path) -> dict[str, object] | None:
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    is_ours = isinstance(said, dict) and {"pid", "started", "at", "until", "trouble"} <= said.keys()
    return said if is_ours else None


def _is_alive(said: dict[str, object]) -> bool:
    """False also if the number belongs to a later process."""
    pid = int(str(said["pid"]))
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is another user's, and lives
    return said["started"] == _started(pid)


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; empty if there is no /proc."""
    with suppress(OSError):
        # The name before the last parenthesis may hold anything.
        return (
            Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[19]
        )
    return ""


def _forget_the_dead(folder: Path, kind: str) -> None:
    for file in _files(folder, kind):
        said = _read(file)
        if said is None or not _is_alive(said):
            file.unlink(missing_ok=True)
