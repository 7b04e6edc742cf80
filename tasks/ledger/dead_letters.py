"""Dead letters: messages that could not be read, kept for a person and never carried out."""

import json
import uuid
from datetime import UTC, datetime
from typing import Any, NamedTuple

import redis

from tasks.durations import iso
from tasks.ledger.keys import PREFIX, keys
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.store import Ledger

MOST_KEPT = 1000  # older ones are dropped
MOST_TEXT = 10_000  # characters kept of one message
_KEY = keys(PREFIX).dead_letters


class DeadLetter(NamedTuple):
    """One message: an id of its own, when it came, from which queue, why it could not be read.

    And its text (cut).
    """

    id: str
    at: str
    queue: str
    reason: str
    text: str


def keep(client: redis.Redis, queue: str, reason: str, message: object) -> None:
    """Keep a message that cannot be carried out. client: of the broker's Redis."""
    text = message if isinstance(message, str) else _as_text(message)
    entry = DeadLetter(uuid.uuid4().hex[:12], iso(datetime.now(UTC)) or "", queue, reason[:500], text[:MOST_TEXT])
    with client.pipeline(transaction=True) as pipe:
        pipe.lpush(_KEY, json.dumps(entry._asdict()))
        pipe.ltrim(_KEY, 0, MOST_KEPT - 1)
        pipe.execute()


def list_dead_letters(ledger: Ledger) -> list[DeadLetter]:
    """All of them, newest first. Raises `LedgerUnavailable`."""
    with unavailable():
        entries: Any = ledger.redis.lrange(_KEY, 0, -1)
    return [DeadLetter(**json.loads(entry)) for entry in entries]


def drop_dead_letters(ledger: Ledger, ids: set[str]) -> set[str]:
    """Delete these; the ids of those that were there. Raises `LedgerUnavailable`."""
    with unavailable():
        found: Any = ledger.redis.lrange(_KEY, 0, -1)
        entries = {json.loads(entry)["id"]: entry for entry in found}
        return {id_ for id_ in ids & entries.keys() if ledger.redis.lrem(_KEY, 1, entries[id_])}


def _as_text(message: object) -> str:
    if isinstance(message, bytes):
        return message.decode("utf-8", errors="backslashreplace")
    return json.dumps(message, default=repr, ensure_ascii=False)
