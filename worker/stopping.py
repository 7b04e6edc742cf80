"""Whether this worker is to stop: one signal that interrupts every wait, in forked children too."""

from __future__ import annotations

import os
import select


class Stopping:
    """Set once, for good. A pipe, not `multiprocessing.Event`: that one waits for sleepers, dead ones included."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def set(self) -> None:
        os.write(self._write, b"x")

    def is_set(self) -> bool:
        return self.wait(0)

    def wait(self, seconds: float) -> bool:
        """True as soon as it is set, false after so many seconds."""
        poll = select.poll()
        poll.register(self._read, select.POLLIN)
        return bool(poll.poll(seconds * 1000))
