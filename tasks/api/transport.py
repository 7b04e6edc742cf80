"""One way to send a request: bounded in time and size, and never sent later once it is given up.

A call has one deadline for everything: connecting to all addresses of the host, the TLS handshake, sending,
headers and body. Each read and write gets what is left of it, so a server that sends a byte at a time gains
nothing. Name resolution cannot be bounded; it happens before the request leaves.

Given up means gone. A plain close lets the kernel go on sending what it holds for minutes. So every socket has
SO_LINGER 0: each close, also the kernel's after a kill, drops that data and resets the connection.
TCP_USER_TIMEOUT ends retransmission while a frozen process still has the socket open. What a proxy or the API has
already received cannot be recalled.
"""

import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3 import HTTPConnectionPool, exceptions
from urllib3.connection import HTTPConnection, HTTPSConnection

BODY_LIMIT = 1 << 20


@dataclass(frozen=True)
class Timeouts:
    """Bounds of one call: connecting to one address, one read, everything together but name resolution."""

    connect: timedelta = timedelta(seconds=5)
    read: timedelta = timedelta(seconds=15)
    total: timedelta = timedelta(seconds=20)


class Reply(NamedTuple):
    """What became of a request.

    broken: why there is no whole answer, in words; None if there is one. begun: whether the request may have left.
    """

    response: requests.Response
    body: bytes
    seconds: float
    broken: str | None
    begun: bool


class Transport(threading.local):
    """Sends requests to the host of `url`; each thread has its own connection, made at first use.

    ca_bundle: a file with the certificate authorities to trust instead of certifi's. `threading.local` calls
    `__init__` again in each thread, with the same arguments.
    """

    def __init__(self, url: str, timeouts: Timeouts, ca_bundle: Path | None = None) -> None:
        self._url = url
        self._timeouts = timeouts
        self._ca_bundle = ca_bundle

    def send(self, request: requests.PreparedRequest) -> Reply:
        """The whole answer, or why there is none. It raises nothing: an error would have the key in it."""
        began = time.monotonic()
        _call.timeouts, _call.begun = self._timeouts, False
        _call.deadline = began + self._timeouts.total.total_seconds()
        try:
            with self._adapter.send(request, stream=True, timeout=self._timeouts.read.total_seconds()) as response:
                body: bytes = response.raw.read(BODY_LIMIT + 1, decode_content=True)
            if len(body) > BODY_LIMIT:
                raise exceptions.DecodeError
            return Reply(response, body, time.monotonic() - began, broken=None, begun=True)
        except (requests.RequestException, exceptions.HTTPError, OSError, ValueError) as error:
            broken = _in_words(error)
        return Reply(requests.Response(), b"", time.monotonic() - began, broken, _call.begun)

    @cached_property
    def _adapter(self) -> "_Adapter":
        """A `requests.Session` would look for redirects, cookies and proxies, and none of them is wanted."""
        return _Adapter(self._url, self._ca_bundle)


class _Call(threading.local):
    """The call that this thread has under way. deadline: seconds on the monotonic clock."""

    timeouts = Timeouts()
    deadline = 0.0
    begun = False

    def left(self, most: timedelta) -> float:
        """Seconds that the next step may take; raises `TimeoutError` if there are none."""
        left = min(most.total_seconds(), self.deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError("the call's time is over")
        return left


_call = _Call()


class _Bounded(socket.socket):
    """A socket that never waits beyond the deadline of the call. Only requests use `sendall`, no handshake."""

    def set_options(self) -> None:
        self.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
            ms = max(1, round(_call.timeouts.total.total_seconds() * 1000))
            self.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ms)

    def recv_into(self, *args: Any, **kwargs: Any) -> int:
        self._bound()
        return super().recv_into(*args, **kwargs)

    def sendall(self, *args: Any, **kwargs: Any) -> None:
        self._bound()
        _call.begun = True
        super().sendall(*args, **kwargs)

    def _bound(self) -> None:
        seconds = _call.left(_call.timeouts.read)
        if seconds != self.gettimeout():  # setting it is a system call
            self.settimeout(seconds)


class _BoundedTls(_Bounded, ssl.SSLSocket): ...


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        error = OSError()
        for family, kind, protocol, _, address in addresses:
            connecting = _Bounded(family, kind, protocol)
            try:
                connecting.set_options()
                connecting.settimeout(_call.left(_call.timeouts.connect))
                connecting.connect(address)
                # For the handshake, if there is one: it takes the timeout of the socket as its bound.
                connecting.settimeout(_call.left(_call.timeouts.connect))
                return connecting
            except OSError as refused:
                connecting.close()
                error = refused
        is_late = isinstance(error, TimeoutError)
        raise (exceptions.ConnectTimeoutError if is_late else exceptions.NewConnectionError)(self, "no connection")

    def getresponse(self) -> Any:
        response = super().getresponse()
        if response.status < 200 or response.status in (204, 304):
            # These have no body. What may still follow, such as the answer after an early hint, must not be taken
            # for the answer to the next request.
            self.close()
        return response


class _TlsConnection(_Connection, HTTPSConnection): ...


class _Adapter(HTTPAdapter):
    """One host, so one pool of one connection, looked up once; TLS settings are those of the shared context."""

    def __init__(self, url: str, ca_bundle: Path | None) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        self.poolmanager.connection_pool_kw["ssl_context"] = _tls_context(ca_bundle)
        self._pool: HTTPConnectionPool = self.poolmanager.connection_from_url(url)
        self._pool.ConnectionCls = _TlsConnection if self._pool.scheme == "https" else _Connection

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *_: Any) -> None:
        """The context verifies; this would load all certificates again for each connection."""


@cache
def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """One for the whole process: reading the certificates takes longer than a call."""
    context = ssl.create_default_context(cafile=str(ca_bundle or DEFAULT_CA_BUNDLE_PATH))
    context.sslsocket_class = _BoundedTls
    return context


_WORDS: tuple[tuple[Any, str], ...] = (
    ((socket.gaierror, UnicodeError), "the host name was not resolved"),
    (exceptions.NewConnectionError, "the connection was refused or not possible"),
    (exceptions.ConnectTimeoutError, "no connection within the connect timeout"),
    (ssl.SSLCertVerificationError, "TLS failed, the certificate is not trusted (JANITOR_CA_BUNDLE can add trust)"),
    (ssl.SSLError, "TLS failed"),
    ((TimeoutError, exceptions.ReadTimeoutError), "no complete answer in time"),
    (exceptions.DecodeError, f"the answer is larger than {BODY_LIMIT} bytes or cannot be decoded"),
)


def _in_words(error: object) -> str:
    """What went wrong, by the kinds in the chain of causes: their own texts can have the request in them."""
    chain: list[BaseException] = []
    while isinstance(error, BaseException):
        chain.append(error)
        inner = [getattr(error, "reason", None), *error.args]
        error = next((cause for cause in inner if isinstance(cause, BaseException)), None)
    known = (words for kinds, words in _WORDS if any(isinstance(cause, kinds) for cause in chain))
    return next(known, f"the connection broke ({type(chain[-1]).__name__})")
