"""Whether a call may start now, and what a faulty answer means for the whole account.

A claim counts as permission for what starts within the second. Anything later asks the ledger again, which renews
the lease, takes the permit and marks the attempt as sent, or says why not.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

from tasks import errors
from tasks.backoff import Again
from tasks.bfl import BflReader
from tasks.ledger import Claimed, Ledger

CHECK_HOLDS_SECONDS = 1.0
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
    """The permission of one claimed deletion. clock: monotonic seconds."""

    def __init__(self, claimed: Claimed, ledger: Ledger, *, budget: timedelta, clock: Callable[[], float]) -> None:
        self._claimed = claimed
        self._ledger = ledger
        self._budget = budget
        self._clock = clock
        self._began = self._checked_at = clock()

    def now_ms(self) -> int:
        """Redis's clock, carried on from the claim by the monotonic one."""
        return self._claimed.claimed_at + _ms(timedelta(seconds=self._clock() - self._began))

    def pass_or_raise(self) -> None:
        """Return if a call may start now; raises `HandBack`, `Cancelled` or `NotNow`."""
        asked = self._clock()
        if asked - self._checked_at < CHECK_HOLDS_SECONDS:
            return
        verdict = self._ledger.check([self._claimed])[0]
        match verdict.word:
            case "go":
                self._checked_at = asked
            case "cancelled":
                raise Cancelled("withdrawn on request")
            case "full":
                raise NotNow("no permit is free")
            case "cooling":
                raise self._wait("the account cools down", verdict.wait)
            case word:
                raise HandBack("the lease ended" if word == "lost" else f"the account is {word}")

    def leave(self, attempts: str, unclear_at: int) -> None:
        """Before a wait: free the permit and keep what is known; the next call is checked anew."""
        if not self._ledger.wait(self._claimed, attempts, unclear_at):
            raise HandBack("the lease ended")
        self._checked_at = float("-inf")

    def pause(self, why: str) -> None:
        """Stop all deleting for this account until a person resumes it."""
        self._ledger.account(self._claimed.account, "pause", reason=why)

    def again(self, error: errors.ApiError) -> errors.JanitorError:
        """What to raise for an answer that asks to try again; a throttled account cools down for all workers."""
        if not isinstance(error, errors.Throttled):
            return Again(str(error), error.retry_after)
        first, longest = _COOL_DOWN.get(error.http_status or 0, _COOL_DOWN[429])
        cool_ms = self._ledger.account(
            self._claimed.account,
            "cool",
            reason=str(error),
            ms=_ms(error.retry_after) if error.retry_after is not None else None,
            step_ms=_ms(first),
            most_ms=_ms(longest),
        )
        return self._wait(str(error), timedelta(milliseconds=cool_ms))

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


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)
