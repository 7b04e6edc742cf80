"""The wire of the simulated API: HTTP on raw sockets, so that an answer can break in every way a real one does."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from worker.sandbox.api import Sandbox

# With these the connection ends, and the answer is not complete.
BREAKING = ("hang", "close", "reset", "cut", "drip", "drip_headers")
KINDS = (
    *BREAKING, "status", "slow", "early_hints", "huge", "not_json", "missing_fields", "wrong_id", "reshaped",
)  # fmt: skip
CALLS = ("delete_finetune", "finetune_details", "my_finetunes")


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
            self.applies = self.kind in ("slow", "early_hints", "huge", "not_json", "missing_fields", "wrong_id")


class Answer(NamedTuple):
    """An HTTP answer; `body` is sent as JSON, unless it is bytes."""

    status: int
    body: Any
    headers: Mapping[str, str] = {}


class Server(ThreadingHTTPServer):
    """A port of the loopback interface; a thread for each connection."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, api: Sandbox) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), type("Handler", (_Handler,), {"api": api}))

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is not worth a message."""

    def cut_all(self) -> None:
        """Close what clients keep alive, as the end of a process would."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    api: Sandbox
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """The journal has it."""

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            content = json.loads(raw) if raw else None
        except ValueError:
            content = None
        if parts.path.startswith("/_sandbox/"):
            answer, fault = self._steer(parts.path.removeprefix("/_sandbox/"), content), None
        else:
            answer, fault = self._call(parts.path, parse_qs(parts.query), content)
        if fault is None:
            self.wfile.write(_raw(answer))
        else:
            self._send_faulty(answer, fault)

    do_POST = do_DELETE = do_GET

    def _call(self, path: str, query: dict[str, list[str]], content: Any) -> tuple[Answer, Fault | None]:
        call = path.removeprefix("/v1/")
        if call not in CALLS:
            return Answer(404, {"detail": "Not Found"}), None
        posts = call == "delete_finetune"
        if (self.command == "POST") != posts:
            return Answer(405, {"detail": "Method Not Allowed"}), None
        given = (content.get("finetune_id") if isinstance(content, dict) else None) if posts else None
        finetune_id = given if posts else next(iter(query.get("finetune_id", ())), None)
        with self.api.counted():
            self.api.closing.wait(self.api.latency_seconds)
            if call != "my_finetunes" and not isinstance(finetune_id, str):
                place = ["body" if posts else "query", "finetune_id"]
                kind = ("missing", "Field required") if finetune_id is None else ("string_type", "Not a string")
                return Answer(422, {"detail": [{"loc": place, "msg": kind[1], "type": kind[0]}]}), None
            return self.api.answer(call, finetune_id, self.headers.get("x-key"))

    def _steer(self, path: str, content: Any) -> Answer:
        api, (kind, _, name) = self.api, path.partition("/")
        try:
            match self.command, kind:
                case "GET", "journal":
                    return Answer(200, api.journal())
                case "POST", "finetunes":
                    api.create(**content)
                case "DELETE", "finetunes":
                    api.remove(unquote(name))
                case "POST", "faults":
                    api.fault(**content)
                case "DELETE", "faults":
                    api.heal()
                case _:
                    return Answer(404, {"detail": "Not Found"})
        except (TypeError, ValueError) as error:
            return Answer(422, {"detail": str(error)})
        return Answer(200, {})

    def _send_faulty(self, answer: Answer, fault: Fault) -> None:
        raw, wait = _raw(answer), self.api.closing.wait
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
            case "slow":
                wait(fault.seconds)
                self.wfile.write(raw)
            case _:
                self.wfile.write(raw)


def _raw(answer: Answer) -> bytes:
    """Head and body in one piece: two writes would wait for each other's acknowledgement."""
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    headers = {
        "Content-Type": "application/json", "Content-Length": str(len(body)),
        "Date": formatdate(usegmt=True), **answer.headers,
    }  # fmt: skip
    lines = [f"HTTP/1.1 {answer.status} Simulated", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def distorted(answer: Answer, fault: Fault) -> Answer:
    """`answer` as the fault changes it; faults of the connection itself are made when it is sent."""
    body = answer.body if isinstance(answer.body, dict) else {}
    made: dict[str, Callable[[], Answer]] = {
        "status": lambda: Answer(
            fault.status, {"detail": "as asked for"} if fault.body is None else fault.body, fault.headers
        ),
        "not_json": lambda: Answer(200, b"<html>all is well</html>"),
        "missing_fields": lambda: Answer(200, {"status": body.get("status", "Success")}),
        "wrong_id": lambda: Answer(200, {**body, "deleted_finetune_id": "somebody-elses"}),
        "huge": lambda: Answer(200, {**body, "padding": "x" * (2 << 20)}),
        "reshaped": lambda: Answer(200, {"finetunes": [{"model": "in another shape"}]}),
    }
    return made[fault.kind]() if fault.kind in made else answer
