"""What keeps things going in every worker, each second or so: wake-ups, ended leases, owed answers, pruning.

Any number of these may run at once: what a round does is decided in one script.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog

from tasks.claims import WakeUp
from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True)
class Dispatcher:
    """A thread that runs a round every `every` until `stopping` is set.

    accounts: those with a key here, each with its calls at once. processes: a name for each worker process.
    wake and answer: see `tasks.definitions`.
    """

    ledger: Ledger
    accounts: Mapping[str, int]
    processes: Sequence[str]
    wake: Callable[[WakeUp], None]
    answer: Callable[[Sequence[str]], None]
    every: timedelta
    stopping: Any

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.run, name="dispatch", daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        down = stopped = False
        while not stopped:
            try:
                self.round()
                down = False
            except LedgerUnavailable as error:
                if not down:
                    log.warning("dispatch.waits", error=str(error))
                down = True
            except Exception:
                log.exception("dispatch.failed")
            stopped = self.stopping.wait(self.every.total_seconds())

    def round(self) -> None:
        """One round; raises `LedgerUnavailable`."""
        alive_for = max(self.every * 5, timedelta(seconds=10))
        found = self.ledger.dispatch(self.processes, alive_for=alive_for, accounts=self.accounts)
        for wakeup in found.wakeups:
            self.wake(wakeup)
        if found.owed:
            self.answer(found.owed)
