"""Whether this worker is to stop: one signal that interrupts every wait, in forked children too."""

from __future__ import annotations

import os
import select
import time

_MOMENT_SECONDS = 0.05


class Stopping:
    """Set once, for good. A pipe, not `multiprocessing.Event`: that one waits for sleepers, dead ones included."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._is_set, self._ask_at = False, 0.0

    def set(self) -> None:
        os.write(self._write, b"x")

    def is_set(self) -> bool:
        """Whether it is set, as of a moment ago: asked before each call, it must cost nothing."""
        now = time.monotonic()
        if not self._is_set and now >= self._ask_at:
            self._is_set, self._ask_at = self.wait(0), now + _MOMENT_SECONDS
        return self._is_set

    def wait(self, seconds: float) -> bool:
        """True as soon as it is set, false after so many seconds."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
