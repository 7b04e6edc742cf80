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
_GROUP_SECONDS, _HURRY_SECONDS = 0.05, 0.01

Done = tuple[Claimed, dict[str, Any] | None]
Ready = tuple[Claimed, float]  # and when its claim was asked for, on the monotonic clock


@dataclass
class Shift:
    """One wake-up's work: what is in hand, what a thread may go on to, and what has come back."""

    account: str
    at_work: int = 0  # threads, each with a permit
    ahead: int = 0
    hurries: bool = False  # threads are idle, and permits may be free in a moment
    held: dict[tuple[str, str], Claimed] = field(default_factory=dict)
    ready: deque[Ready] = field(default_factory=deque)
    done: deque[Done] = field(default_factory=deque)
    news: threading.Event = field(default_factory=threading.Event)
    collected: float = 0.0  # when something was last asked for, on the monotonic clock

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
        until = time.monotonic() + (0 if self.hurries else 1)
        pause = _HURRY_SECONDS if self.hurries else _GROUP_SECONDS
        while not (self.news.wait(pause) or self.done) and time.monotonic() < until:
            pass
        self.news.clear()
        found = [self.done.popleft() for _ in range(min(len(self.done), MOST_AT_ONCE))]
        self._reckon(len(found))
        return found

    def _reckon(self, found: int) -> None:
        """How much to claim ahead: what three groups take, and at least one for each thread.

        Little enough to be begun within a second: what is held here stands before no idle thread elsewhere.
        """
        now = time.monotonic()
        groups = max((now - self.collected) / _GROUP_SECONDS, 1.0)
        self.collected = now
        pace = (self.ahead + 3 * found / groups) / 2
        self.ahead = max(self.at_work, min(round(pace), 3 * MOST_AT_ONCE))
