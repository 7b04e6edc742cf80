"""Runners: each is a Celery task that carries out deletions of one account, one at a time.

`Runners` is what the runners of one process share. A runner claims a deletion, carries it out, and writes what
came of it together with its next claim, in one round trip, until nothing more can be claimed. Nothing is claimed
that no runner is ready to do.
"""

import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog
from structlog.contextvars import bound_contextvars

from tasks import deletion
from tasks.api.client import BflClient
from tasks.deletion import Rules
from tasks.errors import HandBack, LedgerRefused, LedgerUnavailable
from tasks.ledger.store import Ledger
from tasks.ledger.types import Claim, Claimed, Finish, Finished, Progress
from tasks.text import one_line

log = structlog.get_logger()

RUN_FOR = timedelta(seconds=10)  # then a runner makes room for other accounts
_FINISH_EVERY_SECONDS = 0.5
_STOPPING_GRACE_SECONDS = 4.0
_SAID_EVERY_SECONDS = 60.0
_CALLS_BETWEEN_MARKS = 7  # at most: observations, the attempt, the question whether the key is refused
_EVENTS = {"back": "deletion.waits", "observed": "deletion.observed"}  # every other result is a final state


@dataclass
class _Held:
    """A claim in work. since: when it was claimed or last marked, on the monotonic clock."""

    claim: Claim
    since: float
    has_lapsed: bool = False


