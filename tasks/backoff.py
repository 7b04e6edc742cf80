"""How long to wait before trying again: full jitter, within a budget, and what the API itself asks for."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TypeVar

from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_before_delay, wait_random_exponential

from tasks.errors import JanitorError

T = TypeVar("T")
LONGEST_RETRY_AFTER = timedelta(hours=1)
_FIRST_WAIT_SECONDS = 0.5
_LONGEST_WAIT_SECONDS = 8.0
_FIRST_DELAY = timedelta(seconds=30)
_LONGEST_DELAY = timedelta(hours=1)


class Again(JanitorError):
    """Not now: try again, after `wait` where the API named a time."""

    def __init__(self, why: str, wait: timedelta | None = None) -> None:
        super().__init__(why)
        self.wait = wait


def retried(
    once: Callable[[], T], budget: timedelta, sleep: Callable[[float], None], before_sleep: Callable[[], None]
) -> T:
    """What `once` answers, tried again while it raises `Again`; past the budget it raises the last one.

    tenacity enters after a first failure: most calls need no second, and its loop is not free.
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
    """How long the ledger keeps a deletion after the budget is used up, for the n-th time; full jitter."""
    if asked is not None and asked > _FIRST_DELAY:
        return asked
    longest = min(_FIRST_DELAY * 2 ** min(backoffs, 20), _LONGEST_DELAY)
    jittered: timedelta = longest * random.random()  # noqa: S311 -- jitter, not a secret
    return max(jittered, asked or timedelta(seconds=1))


def retry_after(headers: Mapping[str, str]) -> timedelta | None:
    """`Retry-After` (RFC 9110, 10.2.3): seconds, or a date measured against the answer's own `Date`.

    None where it is absent or makes no sense (`nan`, negative, no date); at most an hour.
    """
    text = headers.get("Retry-After", "").strip()
    if not text:
        return None
    seconds = _seconds(text, headers.get("Date"))
    if seconds is None or not math.isfinite(seconds) or seconds < 0:
        return None
    return min(timedelta(seconds=min(seconds, 1e9)), LONGEST_RETRY_AFTER)


def _wait(state: RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome else None
    asked = error.wait if isinstance(error, Again) else None
    jittered = wait_random_exponential(multiplier=_FIRST_WAIT_SECONDS, max=_LONGEST_WAIT_SECONDS)(state)
    # A `Retry-After` of nothing at all is no leave to hurry.
    return max(asked.total_seconds(), jittered) if asked else jittered


def _seconds(text: str, date: str | None) -> float | None:
    try:
        return float(text)
    except ValueError:
        pass
    then, now = _date(text), _date(date or "") or datetime.now(UTC)
    return max((then - now).total_seconds(), 0.0) if then else None


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
