"""A small fast BFL API in a process of its own: three calls over uvloop, a latency, a count of deletes."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from typing import cast

import uvloop

_ID = re.compile(rb'"finetune_id": ?"([^"]*)"')
_LENGTH = re.compile(rb"\r\ncontent-length: ?(\d+)", re.IGNORECASE)
_DETAILS = b'{"finetune_details": {"timestamp": "2026-01-01T00:00:00Z", "mode": "general"}}'
_DELETED = b'{"status": "success", "message": "deleted", "timestamp": "2026-11-01", "deleted_finetune_id": "%s"}'


class Api(asyncio.Protocol):
    """One kept-alive connection."""

    latency_seconds = 0.0
    deleted = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self.waiting = b""

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while True:
            head = self.waiting.find(b"\r\n\r\n")
            if head < 0:
                return
            length = _LENGTH.search(self.waiting, 0, head + 2)
            end = head + 4 + (int(length[1]) if length else 0)
            if len(self.waiting) < end:
                return
            request, self.waiting = self.waiting[:end], self.waiting[end:]
            self.answer(request, head)

    def answer(self, request: bytes, head: int) -> None:
        path = request[: request.find(b"\r\n")]
        if path.startswith(b"GET /count"):
            self.write(json.dumps({"deleted": Api.deleted}).encode())
            return
        if path.startswith(b"POST /v1/delete_finetune"):
            Api.deleted += 1
            found = _ID.search(request, head)
            body = _DELETED % (found[1] if found else b"")
        else:
            body = _DETAILS if b"finetune_details" in path else b'{"finetunes": []}'
        if Api.latency_seconds:
            asyncio.get_running_loop().call_later(Api.latency_seconds, self.write, body)
        else:
            self.write(body)

    def write(self, body: bytes) -> None:
        if not self.transport.is_closing():
            head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
            self.transport.write(head + body)


async def serve(latency_seconds: float) -> None:
    """Serve on a free port of the loopback, printed as the first line, until the process is ended."""
    Api.latency_seconds = latency_seconds
    server = await asyncio.get_running_loop().create_server(Api, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(float(sys.argv[1])))
