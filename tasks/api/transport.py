"""One way to send a request: bounded in time and size, and never sent later once it is given up.

A call has one deadline for everything: connecting to all addresses of the host, the TLS handshake, sending,
headers and body. Each read and write gets what is left of it, so a server that sends a byte at a time gains
nothing. Name resolution cannot be bounded; it happens before the request leaves.

Given up means gone. A plain close lets the kernel go on sending what it holds for minutes. So every socket has
SO_LINGER 0: each close, also the kernel's after a kill, drops that data and resets the connection.
TCP_USER_TIMEOUT ends retransmission while a frozen process still has the socket open. What a proxy or the API has
already received cannot be recalled.
"""

from __future__ import annotations

import functools
import socket
import ssl
import struct
import threading
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import requests
from requests.adapters import DEFAULT_CA_BUNDLE_PATH, HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, NameResolutionError, NewConnectionError

BODY_LIMIT = 1 << 20
_CHUNK = 1 << 16
_RESET_ON_CLOSE = (socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


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


class Transport:
    """Sends requests to the host of `url`: one `requests.Session` per thread, made at first use.

    ca_bundle: a file with the certificate authorities to trust instead of certifi's.
    """

    def __init__(self, url: str, timeouts: Timeouts, ca_bundle: Path | None = None) -> None:
        self._url = url
        self._timeouts = timeouts
        self._ca_bundle = ca_bundle
        self._threads = threading.local()

    def send(self, request: requests.PreparedRequest) -> Reply:
        """The whole answer, or why there is none. It raises nothing: an error would have the key in it."""
        began = time.monotonic()
        _call.start(self._timeouts, began)
        response, body, broken = requests.Response(), b"", None
        try:
            # By the adapter: a session would look for redirects, cookies and proxies, and none of them is wanted.
            adapter = self._session().get_adapter(self._url)
            response = adapter.send(request, stream=True, timeout=self._timeouts.read.total_seconds())
            with response:
                body = _body(response)
        except (requests.RequestException, HTTPError, OSError, ValueError) as error:
            broken = _in_words(error)
        return Reply(response, body, time.monotonic() - began, broken, _call.begun)

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._threads, "session", None)
        if session is None:
            session = self._threads.session = requests.Session()
            session.trust_env = False
            session.mount(self._url, _Adapter(self._timeouts, self._ca_bundle))
        return session


class _Call(threading.local):
    """The call that this thread has under way. deadline: seconds on the monotonic clock."""

    timeouts = Timeouts()
    deadline = 0.0
    begun = False

    def start(self, timeouts: Timeouts, now: float) -> None:
        self.timeouts, self.deadline, self.begun = timeouts, now + timeouts.total.total_seconds(), False

    def left(self, most: timedelta) -> float:
        """Seconds that the next step may take; raises `TimeoutError` if there are none."""
        left = min(most.total_seconds(), self.deadline - time.monotonic())
        if left <= 0:
            raise TimeoutError("the call's time is over")
        return left


_call = _Call()


class _Bounded(socket.socket):
    """A socket that never waits beyond the deadline of the call. Only requests use `sendall`, no handshake."""

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


class _BoundedTls(_Bounded, ssl.SSLSocket):
    pass


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        try:
            addresses = socket.getaddrinfo(self._dns_host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            raise NameResolutionError(self.host, self, socket.gaierror()) from None
        error = OSError()
        for family, kind, protocol, _, address in addresses:
            connecting = _Bounded(family, kind, protocol)
            try:
                for option in self.socket_options or ():
                    connecting.setsockopt(*option)
                connecting.settimeout(_call.left(_call.timeouts.connect))
                connecting.connect(address)
                # For the handshake, if there is one: it takes the timeout of the socket as its bound.
                connecting.settimeout(_call.left(_call.timeouts.connect))
                return connecting
            except OSError as refused:
                connecting.close()
                error = refused
        kind_of_error = ConnectTimeoutError if isinstance(error, TimeoutError) else NewConnectionError
        raise kind_of_error(self, "no connection")

    def getresponse(self) -> Any:
        response = super().getresponse()
        if response.status < 200 or response.status in (204, 304):
            # These have no body. What may still follow, such as the answer after an early hint, must not be taken
            # for the answer to the next request.
            self.close()
        return response


class _TlsConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection


class _Adapter(HTTPAdapter):
    """One host, so one pool of one connection, looked up once; TLS settings are those of the shared context."""

    _pool: HTTPConnectionPool | None = None

    def __init__(self, timeouts: Timeouts, ca_bundle: Path | None) -> None:
        super().__init__(pool_connections=1, pool_maxsize=1)
        options = [*HTTPConnection.default_socket_options, _RESET_ON_CLOSE]
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux only
            ms = max(1, round(timeouts.total.total_seconds() * 1000))
            options.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, ms))
        self.poolmanager.connection_pool_kw |= {"socket_options": options, "ssl_context": _tls_context(ca_bundle)}
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def get_connection_with_tls_context(self, request: Any, *_: Any, **__: Any) -> HTTPConnectionPool:
        if self._pool is None:
            self._pool = self.poolmanager.connection_from_url(request.url)
        return self._pool

    def cert_verify(self, *_: Any) -> None:
        """The context verifies; this would load all certificates again for each connection."""


@functools.cache
def _tls_context(ca_bundle: Path | None) -> ssl.SSLContext:
    """One for the whole process: reading the certificates takes longer than a call."""
    context = ssl.create_default_context(cafile=str(ca_bundle or DEFAULT_CA_BUNDLE_PATH))
    context.sslsocket_class = _BoundedTls
    return context


def _body(response: requests.Response) -> bytes:
    body = b""
    for chunk in response.iter_content(_CHUNK):
        body += chunk
        if len(body) > BODY_LIMIT:
            raise requests.exceptions.ContentDecodingError
    return body


_WORDS: tuple[tuple[Any, str], ...] = (
    (NameResolutionError, "the host name was not resolved"),
    (NewConnectionError, "the connection was refused or not possible"),
    (ConnectTimeoutError, "no connection within the connect timeout"),
    (ssl.SSLCertVerificationError, "TLS failed, the certificate is not trusted (JANITOR_CA_BUNDLE can add trust)"),
    (ssl.SSLError, "TLS failed"),
    ((TimeoutError, requests.Timeout), "no complete answer in time"),
    (
        requests.exceptions.ContentDecodingError,
        f"the answer is larger than {BODY_LIMIT} bytes or cannot be decoded",
    ),
)


def _in_words(error: object) -> str:
    """What went wrong, by the kinds in the chain of causes: their own texts can have the request in them."""
    chain: list[BaseException] = []
    while isinstance(error, BaseException):
        chain.append(error)
        inner = [getattr(error, "reason", None), *error.args]
        error = next((cause for cause in inner if isinstance(cause, BaseException)), None)
    for kinds, words in _WORDS:
        if any(isinstance(cause, kinds) for cause in chain):
            return words
    return f"the connection broke ({type(chain[-1]).__name__})"
