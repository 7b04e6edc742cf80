"""A small process tree in the foreground: started in order, restarted if one dies, stopped in reverse."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from tasks.errors import JanitorError
from worker.local.private import opener

QUICK_FAILURE_SECONDS = 10.0
MOST_QUICK_FAILURES = 5
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.5, 10.0
_EVERY_SECONDS = 0.05
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


class NotReady(JanitorError):
    """A process did not come up, or does not stay up; the message ends with the last lines of its log."""


@dataclass(frozen=True)
class Spec:
    """One process. ready: polled before the next one starts. log: where its output goes; else it is inherited."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] | None = None
    ready: Callable[[], bool] | None = None
    ready_seconds: float = 30.0
    stop_seconds: float = 10.0
    log: Path | None = None


class Child:
    """A process of its own session, so that Ctrl-C reaches only us and its whole group can be ended."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.started_at = time.monotonic()
        with open(spec.log, "ab", opener=opener) if spec.log else nullcontext() as output:
            # On Linux the kernel ends the child when we die, even if we are killed.
            self.process = subprocess.Popen(  # noqa: S603 -- our own commands
                spec.argv, env=spec.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
                umask=0o077,  # what it writes is of no use to other users
                preexec_fn=_die_with_parent if _libc else None,  # noqa: PLW1509 -- one libc call, no locks
            )  # fmt: skip

    def wait_ready(self, stopping: Callable[[], object] = lambda: False) -> bool:
        """True once it is ready, False if a stop was asked for meanwhile; raises `NotReady`."""
        spec = self.spec
        while spec.ready is not None and not spec.ready():
            if stopping():
                return False
            if self.poll() is not None:
                raise NotReady(f"{spec.name} ended with {self.process.returncode}{_tail(spec.log)}")
            if time.monotonic() > self.started_at + spec.ready_seconds:
                raise NotReady(f"{spec.name} was not ready within {spec.ready_seconds:g}s{_tail(spec.log)}")
            time.sleep(_EVERY_SECONDS)
        return True

    def poll(self) -> int | None:
        """Its exit code, None while it runs; what it left behind is ended as soon as its end is seen."""
        if self.process.returncode is None and self.process.poll() is not None:
            self._end_group()
        return self.process.returncode

    def stop(self) -> int:
        """SIGTERM, SIGKILL for the whole group after `stop_seconds`; the exit code."""
        if (code := self.poll()) is not None:
            return code  # and its number may be another process's by now
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(self.spec.stop_seconds)
        self._end_group()
        return self.process.wait()

    def _end_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)


@contextmanager
def started(spec: Spec) -> Iterator[Child]:
    """One process for the length of a `with`, ready inside it; raises `NotReady`."""
    child = Child(spec)
    try:
        child.wait_ready()
        yield child
    finally:
        child.stop()


def without_keys(environ: Mapping[str, str]) -> dict[str, str]:
    """An environment without API keys: only workers need them."""
    return {name: value for name, value in environ.items() if not name.startswith("BFL_API_KEY")}


def supervise(specs: Sequence[Spec], *, on_event: Callable[[str], None]) -> int:
    """Run them until SIGINT, SIGTERM or SIGHUP; the exit code: 1 if one does not stay up. Main thread only."""
    signals: list[int] = []  # a `threading.Event` set by a signal handler while it is waited for can lock up
    before = {
        number: signal.signal(number, lambda number, _: signals.append(number))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN  # it may run under nohup
    }

    def tell(line: str) -> None:
        with suppress(OSError):  # the terminal may be gone; what runs is still stopped in order
            on_event(line)

    children: list[Child] = []
    watches: list[Iterator[Child]] = []
    try:
        for spec in specs:
            children.append(Child(spec))
            if not children[-1].wait_ready(lambda: signals):
                break
            watches.append(_kept_up(children[-1], tell))
            tell(f"{spec.name} runs (process {children[-1].process.pid})")
        while not signals:
            for n, watch in enumerate(watches):
                children[n] = next(watch)
            time.sleep(_EVERY_SECONDS)
        return 0
    except NotReady as error:
        tell(f"stopping: {error}")
        return 1
    finally:
        for child in reversed(children):
            child.stop()
            tell(f"{child.spec.name} stopped")
        for number, handler in before.items():
            signal.signal(number, handler)


def _kept_up(child: Child, on_event: Callable[[str], None]) -> Iterator[Child]:
    """At each step the process as it is now: one that has ended is started again after a pause.

    Raises `NotReady` if it does not stay up.
    """
    spec, quick_failures = child.spec, 0
    while True:
        while (code := child.poll()) is None:
            yield child
        ended_at = time.monotonic()
        quick_failures = quick_failures + 1 if ended_at - child.started_at < QUICK_FAILURE_SECONDS else 1
        if quick_failures >= MOST_QUICK_FAILURES:
            raise NotReady(
                f"{spec.name} ended {quick_failures} times within {QUICK_FAILURE_SECONDS:g}s of its start, "
                f"the last time with {code}{_tail(spec.log)}"
            )
        pause = min(_FIRST_PAUSE_SECONDS * 2 ** (quick_failures - 1), _LONGEST_PAUSE_SECONDS)
        on_event(f"{spec.name} ended with {code}, starting it again in {pause:g}s{_tail(spec.log)}")
        while time.monotonic() < ended_at + pause:
            yield child
        child = Child(spec)


def _die_with_parent() -> None:
    if _libc:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _tail(log: Path | None) -> str:
    text = log.read_text(encoding="utf-8", errors="replace") if log and log.exists() else ""
    last = " | ".join(text.strip().splitlines()[-2:])
    return f"; the end of {log}: {last}" if last else ""
