"""How old an observation is, by the larger of two clocks, and what Redis's clock says now."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from tasks.records import from_ms

FRESH = timedelta(seconds=2)  # a delete starts at most this long after the observation before it


def boot_seconds() -> float:
    """Seconds on a clock that also counts while the machine sleeps, if there is one."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Watch:
    """Times of one claim. Our clock may stand still or jump, so Redis's is compared with it whenever it is known.

    claimed_at_ms: when the claim was made, on Redis's clock. clock: seconds. lag: how far Redis's clock has run
    ahead of ours since the claim, in seconds. What it answers are moments on Redis's clock, as far as it is known.
    """

    def __init__(self, claimed_at_ms: int, clock: Callable[[], float]) -> None:
        self.clock = clock
        self.claimed_at_ms = claimed_at_ms
        self.claimed_at = clock()
        self.lag = 0.0
        self.observation_began = self.observation_ended = self.now()

    def now(self) -> datetime:
        """Redis's clock, carried on from the claim by ours."""
        seconds = self.clock() - self.claimed_at + self.lag
        return from_ms(self.claimed_at_ms) + timedelta(seconds=seconds)

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Time the observation made in this block. One that raises leaves the earlier times as they are."""
        began = self.now()
        yield
        self.observation_began, self.observation_ended = began, self.now()

    def compare(self, redis_ms: int) -> None:
        """Redis's clock has just said this."""
        ours = self.clock() - self.claimed_at
        self.lag = max(self.lag, (redis_ms - self.claimed_at_ms) / 1000 - ours)

    def fresh_until(self, *, is_last: bool) -> datetime:
        """Until when a delete may start.

        is_last: it is the last observation allowed. Its time counts from its end, so that a slow API does not rule
        out every delete.
        """
        return (self.observation_ended if is_last else self.observation_began) + FRESH
