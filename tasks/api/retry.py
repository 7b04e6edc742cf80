"""How long to wait before trying again: full jitter within a budget, and what the API itself asks for."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from tasks.api.moments import http_date
from tasks.errors import JanitorError

T = TypeVar("T")
RETRY_BUDGET = timedelta(seconds=5)
LONGEST_RETRY_AFTER = timedelta(hours=1)
# (first, longest) cool-down of an account if the API names no time, by HTTP status; 429's for any other. 402 has
# been seen as mere back-pressure (public reports).
COOL_DOWN = {
    402: (timedelta(seconds=30), timedelta(minutes=5)),
    429: (timedelta(seconds=1), timedelta(minutes=1)),
}
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 8.0
_FIRST_DELAY = timedelta(seconds=30)
_LONGEST_DELAY = timedelta(hours=1)


class Again(JanitorError):
    """Not now: try again, after `wait` if the API named a time."""

    def __init__(self, why: str, wait: timedelta | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class NotNow(Again):
    """The account has to wait, not this deletion: its own back-off does not grow."""


def retried(
    once: Callable[[], T],
    budget: timedelta,
    sleep: Callable[[float], None],
    before_sleep: Callable[[], None] = lambda: None,
) -> T:
    """The result of `once`, which is called again while it raises `Again`.

    budget: for all tries and waits together; a wait that would pass it does not start, and the last `Again` is
    raised. sleep: waits some seconds. tenacity enters after a first failure: most calls need no second, and its
    loop has a cost.
    """
    began = time.monotonic()
    try:
        return once()
    except Again as error:
        first = [error]
        left = budget - timedelta(seconds=time.monotonic() - began)

    def again() -> T:
        if first:
            raise first.pop()
        return once()

    return Retrying(
        retry=retry_if_exception_type(Again),
        wait=_wait,
        stop=stop_before_delay(left),
        sleep=sleep,
        before_sleep=lambda _: before_sleep(),
        reraise=True,
    )(again)


def long_delay(backoffs: int, asked: timedelta | None = None) -> timedelta:
    """How long a deletion waits in the ledger for the n-th time, once the budget is used up; full jitter."""
    if asked is not None and asked > _FIRST_DELAY:
        return asked
    longest = min(_FIRST_DELAY * 2 ** min(backoffs, 20), _LONGEST_DELAY)
    jittered: timedelta = longest * random.random()  # noqa: S311 -- jitter, not a secret
    return max(jittered, asked or timedelta(seconds=1))


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """`Retry-After` (RFC 9110, 10.2.3): seconds, or a date measured against the answer's own `Date`.

    None if it is absent or makes no sense (`nan`, negative, no date); at most an hour.
    """
    text = headers.get("Retry-After", "").strip()
    seconds = _seconds(text, headers.get("Date")) if text else None
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(timedelta(seconds=min(seconds, 1e9)), LONGEST_RETRY_AFTER)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, Again) else None
    jittered = wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)(state)
    # A `Retry-After` of 0 does not shorten the back-off.
    return max(asked.total_seconds(), jittered) if asked else jittered


def _seconds(text: str, date: str | None) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    then, now = http_date(text), http_date(date or "") or datetime.now(UTC)
    return max((then - now).total_seconds(), 0.0) if then else None
