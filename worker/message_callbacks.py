"""The signatures in a message: callbacks, chains and chords that our worker publishes when a task has ended.

Celery trusts them. A wrong shape raises outside its error handling. A queue is a key of Redis, so a callback could
be pushed into the ledger. An errback of a task that our worker knows is called in our own thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from worker.message_fields import (
    LIST,
    OBJECT,
    OPTIONS,
    SIGNATURE,
    SIGNATURES,
    RefusedMessage,
    as_object,
    check_fields,
    shown,
)

QUEUES = ("deletions", "wakeups", "touches")
_EMBEDDED = {"callbacks": LIST, "errbacks": LIST, "chain": LIST, "chord": OBJECT}
_EMBEDDED_OPTIONS = {"link": SIGNATURES, "link_error": SIGNATURES, "chain": LIST, "chord": OBJECT}
# What a signature of several tasks keeps in its kwargs.
_PARTS = {
    "chain": {"tasks": LIST},
    "group": {"tasks": LIST},
    "chord": {"header": SIGNATURES, "body": OBJECT, "kwargs": OBJECT},
}
_MOST = 1000
# Keys that belong to the ledger, to kombu and to Celery's result backend: a message pushed there breaks them.
_RESERVED_PREFIXES = ("janitor:", "_kombu", "unacked", "celery-task", "celeryev", "chord-unlock-", "/")


def check_signatures(embedded: Mapping[str, Any]) -> None:
    """Raise `RefusedMessage` if the third element of a body holds what Celery cannot or must not publish."""
    check_fields(embedded, _EMBEDDED, "in the body, the option", only=True)
    for count, found in enumerate(_signatures(embedded, _EMBEDDED, None, sent_here=True), start=1):
        if count > _MOST:
            raise RefusedMessage(f"the message has more than {_MOST:,} callbacks: send fewer")
        _check_signature(found)


class _Found(NamedTuple):
    """A signature in a message. queue: inherited, if any; sent_here: our worker publishes it, not a later one."""

    signature: dict[str, Any]
    place: str
    queue: Any
    sent_here: bool


def _signatures(
    given: Mapping[str, Any], names: Iterable[str], queue: Any, *, sent_here: bool
) -> Iterator[_Found]:
    """Each signature in the fields `names` of `given`, and those nested in it, outermost first."""
    for place in names:
        value = given.get(place)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        # An embedded chain is kept in reverse, and each worker publishes the next task only.
        first = len(listed) - 1 if place == "chain" else 0
        for index, one in enumerate(listed):
            signature = as_object(one, f"a signature in {place}")
            here = sent_here and place != "body" and (place not in ("chain", "steps") or index == first)
            yield _Found(signature, place, queue, here)
            options, parts = signature["options"], dict(signature["kwargs"])
            yield from _signatures(options, _EMBEDDED_OPTIONS, None, sent_here=False)
            if signature.get("subtask_type") == "chain":
                parts = {"steps": parts.get("tasks")}
            if signature.get("subtask_type"):
                inherited = options.get("queue") or queue
                yield from _signatures(parts, ("tasks", "steps", "header", "body"), inherited, sent_here=here)


def _check_signature(found: _Found) -> None:
    signature, place, inherited, sent_here = found
    where = f"a signature in {place}: the field"
    check_fields(signature, SIGNATURE, where, needed=("task", "args", "kwargs", "options"), only=True)
    options = signature["options"]
    check_fields(options, OPTIONS | _EMBEDDED_OPTIONS, f"a signature in {place}: the option", only=True)
    kind, parts = signature.get("subtask_type"), signature["kwargs"]
    if kind:
        needed = _PARTS[kind]
        check_fields(parts, needed, f"a {kind} in {place}: the field", needed=tuple(needed), only=True)
        if not parts["header" if kind == "chord" else "tasks"]:
            raise RefusedMessage(f"a signature in {place} is a {kind} without tasks")
    queue = options.get("queue") or inherited
    if queue and (queue.startswith(_RESERVED_PREFIXES) or "pidbox" in queue):
        raise RefusedMessage(f"a signature in {place} goes to the queue {shown(queue)}, which is reserved")
    if not sent_here or kind:
        return
    if not queue or queue in QUEUES:
        raise RefusedMessage(
            f"a signature in {place} goes to the janitor's own queue: give its task another one, as in "
            ".set(queue='NAME')"
        )
    if signature["task"].startswith(("finetunes.", "celery.")):
        raise RefusedMessage(f"a signature in {place} names {shown(signature['task'])}: give a task of your own")
