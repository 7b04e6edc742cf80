"""A simulated BFL API over real HTTP: stateful, in the contract's shapes, with faults on request.

Shapes: tests/contract/ for the delete call, BFL's public reference for the other two. Under `/_sandbox/` it is
controlled: `POST finetunes`, `DELETE finetunes/ID`, `POST faults`, `DELETE faults`, `GET journal`.
"""

import threading
from collections.abc import Collection
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from urllib.parse import unquote
from uuid import uuid4

from tasks.text import finetune_key
from worker.sandbox.wire import BREAKING, CALLS, Answer, Fault, Request, Server, distorted

_NO_SUCH_CALL = Answer(404, {"detail": "Not Found"})


class Sandbox:
    """The API, on a port of the loopback interface, for the length of a `with`.

    keys: accepted as `x-key`. latency_seconds: each answer takes at least that. max_at_once: above, 429.
    Raises `OSError` if the port is taken.
    """

    def __init__(
        self, *, port: int = 0, keys: Collection[str] = ("sandbox-key",), latency_seconds: float = 0.05,
        max_at_once: int = 24,
    ) -> None:  # fmt: skip
        self.keys = set(keys)
        self.latency_seconds = latency_seconds
        self.max_at_once = max_at_once
        self.closing = threading.Event()
        self._lock = threading.RLock()
        # By the one spelling of a name: two spellings of a UUID are one finetune.
        self._finetunes: dict[str, tuple[str, dict[str, Any]]] = {}
        self._incarnations: dict[str, int] = {}
        self._faults: list[Fault] = []
        self._journal: list[dict[str, Any]] = []
        self._at_once = 0
        self._server = Server(port, self._answer, self.closing)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sandbox", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()

    def create(self, finetune_id: str, *, lora: bool = False, **details: Any) -> None:
        """A finetune of this name; one that had the name before is another incarnation.

        As if trained, created 40 days ago. lora: as if uploaded in the dashboard, with a unique id and free fields
        (what BFL shows of those is published nowhere). details: other values of fields; None leaves one out.
        """
        with self._lock:
            key = finetune_key(finetune_id)
            number = self._incarnations[key] = self._incarnations.get(key, 0) + 1
            created = (datetime.now(UTC) - timedelta(days=40) + timedelta(minutes=number)).isoformat()
            fields = _lora(finetune_id, created) if lora else _trained(finetune_id, created, number)
            whole = {name: value for name, value in (fields | details).items() if value is not None}
            self._finetunes[key] = (finetune_id, whole)

    def remove(self, finetune_id: str) -> None:
        with self._lock:
            self._finetunes.pop(finetune_key(finetune_id), None)

    def finetunes(self) -> list[str]:
        with self._lock:
            return [name for name, _ in self._finetunes.values()]

    def fault(self, kind: str, **more: Any) -> Fault:
        """Have the next matching calls go wrong; see `Fault`."""
        self._faults.append(fault := Fault(kind, **more))
        return fault

    def heal(self) -> None:
        """No faults any more."""
        self._faults.clear()

    def journal(self) -> list[dict[str, Any]]:
        """Every call, in the order of its effect.

        n, at (ISO 8601), call, finetune_id, http_status (null if it got no whole answer), effective (whether it
        removed the finetune), incarnation (the number of the one that it met, 0 for none), at_once, fault, key
        (ok, missing or wrong).
        """
        with self._lock:
            return [dict(entry) for entry in self._journal]

    def deletes(self, finetune_id: str | None = None) -> list[dict[str, Any]]:
        """The delete calls in the journal."""
        found = [entry for entry in self.journal() if entry["call"] == "delete_finetune"]
        return [entry for entry in found if finetune_id in (None, entry["finetune_id"])]

    def _answer(self, request: Request) -> tuple[Answer, Fault | None]:
        if request.path.startswith("/_sandbox/"):
            return self._control(request), None
        call = request.path.removeprefix("/v1/")
        if call not in CALLS:
            return _NO_SUCH_CALL, None
        if (request.method == "POST") != (call == "delete_finetune"):
            return Answer(405, {"detail": "Method Not Allowed"}), None
        finetune_id = request.given.get("finetune_id") if isinstance(request.given, dict) else None
        with self._lock:
            self._at_once += 1
        try:
            self.closing.wait(self.latency_seconds)
            if call != "my_finetunes" and not isinstance(finetune_id, str):
                place = ["body" if request.method == "POST" else "query", "finetune_id"]
                kind, words = ("string_type", "Not a string") if finetune_id else ("missing", "Field required")
                return Answer(422, {"detail": [{"loc": place, "msg": words, "type": kind}]}), None
            return self._carry_out(call, finetune_id, request.key)
        finally:
            with self._lock:
                self._at_once -= 1

    def _control(self, request: Request) -> Answer:
        kind, _, name = request.path.removeprefix("/_sandbox/").partition("/")
        try:
            match request.method, kind:
                case "GET", "journal":
                    return Answer(200, self.journal())
                case "POST", "finetunes":
                    self.create(**request.given)
                case "DELETE", "finetunes":
                    self.remove(unquote(name))
                case "POST", "faults":
                    self.fault(**request.given)
                case "DELETE", "faults":
                    self.heal()
                case _:
                    return _NO_SUCH_CALL
        except (TypeError, ValueError) as error:
            return Answer(422, {"detail": str(error)})
        return Answer(200, {})

    def _carry_out(self, call: str, finetune_id: str | None, key: str | None) -> tuple[Answer, Fault | None]:
        """What a well-formed call meets; its effect and its line in the journal are one step."""
        with self._lock:
            name = finetune_key(finetune_id or "")
            number = self._incarnations[name] if name in self._finetunes else 0
            answer = self._usual(call, finetune_id, key)
            fault = self._next_fault(call, finetune_id) if answer.status not in (403, 429) else None
            effective = call == "delete_finetune" and answer.status == 200 and not (fault and not fault.applies)
            if effective:
                del self._finetunes[name]
            if fault:
                answer = distorted(answer, fault)
            is_whole = fault is None or fault.kind not in BREAKING
            entry = {
                "n": len(self._journal) + 1, "at": _now(), "call": call, "finetune_id": finetune_id,
                "http_status": answer.status if is_whole else None, "effective": effective, "incarnation": number,
                "at_once": self._at_once, "fault": fault.kind if fault else None,
                "key": "ok" if key in self.keys else "wrong" if key else "missing",
            }  # fmt: skip
            self._journal.append(entry)
            return answer, fault

    def _usual(self, call: str, finetune_id: str | None, key: str | None) -> Answer:
        """The answer if nothing goes wrong."""
        if key not in self.keys:
            return Answer(403, {"detail": "Not authenticated"})
        if self._at_once > self.max_at_once:
            return Answer(429, {"detail": "Too many requests"})
        if call == "my_finetunes":
            return Answer(200, {"finetunes": self.finetunes()})
        name, details = self._finetunes.get(finetune_key(finetune_id or ""), ("", {}))
        if not name:
            return Answer(404, {"detail": "Finetune not found or access denied"})  # known from public reports
        if call == "finetune_details":
            return Answer(200, {"finetune_details": dict(details)})
        words = {"status": "Success", "message": f"Finetune {finetune_id} deleted"}
        return Answer(200, {**words, "deleted_finetune_id": name, "timestamp": _now()})

    def _next_fault(self, call: str, finetune_id: str | None) -> Fault | None:
        for fault in self._faults:
            if fault.call != call or fault.finetune_id not in (None, finetune_id) or fault.times == 0:
                continue
            if not fault.skip:
                fault.times = fault.times and fault.times - 1
                return fault
            fault.skip -= 1
        return None


def _trained(finetune_id: str, created: str, number: int) -> dict[str, Any]:
    return {
        "finetune_comment": f"{finetune_id}, number {number}", "trigger_word": "TOK", "mode": "general",
        "iterations": 300, "learning_rate": 0.00001, "lora_rank": 32, "priority": "quality",
        "finetune_type": "full", "timestamp": created,
    }  # fmt: skip


def _lora(finetune_id: str, created: str) -> dict[str, Any]:
    return {
        "id": str(uuid4()), "name": finetune_id, "base_model": "flux-2", "precision": "fp8",
        "trigger_phrase": "TOK", "created_at": created,
    }  # fmt: skip


def _now() -> str:
    return datetime.now(UTC).isoformat()
