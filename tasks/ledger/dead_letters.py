"""Dead letters: messages that could not be read, kept for a person and never carried out."""

import json
import re
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import redis

from tasks.durations import iso
from tasks.errors import InvalidRequest
from tasks.ledger.keys import keys
from tasks.ledger.store import Ledger
from tasks.ledger.types import Act
from tasks.text import one_line

MOST_KEPT = 1000  # older ones are dropped
MOST_TEXT = 10_000  # bytes kept of one message
# Of a message that is sent again: when it was here first. It only makes a request older, so anybody may write it.
SEEN_HEADER = "janitor_seen"
_AT_ONCE = 100  # in one script
_KEY = keys.dead_letters
# A script that begins with a DEL may write when Redis is full (tasks.ledger.scripts).
_PUSH = """redis.call('DEL', KEYS[1] .. ':nothing')
redis.call('LPUSH', KEYS[1], ARGV[1]) redis.call('LTRIM', KEYS[1], 0, ARGV[2])"""


class DeadLetter(NamedTuple):
    """One message: its own id, when it came, from which queue, why it could not be read, and its text, cut."""

    id: str
    at: str
    queue: str
    reason: str
    text: str


def keep(client: redis.Redis, queue: str, reason: str, message: object) -> None:
    """Keep a message that cannot be carried out. client: of the broker's Redis."""
    text = _cut(message if isinstance(message, str) else _as_text(message))
    entry = DeadLetter(uuid.uuid4().hex[:12], iso(datetime.now(UTC)) or "", queue, one_line(reason), text)
    client.eval(_PUSH, 1, _KEY, json.dumps(entry._asdict(), ensure_ascii=False), MOST_KEPT - 1)


def list_dead_letters(ledger: Ledger) -> list[DeadLetter]:
    """All of them, newest first. Raises `LedgerUnavailable`."""
    return [one for one, _ in _entries(ledger)]


def drop_dead_letters(ledger: Ledger, ids: set[str], act: Act) -> set[str]:
    """Delete these; the ids of those that were there. Raises `LedgerUnavailable`."""
    return _act(ledger, "drop", act, [[one.id, entry] for one, entry in _entries(ledger) if one.id in ids])


def requeue_dead_letters(ledger: Ledger, ids: set[str], queues: Collection[str], act: Act) -> set[str]:
    """Send these messages again; the ids of those that were there. They are checked as if they had just come.

    Their requests are dated by when they came first: the name may have been used again since.

    Raises `InvalidRequest`, before anything is sent, if one was cut or its queue is not one of `queues`.
    """
    letters = [(one, entry) for one, entry in _entries(ledger) if one.id in ids]
    for one, _ in letters:
        # A character that was cut takes up to four bytes.
        if len(one.text.encode()) > MOST_TEXT - 4 or one.queue not in queues:
            why = "its text was cut" if one.queue in queues else f"its queue {one.queue!r} is not the janitor's"
            raise InvalidRequest(f"the dead letter {one.id} cannot be sent again, {why}: have its sender send it")
    return _act(ledger, "requeue", act, [[one.id, entry, one.queue, _seen(one)] for one, entry in letters])


def _seen(letter: DeadLetter) -> str:
    """Its text with the time at which it was here first; as it is if it has no place for one."""
    try:
        message = json.loads(letter.text)
        headers = message["headers"]
        headers[SEEN_HEADER] = min(letter.at, headers.get(SEEN_HEADER) or letter.at)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return letter.text
    return json.dumps(message)


def _entries(ledger: Ledger) -> list[tuple[DeadLetter, str]]:
    """All of them, newest first, with their text in Redis."""
    entries: Any = ledger.redis.lrange(_KEY, 0, -1)
    # A field that this version does not know is left out.
    return [(DeadLetter(*map(json.loads(entry).get, DeadLetter._fields)), entry) for entry in entries]


def _act(ledger: Ledger, name: str, act: Act, letters: Sequence[Sequence[str]]) -> set[str]:
    done: set[str] = set()
    for start in range(0, len(letters), _AT_ONCE):
        done.update(ledger.act(name, act, letters=letters[start : start + _AT_ONCE]))
    return done


def _as_text(message: object) -> str:
    if isinstance(message, bytes):
        return message.decode("utf-8", errors="backslashreplace")
    return json.dumps(message, default=repr, ensure_ascii=False)


def _cut(text: str) -> str:
    """Its first bytes. A control character, of which JSON would make six bytes, becomes a space."""
    start = text[:MOST_TEXT].encode("utf-8", "backslashreplace")[:MOST_TEXT]
    return re.sub("[\x00-\x1f]", " ", start.decode("utf-8", "ignore"))
