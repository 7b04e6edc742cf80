"""How long to wait before trying again: full jitter within a budget, and what the API itself asks for."""

import math
import random
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay

from tasks.api.moments import http_date
from tasks.errors import JanitorError

T = TypeVar("T")
LONGEST_RETRY_AFTER = timedelta(hours=1)
# (first, longest) cool-down of an account if the API names no time, by HTTP status; 429's for any other. 402 has
# been seen as mere back-pressure (public reports).
COOL_DOWN = {
    402: (timedelta(seconds=30), timedelta(minutes=5)),
    429: (timedelta(seconds=1), timedelta(minutes=1)),
}
_IN_THREAD = (timedelta(seconds=0.5), timedelta(seconds=8))  # (first, longest) wait before jitter
_IN_LEDGER = (timedelta(seconds=30), timedelta(hours=1))


class Again(JanitorError):
    """Not now: try again, after `wait` if the API named a time."""

    def __init__(self, why: str, wait: timedelta | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class NotNow(Again):
    """The account has to wait, not this deletion: its own back-off does not grow.

    If `wait` is longer than the budget, the ledger waits: it starts nothing for the account meanwhile.
    """


def retried(once: Callable[[], T], budget: timedelta, sleep: Callable[[float], None]) -> T:
    """The result of `once`, which is called again while it raises `Again`.

    budget: for all tries and waits together; a wait that would pass it does not start, and the last `Again` is
    raised. sleep: waits some seconds.
    """
    again = retry_if_exception_type(Again)
    return Retrying(retry=again, wait=_wait, stop=stop_before_delay(budget), sleep=sleep, reraise=True)(once)


def long_delay(backoffs: int, asked: timedelta | None = None) -> timedelta:
    """How long a deletion waits in the ledger for the n-th time, once the budget is used up; full jitter."""
    if asked is not None and asked > _IN_LEDGER[0]:
        return asked
    return max(_jittered(backoffs, *_IN_LEDGER), asked or timedelta(seconds=1))


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """`Retry-After` (RFC 9110, 10.2.3): seconds, or a date measured against the answer's own `Date`.

    None if it is absent or makes no sense (`nan`, negative, no date); at most an hour.
    """
    text, longest = headers.get("Retry-After", ""), LONGEST_RETRY_AFTER.total_seconds()
    try:
        seconds = float(text)
    except ValueError:
        then, now = http_date(text), http_date(headers.get("Date", "")) or datetime.now(UTC)
        return timedelta(seconds=min(max((then - now).total_seconds(), 0), longest)) if then else None
    return timedelta(seconds=min(seconds, longest)) if 0 <= seconds < math.inf else None


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, Again) else None
    # A `Retry-After` of 0 does not shorten the back-off.
    return max(_jittered(state.attempt_number - 1, *_IN_THREAD), asked or timedelta(0)).total_seconds()


def _jittered(backoffs: int, first: timedelta, longest: timedelta) -> timedelta:
    """Exponential back-off with full jitter; backoffs: how many there were before."""
    return min(first * (1 << min(backoffs, 20)), longest) * random.random()  # noqa: S311 -- jitter, not a secret