class Runners:
    """The runners of one process, at most `threads` at a time.

    clients: by account. wake: publishes a wake-up for an account. write_results: writes the Celery results of
    these deletions. Neither raises. stopping: set when the process is to stop. carry_out, clock: for tests; clock
    gives monotonic seconds.
    """

    def __init__(
        self, *, ledger: Ledger, clients: Mapping[str, BflClient], rules: Rules, threads: int,
        wake: Callable[[str], object], write_results: Callable[[Sequence[str]], None], stopping: threading.Event,
        carry_out: Callable[..., tuple[Finish, Progress]] = deletion.carry_out,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.ledger = ledger
        self.clients = clients
        self.rules = rules
        self.stopping = stopping
        self.wake = wake
        self.write_results = write_results
        self._carry_out = carry_out
        self._clock = clock
        self._free = list(range(threads))  # slots: each is the right to be a runner
        self._running: Counter[str] = Counter()  # runners by account
        self._waiting: dict[str, None] = {}  # accounts that found no slot free, in order
        self._held: dict[int, _Held] = {}  # by slot
        self._lock = threading.Lock()
        self._say_no_key_at = 0.0
        self._give_up_at: float | None = None
        self._renewing = False

    def run(self, account: str, *, begun: bool) -> None:
        """Be a runner for `account`, if a slot is free; never raises. begun: whether a wake-up led here."""
        if account not in self.clients:
            self._say_no_key(account)
            return
        slot = self._take_slot(account)
        if slot is None:
            return
        to_wake: list[str] = []
        try:
            to_wake = self._work(slot, account, begun=begun)
        except LedgerUnavailable as error:
            log.warning("runner.stopped", account=account, error=str(error))  # maintenance starts another one
        except Exception:
            log.exception("runner.failed", account=account)
        finally:
            for one in to_wake + self._give_back(slot, account):
                self.wake(one)

    def sleep(self, seconds: float) -> None:
        """Wait; raises `HandBack` as soon as the process is to stop."""
        if self.stopping.is_set() or (seconds > 0 and self.stopping.wait(seconds)):
            raise HandBack("the worker is stopping")

    def renew(self) -> None:
        """Renew the leases of runners that are within their time; beyond it a lease lapses. Never raises."""
        most = self.rules.retry_budget + _CALLS_BETWEEN_MARKS * self.ledger.terms.call_deadline
        now, current = self._clock(), []
        for held in list(self._held.values()):
            if now - held.since <= most.total_seconds():
                current.append(held)
            elif not held.has_lapsed:
                held.has_lapsed = True
                log.error("lease.lapses", deletion=held.claim.id, seconds=round(now - held.since))
        try:
            lost = self.ledger.renew(held.claim for held in current) if current else set()
        except Exception as error:  # the thread that renews must go on, whatever it is
            log.warning("leases.not_renewed", leases=len(current), error=str(error))
            return
        for held in current:
            # One that is finished meanwhile is not lost.
            if held.claim.id in lost and held in self._held.values():
                log.warning("lease.lost", deletion=held.claim.id)

    def _work(self, slot: int, account: str, *, begun: bool) -> list[str]:
        """Carry out what can be claimed; the accounts to wake: none if nothing was left to claim."""
        if self.stopping.is_set():
            return []  # a wake-up from here could come back here; other workers' maintenance publishes one
        until = self._clock() + RUN_FOR.total_seconds()
        claimed = self._held_now(slot, self.ledger.claim(account, _new_token(), begun=begun))
        while claimed.claim:
            claim = claimed.claim
            if claimed.more:
                self.wake(account)
            with bound_contextvars(deletion=claim.id, finetune=claim.finetune_id, account=account):
                finish, progress = self._carried_out(slot, claim)
                waiting = self._next_waiting(account)
                ends = bool(waiting) or self.stopping.is_set() or self._clock() >= until
                finished, claimed = self._finish(slot, claim, finish, progress, claim_next=not ends)
            if finished and finished.due:
                self.write_results([claim.id])
            if ends:
                return [*waiting, account]
        return [account] if claimed.more else []

    def _held_now(self, slot: int, claimed: Claimed) -> Claimed:
        """Note what the runner of this slot holds, so that its lease is renewed."""
        for id_ in claimed.dropped:
            log.error("deletion.dropped", deletion=id_, message="it has no readable record")
        if claimed.claim is None:
            self._held.pop(slot, None)
            return claimed
        self._held[slot] = _Held(claimed.claim, self._clock())
        with self._lock:
            is_first, self._renewing = not self._renewing, True
        if is_first:
            threading.Thread(target=self._keep_renewing, name="leases", daemon=True).start()
        return claimed

    def _carried_out(self, slot: int, claim: Claim) -> tuple[Finish, Progress]:
        began, held = self._clock(), self._held[slot]

        def on_mark() -> None:
            held.since = self._clock()

        finish, progress = self._carry_out(
            claim, api=self.clients[claim.account], ledger=self.ledger, rules=self.rules, sleep=self.sleep,
            on_mark=on_mark,
        )  # fmt: skip
        if finish.pause:
            log.error("account.paused", reason=finish.pause)
        log.info(
            _EVENTS.get(finish.result, "deletion.finished"), state=str(finish.result), message=finish.message,
            seconds=round(self._clock() - began, 3),
        )  # fmt: skip
        return finish, progress

    def _finish(
        self, slot: int, claim: Claim, finish: Finish, progress: Progress, *, claim_next: bool
    ) -> tuple[Finished | None, Claimed]:
        """Write what came of a claim, and claim the next deletion.

        However long Redis is away: a late confirmation or alarm still counts. A stopping worker waits for four
        seconds; then the deletion is reclaimed when its lease ends.
        """
        token, is_away = _new_token() if claim_next else None, False
        while True:
            try:
                finished, claimed = self.ledger.finish(claim, finish, progress, token)
            except LedgerRefused:
                log.exception("finish.refused")
                self._held.pop(slot, None)
                # The next claim may have been made; asked again, it is the same one.
                again = self.ledger.claim(claim.account, token) if token else Claimed()
                return None, self._held_now(slot, again)
            except LedgerUnavailable as error:
                if not is_away:
                    log.warning("finish.waits", error=str(error))
                is_away = True
                if self._is_given_up():
                    log.error("finish.not_written", state=str(finish.result), message=finish.message)
                    return None, Claimed()
                time.sleep(_FINISH_EVERY_SECONDS)
            else:
                if finished.word != "done":
                    log.warning("finish.late", word=finished.word, state=str(finish.result))
                return finished, self._held_now(slot, claimed)

    def _is_given_up(self) -> bool:
        """Whether a stopping process has waited for Redis long enough: once for all its runners."""
        if not self.stopping.is_set():
            return False
        with self._lock:
            self._give_up_at = self._give_up_at or self._clock() + _STOPPING_GRACE_SECONDS
        return self._clock() >= self._give_up_at

    def _take_slot(self, account: str) -> int | None:
        with self._lock:
            if not self._free:
                self._waiting[account] = None
                return None
            self._waiting.pop(account, None)
            self._running[account] += 1
            return self._free.pop()

    def _give_back(self, slot: int, account: str) -> list[str]:
        """Make room; an account that waits for it, if there is one."""
        with self._lock:
            self._held.pop(slot, None)
            self._running[account] -= 1
            self._free.append(slot)
            waiting = [other for other in self._waiting if other != account][:1]
            for other in waiting:
                del self._waiting[other]
        return waiting

    def _next_waiting(self, account: str) -> list[str]:
        """An account for which a runner of this one makes room: it has none here, or at least two fewer."""
        with self._lock:
            here = self._running[account]
            for other in self._waiting:
                there = self._running[other]
                if other != account and (there == 0 or here > there + 1):
                    del self._waiting[other]
                    return [other]
        return []

    def _keep_renewing(self) -> None:
        while True:
            time.sleep(self.ledger.terms.lease.total_seconds() / 3)
            self.renew()

    def _say_no_key(self, account: str) -> None:
        now = self._clock()
        if now >= self._say_no_key_at:
            self._say_no_key_at = now + _SAID_EVERY_SECONDS
            log.warning("runner.no_key", account=one_line(account))


def _new_token() -> str:
    """The name of a claim, asked for once or again. No claim of another process, or an earlier one, has it."""
    return uuid.uuid4().hex
