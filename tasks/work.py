"""The loop of a wake-up: claim what can start, run it on threads, conclude in groups, until nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import structlog
from structlog.contextvars import bound_contextvars

from tasks.bfl import BflClient
from tasks.claims import Claimed
from tasks.deletion import Run
from tasks.errors import ApiError, LedgerRefused, LedgerUnavailable
from tasks.gate import CHECK_HOLDS_SECONDS, HandBack
from tasks.ledger import Ledger
from tasks.outcomes import Outcome, Rules
from tasks.records import State
from tasks.shift import MOST_AT_ONCE, Done, Ready, Shift

log = structlog.get_logger()

WORK_FOR = timedelta(seconds=10)
_MOMENT = timedelta(seconds=1)
_CONCLUDE_EVERY_SECONDS = 0.5
_KEPT_SECONDS = 5.0  # several rounds of dispatch
_STOPPING_GRACE = timedelta(seconds=4)


class Crew:
    """The threads of one process. answer: writes the Celery results of these requests.

    slots: how many wake-ups Celery works on at once here; while one is free, nobody waits for the others to end.
    """

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
        slots: int = 1,
    ) -> None:
        self.ledger = ledger
        self.clients = clients
        self.rules = rules
        self.owner = owner
        self.threads = threads
        self.answer = answer
        self.stopping = stopping
        self.slots = slots
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="deletion")
        self._busy = 0
        self._shifts: list[Shift] = []
        self._lock = threading.Lock()
        self._renewing = False
        self._doubt = 0.0
        self._patient_until = 0.0
        self._in_vain: dict[str, float] = {}  # accounts that found no thread free: how long one is kept

    def work(self, account: str, wakeup_id: str | None = None) -> bool:
        """Work off what is due for `account`; true where more was left when the time was over."""
        if account not in self.clients:
            log.warning("work.no_key", account=account)
            self.ledger.claim(
                account, self.owner, 0, begun=wakeup_id
            )  # begun all the same: dispatch sends another
            return False
        shift = Shift(account)
        with self._lock:
            self._shifts.append(shift)
        try:
            return self._work(account, wakeup_id, shift)
        finally:
            # Whatever went wrong here, nothing is begun and no lease renewed that nobody would conclude.
            shift.ready.clear()
            with self._lock:
                self._shifts.remove(shift)

    def _work(self, account: str, begun: str | None, shift: Shift) -> bool:
        until = time.monotonic() + WORK_FOR.total_seconds()
        while True:
            in_time = time.monotonic() < until or len(self._shifts) < self.slots
            open_for_more = in_time and not self.stopping.is_set()
            if open_for_more:
                self._start(shift, account, begun)
            begun = None
            late = time.monotonic() - shift.oldest() >= CHECK_HOLDS_SECONDS
            if late or not (shift.at_work and open_for_more):
                self._hand_back(shift)
            if not shift.held:
                return not open_for_more
            self._conclude(shift, shift.collect())

    def _start(self, shift: Shift, account: str, begun: str | None) -> None:
        asked = time.monotonic()
        try:
            claimed = self._claim(shift, account, begun)
        except LedgerUnavailable as error:
            if not shift.held:
                raise
            log.warning("claim.waits", account=account, error=str(error))
            shift.hurry()
            return
        shift.ready.extend((one, asked) for one in claimed if not one.permit)
        for one in claimed:
            if one.permit:
                self._pool.submit(self._walk, shift, one, asked)

    def _claim(self, shift: Shift, account: str, begun: str | None) -> list[Claimed]:
        ahead = max(0, shift.ahead - len(shift.ready))
        with self._lock:
            free = self.threads - self._busy
            if free <= 0 and not any(one.at_work for one in self._shifts if one.account == account):
                self._in_vain[account] = time.monotonic() + _KEPT_SECONDS
            want = min(free - self._kept_from(account), MOST_AT_ONCE)
            if want <= 0 and not ahead and begun is None:
                shift.hurry()
                return []
            claimed, why = self.ledger.claim(
                account, self.owner, max(0, want), begun=begun, looks_first=self.rules.look_first == "always",
                ahead=min(ahead, MOST_AT_ONCE), at_work=shift.at_work,
            )  # fmt: skip
            begin = sum(1 for one in claimed if one.permit)
            shift.hurry(full=why == "full", begun=begin > 0)
            self._busy += begin
            shift.at_work += begin
            if begin:
                self._in_vain.pop(account, None)
            shift.held.update(((one.kind, one.id), one) for one in claimed)
        self._keep_renewing()
        return claimed

    def _walk(self, shift: Shift, claimed: Claimed, asked: float) -> None:
        """One thread, one permit: it goes on from one to the next as long as there is one."""
        following: Ready | None = (claimed, asked)
        permit = claimed.permit
        while following:
            claimed, asked = following
            following, result = None, None
            try:
                result = self._carry_out(claimed._replace(permit=permit), asked)
                if result and result["pause"]:
                    self._doubt = time.monotonic()  # the other threads ask before they go on, too
                if result and _leaves_room(result) and not self._is_to_leave(shift):
                    following = shift.next()
                    result["goes_on"] = following[0].kind if following else None
            finally:
                if not following:
                    with self._lock:
                        self._busy -= 1
                        shift.at_work -= 1
                shift.done.append((claimed, result))
                if not following or len(shift.ready) <= shift.ahead // 2 or len(shift.done) >= MOST_AT_ONCE:
                    shift.news.set()

    def _is_to_leave(self, shift: Shift) -> bool:
        return self.stopping.is_set() or self.threads - self._busy < self._kept_from(shift.account)

    def _kept_from(self, account: str) -> int:
        """Threads kept for other accounts, until their next wake-up: one with much to do would never leave any."""
        now = time.monotonic()
        waiting = [other for other, until in list(self._in_vain.items()) if now < until]
        return 0 if account in waiting else len(waiting)

    def _carry_out(self, claimed: Claimed, asked: float) -> dict[str, Any] | None:
        # Bound here, said on every line of this thread until it is done; `attempt` is counted by the gate.
        about = {"deletion": claimed.id, "finetune": claimed.finetune_id, "account": claimed.account}
        began = time.monotonic()
        with bound_contextvars(**about, attempt=0):
            if claimed.kind == "probe":
                self._probe(claimed, self.clients[claimed.account])
                return None
            if claimed.kind == "look" and not self._still_holds(asked):
                return self._not_begun(claimed, asked)
            run = self._run(claimed, asked)
            outcome = run.first_look() if claimed.kind == "look" else run.run()
            _log(claimed, outcome, time.monotonic() - began)
            return run.input(outcome)

    def _run(self, claimed: Claimed, asked: float) -> Run:
        # Where something has made one wait since the claim, the account may have been stopped: it is asked.
        return Run(
            claimed, api=self.clients[claimed.account], ledger=self.ledger, rules=self.rules, sleep=self.sleep,
            began=asked, checked=asked > self._doubt,
        )  # fmt: skip

    def _still_holds(self, asked: float) -> bool:
        """A first look has only its claim to say that the account may be called; a delete is checked anew."""
        return asked > self._doubt and time.monotonic() - asked < CHECK_HOLDS_SECONDS

    def _hand_back(self, shift: Shift) -> None:
        """What was claimed ahead, where no thread is to go on to it: none is left, time is over, a stop came.

        Or none came to it within the second that its claim holds: in the ledger it stands before nobody else.
        """
        while following := shift.next():
            shift.done.append((following[0], self._not_begun(*following)))

    def _not_begun(self, claimed: Claimed, asked: float) -> dict[str, Any]:
        look = claimed.kind == "look"
        outcome = Outcome(None if look else State.QUEUED, "not begun", delay=_MOMENT if look else None)
        return self._run(claimed, asked).input(outcome)

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
        if seconds:
            self._doubt = time.monotonic()
        if self.stopping.wait(seconds) if seconds else self.stopping.is_set():
            raise HandBack("the worker is stopping")

    def _conclude(self, shift: Shift, done: list[Done]) -> None:
        outcomes = [outcome for _, outcome in done if outcome is not None]
        owed = self._write(outcomes) if outcomes else []
        with self._lock:
            for claimed, _ in done:
                shift.held.pop((claimed.kind, claimed.id), None)
        if owed:
            self._answer(owed)

    def _write(self, outcomes: list[dict[str, Any]]) -> list[str]:
        """Write outcomes, however long Redis is away; a stopping worker leaves them to the next one's look."""
        while True:
            if self.stopping.is_set():
                # Once for all groups of outcomes, not for each.
                self._patient_until = self._patient_until or time.monotonic() + _STOPPING_GRACE.total_seconds()
            try:
                owed = self.ledger.conclude(outcomes)[1]
                self._patient_until = 0.0
                return owed
            except LedgerRefused:
                # One of them is not fit to be written: the others must not wait for it. Its lease will end.
                log.exception("conclude.refused", outcomes=len(outcomes))
                return [] if len(outcomes) == 1 else [id_ for one in outcomes for id_ in self._write([one])]
            except LedgerUnavailable as error:
                log.warning("conclude.waits", outcomes=len(outcomes), error=str(error))
                if 0.0 < self._patient_until <= time.monotonic():
                    return []
                time.sleep(_CONCLUDE_EVERY_SECONDS)

    def _answer(self, owed: Sequence[str]) -> None:
        try:
            self.answer(owed)
        except Exception as error:
            log.warning("answers.not_written", requests=len(owed), error=str(error))

    def _keep_renewing(self) -> None:
        with self._lock:
            if self._renewing or not any(shift.held for shift in self._shifts):
                return
            self._renewing = True
        threading.Thread(target=self._renew, name="leases", daemon=True).start()

    def _renew(self) -> None:
        """One thread renews all leases of the process, as long as it holds any."""
        while True:
            time.sleep(self.ledger.terms.lease.total_seconds() / 3)
            with self._lock:
                held = [claimed for shift in self._shifts for claimed in shift.held.values()]
                if not held:
                    self._renewing = False
                    return
            try:
                self.ledger.renew(claimed for claimed in held if claimed.kind == "delete")
            except Exception as error:  # this thread must live on, whatever it is
                log.warning("leases.not_renewed", leases=len(held), error=str(error))


def _leaves_room(result: dict[str, Any]) -> bool:
    """Whether a thread may go on under its permit: what was sent back may have lost it, or met a stop."""
    return result["state"] != State.QUEUED and result["delay_ms"] is None and not result["pause"]


def _log(claimed: Claimed, outcome: Outcome, seconds: float) -> None:
    log.info(
        "deletion.looked" if claimed.kind == "look" else "deletion.carried_out",
        state=outcome.state.value if outcome.state else None,
        message=outcome.message,
        seconds=round(seconds, 3),
    )
