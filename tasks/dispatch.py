"""What keeps things going in every worker, each second or so: wake-ups, ended leases, owed answers, pruning.

Any number of these may run at once: what a round does is decided in one script.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any

import structlog

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger, WakeUp

log = structlog.get_logger()


class Dispatcher:
    """A thread that runs a round every `every` until `stopping` is set.

    processes: a name for each worker process it speaks for. wake and answer: see `tasks.definitions`.
    """

    def __init__(
        self,
        *,
        ledger: Ledger,
        accounts: Iterable[str],
        max_concurrent: int,
        processes: Sequence[str],
        wake: Callable[[WakeUp], None],
        answer: Callable[[Sequence[str]], None],
        every: timedelta,
        stopping: Any,
    ) -> None:
        self.ledger = ledger
        self.accounts = tuple(accounts)
        self.max_concurrent = max_concurrent
        self.processes = processes
        self.wake = wake
        self.answer = answer
        self.every = every
        self.stopping = stopping
        self._registered = False

    def start(self) -> threading.Thread:
        thread = threading.Thread(target=self.run, name="dispatch", daemon=True)
        thread.start()
        return thread

    def run(self) -> None:
        down = False
        while not self.stopping.wait(self.every.total_seconds()):
            try:
                self.round()
                down = False
            except LedgerUnavailable as error:
                if not down:
                    log.warning("dispatch.waits", error=str(error))
                down = True
            except Exception:
                log.exception("dispatch.failed")

    def round(self) -> None:
        """One round; raises `LedgerUnavailable`."""
        if not self._registered:
            for account in self.accounts:
                self.ledger.account(account, "register", max_concurrent=self.max_concurrent)
            self._registered = True
        found = self.ledger.dispatch(self.processes, alive_for=max(self.every * 5, timedelta(seconds=10)))
        for wakeup in found.wakeups:
            self.wake(wakeup)
        if found.owed:
            self.answer(found.owed)
