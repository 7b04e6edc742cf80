"""Messages that nobody can read: put aside where a person finds them, never fatal, never carried out."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, datetime
from typing import Any, NamedTuple

import redis

from tasks.durations import iso
from tasks.ledger import PREFIX, Ledger
from tasks.redis_errors import unavailable

MOST_KEPT = 1000  # older ones make room
MOST_TEXT = 10_000  # characters kept of one message
_KEY = f"{PREFIX}poison"


class Poison(NamedTuple):
    """One message put aside: its own id, when, from which queue, why, and its text (cut)."""

    id: str
    at: str
    queue: str
    reason: str
    text: str


def set_aside(client: redis.Redis, queue: str, reason: str, message: object) -> None:
    """Keep a message that cannot be carried out. client: of the broker's Redis."""
    text = message if isinstance(message, str) else _as_text(message)
    entry = Poison(uuid.uuid4().hex[:12], iso(datetime.now(UTC)) or "", queue, reason[:500], text[:MOST_TEXT])
    with client.pipeline(transaction=True) as pipe:
        pipe.lpush(_KEY, json.dumps(entry._asdict()))
        pipe.ltrim(_KEY, 0, MOST_KEPT - 1)
        pipe.execute()


def list_poison(ledger: Ledger) -> list[Poison]:
    """What was put aside, newest first. Raises `LedgerUnavailable`."""
    with unavailable():
        entries: Any = ledger.redis.lrange(_KEY, 0, -1)
    return [Poison(**json.loads(entry)) for entry in entries]


def drop_poison(ledger: Ledger, ids: set[str]) -> set[str]:
    """Forget these; the ids that were there. Raises `LedgerUnavailable`."""
    dropped = set()
    with unavailable():
        entries: Any = ledger.redis.lrange(_KEY, 0, -1)
        for entry in entries:
            id_ = json.loads(entry)["id"]
            if id_ in ids and ledger.redis.lrem(_KEY, 1, entry):
                dropped.add(id_)
    return dropped


def _as_text(message: object) -> str:
    if isinstance(message, bytes):
        return message.decode("utf-8", errors="backslashreplace")
    return json.dumps(message, default=repr, ensure_ascii=False)
