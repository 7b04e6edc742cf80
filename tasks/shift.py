"""One wake-up's work, shared by its threads and by the one that claims and concludes for them."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tasks.claims import Claimed

MOST_AT_ONCE = 100
_GROUP_SECONDS = 0.05

Done = tuple[Claimed, dict[str, Any] | None]
Ready = tuple[Claimed, float]  # and when its claim was asked for, on the monotonic clock


@dataclass
class Shift:
    """One wake-up's work: what is in hand, what a thread may go on to, and what has come back."""

    account: str
    at_work: int = 0  # threads, each with a permit
    ahead: int = 0
    held: dict[tuple[str, str], Claimed] = field(default_factory=dict)
    ready: deque[Ready] = field(default_factory=deque)
    done: deque[Done] = field(default_factory=deque)
    news: threading.Event = field(default_factory=threading.Event)

    def next(self) -> Ready | None:
        with suppress(IndexError):
            return self.ready.popleft()
        return None

    def oldest(self) -> float:
        """When the first of what is ready was asked for."""
        with suppress(IndexError):
            return self.ready[0][1]
        return math.inf

    def collect(self) -> list[Done]:
        """What has come back: at once where a thread may run out of work, else in groups; none after a second."""
        until = time.monotonic() + 1
        while not (self.news.wait(_GROUP_SECONDS) or self.done) and time.monotonic() < until:
            pass
        self.news.clear()
        found = [self.done.popleft() for _ in range(min(len(self.done), MOST_AT_ONCE))]
        # Enough for the time that the next group takes, and little enough to be begun within a second.
        self.ahead = min(max(self.ahead // 2, 3 * len(found)), 3 * MOST_AT_ONCE)
        return found
