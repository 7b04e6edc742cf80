"""Whether a call may start now, and what a faulty answer means for the whole account.

A claim counts as permission for what starts within the second. Anything later asks the ledger again, which renews
the lease, takes the permit and marks the attempt as sent, or says why not.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from structlog.contextvars import bind_contextvars

from tasks import errors
from tasks.backoff import Again
from tasks.bfl import BflReader
from tasks.claims import Claimed, Verdict
from tasks.ledger import Ledger

CHECK_HOLDS_SECONDS = 1.0
_TRIES = 3
PROBE_EVERY = timedelta(seconds=30)
# (first, longest) cool-down where the API names no time: 402 has been seen as mere back-pressure.
_COOL_DOWN = {
    402: (timedelta(seconds=30), timedelta(minutes=5)),
    429: (timedelta(seconds=1), timedelta(minutes=1)),
}


class HandBack(errors.JanitorError):
    """The deletion goes back as it is: a stop, a pause, a parked account, a lost lease. Nothing is counted."""


class Cancelled(errors.JanitorError):
    """A person withdrew it while it was running."""


class NotNow(Again):
    """The account has to wait, not this deletion: no fault of its own is counted, no deadline held against it."""


class Gate:
    """The permission of one claimed deletion.

    clock: monotonic seconds; began: when the claim was asked for. checked: whether it counts as a check.
    """

    def __init__(
        self, claimed: Claimed, ledger: Ledger, *, budget: timedelta, clock: Callable[[], float], began: float,
        checked: bool = True,
    ) -> None:  # fmt: skip
        self._claimed = claimed
        self._ledger = ledger
        self._budget = budget
        self._clock = clock
        self._began = began
        self._held_at = self._cleared_at = began if checked else float("-inf")
        self._calls = 0

    def now_ms(self) -> int:
        """Redis's clock, carried on from the claim by the monotonic one."""
        return self._claimed.claimed_at + _ms(timedelta(seconds=self._clock() - self._began))

    def may_start(self) -> None:
        """Return if a look may start that a delete may follow; raises `HandBack`, `Cancelled` or `NotNow`."""
        if self._is_old(self._held_at):
            self._check(mark=False)

    def may_look(self) -> None:
        """Return if a look that decides may start now, cancelled or paused as it may be."""
        if self._is_old(self._held_at):
            self._check(look=True, mark=False)

    def may_delete(self, fingerprint: str, looked_at: int) -> None:
        """Return if a delete may start now: it is marked as sent, and what a look has just found is kept."""
        news = bool(fingerprint) and fingerprint != self._claimed.fingerprint
        self._claimed = self._claimed._replace(
            fingerprint=fingerprint or self._claimed.fingerprint, looked_at=looked_at or self._claimed.looked_at
        )
        if news or not self._claimed.calling or self._is_old(self._cleared_at):
            self._check(mark=True)
        self._calls += 1
        bind_contextvars(attempt=self._calls)

    def _is_old(self, checked_at: float) -> bool:
        return self._clock() - checked_at >= CHECK_HOLDS_SECONDS

    def _check(self, *, mark: bool, look: bool = False) -> None:
        for _ in range(_TRIES):
            asked = self._clock()
            verdict = self._ledger.check([self._claimed], look=look, mark=mark)[0]
            if verdict.word != "go":
                raise self._refusal(verdict)
            self._held_at = asked
            if mark:
                self._cleared_at, self._claimed = asked, self._claimed._replace(calling=1)
            if not self._is_old(asked):
                return
        # The answer came too late to count, as after a frozen process or on a slow Redis.
        raise HandBack("the ledger answers too slowly")

    def _refusal(self, verdict: Verdict) -> errors.JanitorError:
        match verdict.word:
            case "cancelled":
                return Cancelled("withdrawn on request")
            case "full":
                return NotNow("no permit is free")
            case "cooling":
                return self._wait("the account cools down", verdict.wait)
            case word:
                return HandBack("the lease ended" if word == "lost" else f"the account is {word}")

    def leave(self, attempts: str, unclear_at: int) -> None:
        """Before a wait: free the permit and keep what is known; the next call is checked anew."""
        if not self._ledger.wait(self._claimed, attempts, unclear_at):
            raise HandBack("the lease ended")
        self._held_at = self._cleared_at = float("-inf")
        self._claimed = self._claimed._replace(calling=0)

    def again(self, error: errors.ApiError) -> errors.JanitorError:
        """What to raise for an answer that asks to try again; a throttled account cools down for all workers."""
        if not isinstance(error, errors.Throttled):
            return Again(str(error), error.retry_after)
        return self._wait(str(error), cool_down(self._ledger, self._claimed.account, error))

    def probe(self, api: BflReader, error: errors.KeyRefused) -> None:
        """Is the key refused, or only this finetune? `my_finetunes` tells; a refused key parks the account.

        Returns where the key works; raises `HandBack` or `Again` otherwise.
        """
        try:
            api.my_finetunes()
        except errors.KeyRefused:
            self._ledger.account(self._claimed.account, "park", reason=str(error), probe_ms=_ms(PROBE_EVERY))
            raise HandBack(f"the account is parked: {error}") from None
        except errors.ApiError as unclear:
            raise self.again(unclear) from None

    def _wait(self, why: str, wait: timedelta) -> errors.JanitorError:
        """A short cool-down is waited out here, a longer one in the ledger, which starts nothing meanwhile."""
        left = self._budget - timedelta(seconds=self._clock() - self._began)
        return NotNow(why, wait) if wait < left else HandBack(why)


def cool_down(ledger: Ledger, account: str, error: errors.Throttled) -> timedelta:
    """The account waits, for all workers; for how long."""
    first, longest = _COOL_DOWN.get(error.http_status or 0, _COOL_DOWN[429])
    cool_ms = ledger.account(
        account,
        "cool",
        reason=str(error),
        ms=_ms(error.retry_after) if error.retry_after is not None else None,
        step_ms=_ms(first),
        most_ms=_ms(longest),
    )
    return timedelta(milliseconds=cool_ms)


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
