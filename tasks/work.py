"""The loop of a wake-up: claim what can start, run it on threads, conclude in groups, until nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from queue import Empty, SimpleQueue
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from tasks.bfl import BflClient
from tasks.claims import Claimed
from tasks.deletion import Run
from tasks.errors import ApiError, LedgerRefused, LedgerUnavailable
from tasks.gate import HandBack
from tasks.ledger import Ledger
from tasks.outcomes import Outcome, Rules

log = structlog.get_logger()

MOST_AT_ONCE = 100
WORK_FOR = timedelta(seconds=10)
_CONCLUDE_EVERY_SECONDS = 0.5
_STOPPING_GRACE = timedelta(seconds=4)


_Done = tuple[Claimed, dict[str, Any] | None]


@dataclass
class Shift:
    """One wake-up's work: what is in hand, and what has come back."""

    in_hand: int = 0
    claims: list[Claimed] = field(default_factory=list)
    done: SimpleQueue[_Done] = field(default_factory=SimpleQueue)


class Crew:
    """The threads of one process. answer: writes the Celery results of these requests."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        clients: Mapping[str, BflClient],
        rules: Rules,
        owner: str,
        threads: int,
        answer: Callable[[Sequence[str]], None],
        stopping: Any,
    ) -> None:
        self.ledger = ledger
        self.clients = clients
        self.rules = rules
        self.owner = owner
        self.threads = threads
        self.answer = answer
        self.stopping = stopping
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deletion")
        self._busy = 0
        self._held: dict[str, Claimed] = {}
        self._lock = threading.Lock()
        self._renewing = False

    def work(self, account: str, wakeup_id: str | None = None) -> bool:
        """Work off what is due for `account`; true where more was left when the time was over."""
        if account not in self.clients:
            log.warning("work.no_key", account=account)
            self.ledger.claim(
                account, self.owner, 0, begun=wakeup_id
            )  # begun all the same: dispatch sends another
            return False
        shift = Shift()
        try:
            return self._work(account, wakeup_id, shift)
        finally:
            # Whatever went wrong here, no lease is renewed that nobody would conclude.
            with self._lock:
                for claimed in shift.claims:
                    self._held.pop(_hold(claimed), None)

    def _work(self, account: str, begun: str | None, shift: Shift) -> bool:
        until = time.monotonic() + WORK_FOR.total_seconds()
        while True:
            open_for_more = time.monotonic() < until and not self.stopping.is_set()
            if open_for_more:
                self._start(shift, account, begun)
            begun = None
            if not shift.in_hand:
                return not open_for_more
            self._conclude(_collect(shift))

    def _start(self, shift: Shift, account: str, begun: str | None) -> None:
        asked = time.monotonic()
        try:
            claimed = self._claim(account, begun)
        except LedgerUnavailable as error:
            if not shift.in_hand:
                raise
            log.warning("claim.waits", account=account, error=str(error))
            return
        shift.claims += claimed
        for one in claimed:
            shift.in_hand += 1
            self._pool.submit(self._carry_out, one, shift, asked)

    def _claim(self, account: str, begun: str | None) -> list[Claimed]:
        with self._lock:
            want = min(self.threads - self._busy, MOST_AT_ONCE)
            if want <= 0 and begun is None:
                return []
            looks_first = self.rules.look_first == "always"
            claimed, _ = self.ledger.claim(account, self.owner, want, begun=begun, looks_first=looks_first)
            self._busy += len(claimed)
            self._held.update((_hold(one), one) for one in claimed)
        self._keep_renewing()
        return claimed

    def _carry_out(self, claimed: Claimed, shift: Shift, asked: float) -> None:
        # Bound here, said on every line of this thread until it is done; `attempt` is counted by the gate.
        about = {"deletion": claimed.id, "finetune": claimed.finetune_id, "account": claimed.account}
        with bound_contextvars(**about, attempt=0):
            self._carry_out_bound(claimed, shift, asked)

    def _carry_out_bound(self, claimed: Claimed, shift: Shift, asked: float) -> None:
        result: dict[str, Any] | None = None
        try:
            client = self.clients[claimed.account]
            if claimed.kind == "probe":
                self._probe(claimed, client)
            else:
                run = Run(claimed, api=client, ledger=self.ledger, rules=self.rules, sleep=self.sleep, began=asked)
                outcome = run.first_look() if claimed.kind == "look" else run.run()
                result = run.input(outcome)
                _log(claimed, outcome, time.monotonic() - asked)
        finally:
            with self._lock:
                self._busy -= 1
            shift.done.put((claimed, result))

    def _probe(self, claimed: Claimed, client: BflClient) -> None:
        """Does the parked account's key work again?"""
        try:
            client.my_finetunes()
            self.ledger.account(claimed.account, "unpark")
            log.info("account.unparked")
        except (ApiError, LedgerUnavailable) as error:
            log.warning("account.parked", error=str(error))
        finally:
            self.ledger.release(claimed.account, claimed.id)

    def sleep(self, seconds: float) -> None:
        """Wait; raises `HandBack` as soon as the process is to stop."""
        if self.stopping.wait(seconds):
            raise HandBack("the worker is stopping")

    def _conclude(self, done: list[_Done]) -> None:
        outcomes = [outcome for _, outcome in done if outcome is not None]
        owed = self._write(outcomes) if outcomes else []
        with self._lock:
            for claimed, _ in done:
                self._held.pop(_hold(claimed), None)
        if owed:
            self._answer(owed)

    def _write(self, outcomes: list[dict[str, Any]]) -> list[str]:
        """Write outcomes, however long Redis is away; a stopping worker leaves them to the next one's look."""
        until = None
        while until is None or time.monotonic() < until:
            if self.stopping.is_set() and until is None:
                until = time.monotonic() + _STOPPING_GRACE.total_seconds()
            try:
                return self.ledger.conclude(outcomes)[1]
            except LedgerRefused:
                # One of them is not fit to be written: the others must not wait for it. Its lease will end.
                log.exception("conclude.refused", outcomes=len(outcomes))
                return [] if len(outcomes) == 1 else [id_ for one in outcomes for id_ in self._write([one])]
            except LedgerUnavailable as error:
                log.warning("conclude.waits", outcomes=len(outcomes), error=str(error))
                time.sleep(_CONCLUDE_EVERY_SECONDS)
        return []

    def _answer(self, owed: Sequence[str]) -> None:
        try:
            self.answer(owed)
        except Exception as error:
            log.warning("answers.not_written", requests=len(owed), error=str(error))

    def _keep_renewing(self) -> None:
        with self._lock:
            if self._renewing or not self._held:
                return
            self._renewing = True
        threading.Thread(target=self._renew, name="leases", daemon=True).start()

    def _renew(self) -> None:
        """One thread renews all leases of the process, as long as it holds any."""
        while True:
            time.sleep(self.ledger.terms.lease.total_seconds() / 3)
            with self._lock:
                held = [claimed for claimed in self._held.values() if claimed.kind == "delete"]
                if not self._held:
                    self._renewing = False
                    return
            try:
                self.ledger.renew(held)
            except Exception as error:  # this thread must live on, whatever it is
                log.warning("leases.not_renewed", leases=len(held), error=str(error))


def _collect(shift: Shift) -> list[_Done]:
    """What has come back, at least one unless a second passes without."""
    done = []
    with suppress(Empty):
        done.append(shift.done.get(timeout=1))
        while len(done) < MOST_AT_ONCE:
            done.append(shift.done.get_nowait())
    shift.in_hand -= len(done)
    return done


def _hold(claimed: Claimed) -> str:
    return f"{claimed.kind}:{claimed.account}:{claimed.id}"


def _log(claimed: Claimed, outcome: Outcome, seconds: float) -> None:
    log.info(
        "deletion.looked" if claimed.kind == "look" else "deletion.carried_out",
        state=outcome.state.value if outcome.state else None,
        message=outcome.message,
        seconds=round(seconds, 3),
    )
