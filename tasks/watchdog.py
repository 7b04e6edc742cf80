"""A total deadline for a call: a server that drips a byte at a time stretches every read timeout, this it cannot.

`requests` times each read, not the whole. The watchdog keeps a duplicate of the socket of each call under way
and shuts it down when the call's time is over, whatever the thread is reading at that moment.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

_EVERY_SECONDS = 0.1


class Call:
    """One call under way."""

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.socket: socket.socket | None = None
        self.begun = False  # the request may have left


class Watchdog:
    """Cuts the connections of calls that are past their deadline (seconds on the monotonic clock)."""

    def __init__(self) -> None:
        self._calls: dict[int, Call] = {}
        self._wanted = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @contextmanager
    def guard(self, deadline: float) -> Iterator[Call]:
        """Whatever this thread sends inside is over at `deadline`."""
        me = threading.get_ident()
        call = self._calls[me] = Call(deadline)
        self._wake()
        try:
            yield call
        finally:
            del self._calls[me]

    def use(self, connection_socket: socket.socket | None, *, begun: bool = False) -> None:
        """This thread's call goes over this socket. begun: from here on it may have been sent."""
        call = self._calls.get(threading.get_ident())
        if call is not None:
            call.socket = connection_socket
            call.begun = call.begun or begun

    def _wake(self) -> None:
        self._wanted.set()
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._watch, name="call-deadlines", daemon=True)
                    self._thread.start()

    def _watch(self) -> None:
        while True:
            self._wanted.wait()
            self._wanted.clear()
            while self._calls:
                for call in list(self._calls.values()):
                    if time.monotonic() > call.deadline and call.socket is not None:
                        with suppress(OSError):
                            call.socket.shutdown(socket.SHUT_RDWR)
                time.sleep(_EVERY_SECONDS)


def guarded_pools(watchdog: Watchdog) -> Mapping[str, type[HTTPConnectionPool]]:
    """urllib3's connection pools, by scheme, with connections that tell the watchdog their socket."""

    class Guarded(HTTPConnection):
        # A duplicate, since TLS takes the descriptor over from the socket that connected.
        duplicate: socket.socket | None = None
        parts: list[bytes] | None = None

        def _new_conn(self) -> socket.socket:
            connected = super()._new_conn()
            self.duplicate = socket.socket(fileno=os.dup(connected.fileno()))
            watchdog.use(self.duplicate)
            return connected

        def request(self, *args: Any, **kwargs: Any) -> None:
            # With TLS the handshake is over by now; without, this connects first.
            watchdog.use(self.duplicate, begun=True)
            self.parts = []
            super().request(*args, **kwargs)
            parts, self.parts = self.parts, None
            self.send(b"".join(parts))

        def send(self, data: Any) -> None:
            # Head and body leave as one: each packet more wakes the other side once more.
            if self.parts is None:
                super().send(data)
            else:
                self.parts.append(data)

        def close(self) -> None:
            duplicate, self.duplicate = self.duplicate, None
            if duplicate is not None:
                duplicate.close()
            super().close()

    class GuardedTLS(Guarded, HTTPSConnection):
        pass

    class Plain(HTTPConnectionPool):
        ConnectionCls = Guarded

    class TLS(HTTPSConnectionPool):
        ConnectionCls = GuardedTLS

    return {"http": Plain, "https": TLS}
