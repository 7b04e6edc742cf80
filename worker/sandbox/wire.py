"""The wire of the simulated API: HTTP on raw sockets, so that an answer can break in every way a real one does."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit
from weakref import WeakSet

CALLS = ("delete_finetune", "finetune_details", "my_finetunes")
# With these the connection ends, and the answer is not complete.
BREAKING = ("hang", "close", "reset", "cut", "drip", "drip_headers")
_WITH_200 = ("slow", "early_hints", "huge", "not_json", "missing_fields", "wrong_id")
KINDS = (*BREAKING, *_WITH_200, "status", "reshaped")


@dataclass
class Fault:
    """What goes wrong with the next calls that match. Only `delete_finetune` can have an effect.

    kind: one of `KINDS`. applies: whether the delete happens all the same; unless given, if the answer is a 200.
    times: for how many calls, None for all. skip: how many matching calls go well before. seconds: for slow, drip.
    """

    kind: str
    call: str = "delete_finetune"
    finetune_id: str | None = None
    times: int | None = 1
    skip: int = 0
    applies: bool | None = None
    status: int = 500
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    seconds: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.call not in CALLS:
            raise ValueError(f"no fault {self.kind!r} of {self.call!r}: kinds {KINDS}, calls {CALLS}")
        if self.applies is None:
            self.applies = self.kind in _WITH_200


class Answer(NamedTuple):
    """An HTTP answer; `body` is sent as JSON, unless it is bytes."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}


class Request(NamedTuple):
    """A call as it came in. given: the JSON of a POST, else the query; whatever the client sent."""

    method: str
    path: str
    given: Any
    key: str | None


Answerer = Callable[[Request], tuple[Answer, Fault | None]]


class Server(ThreadingHTTPServer):
    """A port of the loopback interface; a thread for each connection. closing: ends every wait."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, answer: Answerer, closing: threading.Event) -> None:
        self.answer, self.closing = answer, closing
        self._open: WeakSet[socket.socket] = WeakSet()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a message."""

    def server_close(self) -> None:
        """Close what clients keep alive, too, as the end of a process would."""
        super().server_close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The journal has it."""

    def do_GET(self) -> None:
        parts, given = urlsplit(self.path), None
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with suppress(ValueError):
            given = json.loads(body) if self.command == "POST" else dict(parse_qsl(parts.query))
        request = Request(self.command, parts.path, given, self.headers.get("x-key"))
        self._send(*self.server.answer(request))

    do_POST = do_DELETE = do_GET

    def _send(self, answer: Answer, fault: Fault | None) -> None:
        raw, wait = _raw(answer), self.server.closing.wait
        if fault is None:
            self.wfile.write(raw)
            return
        self.close_connection = fault.kind in BREAKING
        match fault.kind:
            case "hang":
                wait()
            case "reset":
                # Closed with a linger of 0 seconds, the kernel sends RST.
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            case "close":
                pass
            case "cut":
                self.wfile.write(raw[:-10])
            case "drip" | "drip_headers":
                whole = raw.index(b"\r\n\r\n") + 4 if fault.kind == "drip" else 0
                self.wfile.write(raw[:whole])
                for byte in raw[whole:]:
                    if wait(fault.seconds):
                        return
                    self.wfile.write(bytes([byte]))
            case "early_hints":
                self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n" + raw)
            case _:
                wait(fault.seconds if fault.kind == "slow" else 0)
                self.wfile.write(raw)


def distorted(answer: Answer, fault: Fault) -> Answer:
    """`answer` as the fault changes it; faults of the connection itself are made when it is sent."""
    if fault.kind == "status":
        return Answer(
            fault.status, {"detail": "as asked for"} if fault.body is None else fault.body, fault.headers
        )
    body = answer.body if isinstance(answer.body, dict) else {}
    bodies = {
        "not_json": b"<html>all is well</html>",
        "missing_fields": {"status": body.get("status", "Success")},
        "wrong_id": {**body, "deleted_finetune_id": "somebody-elses"},
        "huge": {**body, "padding": "x" * (2 << 20)},
        "reshaped": {"finetunes": [{"model": "in another shape"}]},
    }
    return Answer(200, bodies[fault.kind]) if fault.kind in bodies else answer


def _raw(answer: Answer) -> bytes:
    """Head and body in one piece: two writes would wait for each other's acknowledgement."""
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    headers = {
        "Content-Type": "application/json", "Content-Length": str(len(body)),
        "Date": formatdate(usegmt=True), **answer.headers,
    }  # fmt: skip
    lines = [f"HTTP/1.1 {answer.status} Simulated", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body
