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
_MOST_PATIENCE_SECONDS = 1.0
_LEAST_PATIENCE_SECONDS = 0.01
_GROUP_SECONDS = 0.05

Done = tuple[Claimed, dict[str, Any] | None]
Ready = tuple[Claimed, float]  # and when its claim was asked for, on the monotonic clock


@dataclass
class Shift:
    """One wake-up's work: what is in hand, what a thread may go on to, and what has come back."""

    account: str
    at_work: int = 0  # threads, each with a permit
    ahead: int = 0
    patience: float = _MOST_PATIENCE_SECONDS  # how long to wait for news before asking for work again
    held: dict[tuple[str, str], Claimed] = field(default_factory=dict)
    ready: deque[Ready] = field(default_factory=deque)
    done: deque[Done] = field(default_factory=deque)
    news: threading.Event = field(default_factory=threading.Event)
    came: int = 0
    reckoned: float = field(default_factory=time.monotonic)  # since when so much came

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
        """What has come back: at once where a thread may run dry, else in groups; none after `patience`."""
        until = time.monotonic() + self.patience
        pause = min(_GROUP_SECONDS, self.patience)
        while not (self.news.wait(pause) or self.done) and time.monotonic() < until:
            pass
        self.news.clear()
        found = [self.done.popleft() for _ in range(min(len(self.done), MOST_AT_ONCE))]
        self._reckon(len(found))
        return found

    def hurry(self, *, full: bool = False, begun: bool = False) -> None:
        """How soon to ask for work again. full: threads are idle, and a permit may be free in a moment.

        The longer none is, the more rarely it is asked.
        """
        if not full:
            self.patience = _MOST_PATIENCE_SECONDS
        elif begun or self.patience == _MOST_PATIENCE_SECONDS:
            self.patience = _LEAST_PATIENCE_SECONDS
        else:
            self.patience = min(2 * self.patience, _MOST_PATIENCE_SECONDS / 2)

    def _reckon(self, found: int) -> None:
        """How much to claim ahead: what three groups take, and at least one for each thread.

        Little enough to be begun within a second: what is held here stands before no idle thread elsewhere.
        """
        self.came += found
        seconds = time.monotonic() - self.reckoned
        if seconds >= _GROUP_SECONDS:
            self.ahead = min(round(3 * _GROUP_SECONDS * self.came / seconds), 3 * MOST_AT_ONCE)
            self.came, self.reckoned = 0, self.reckoned + seconds
        self.ahead = max(self.at_work, self.ahead)
