"""The signatures in a message: callbacks, chains and chords that our worker publishes when a task has ended.

Celery trusts them. A wrong shape raises outside its error handling. A queue is a key of Redis, so a callback could
be pushed into the ledger. An errback of a task that our worker knows is called in our own thread.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

from tasks.ledger.keys import AUDIT, PREFIX
from tasks.text import shown
from worker.message_fields import EMBEDDED, NESTED, OPTIONS, PARTS, QUEUES, SIGNATURE, RefusedMessage

_MOST = 1000
# Keys of the ledger, in any version, of kombu and of Celery's result backend: a message pushed there breaks them.
_OURS = [prefix.split(":")[0] + ":" for prefix in (PREFIX, AUDIT)]
_RESERVED_PREFIXES = (*_OURS, "_kombu", "unacked", "celery-task", "celeryev", "chord-unlock-", "/")


def check_signatures(embedded: Any) -> None:
    """Raise `RefusedMessage` if the third element of a body holds what Celery cannot or must not publish."""
    EMBEDDED.check(embedded, "the third element of the body", "in the body, ")
    _check_within(embedded, EMBEDDED.kinds, None, count(1), sent_here=True)


def _check_within(
    given: Mapping[str, Any], places: Iterable[str], queue: Any, counted: Iterator[int], *, sent_here: bool,
    in_chain: bool = False,
) -> None:  # fmt: skip
    """Check each signature in the fields `places` of `given`, and those nested in it, outermost first.

    queue: inherited, if any. sent_here: our worker publishes them, not a later one. in_chain: they are the tasks
    of one, in order.
    """
    for place in places:
        value = given.get(place)
        listed = value if isinstance(value, list) else [] if value is None else [value]
        # Each worker publishes the next task of a chain only. An embedded chain is kept in reverse.
        next_index = len(listed) - 1 if place == "chain" else 0
        for index, signature in enumerate(listed):
            if next(counted) > _MOST:
                raise RefusedMessage(f"the message has more than {_MOST:,} callbacks: send fewer")
            is_later = place == "body" or ((in_chain or place == "chain") and index != next_index)
            here = sent_here and not is_later
            _check_signature(signature, place, queue, sent_here=here)
            options, kind = signature["options"], signature.get("subtask_type")
            # Our worker calls the errbacks of a chord itself if one of its tasks has failed here.
            by_us = {"link_error"} if place == "chord" else set()
            _check_within(options, by_us, None, counted, sent_here=True)
            _check_within(options, NESTED.keys() - by_us, None, counted, sent_here=False)
            if kind:
                _check_within(
                    signature["kwargs"], ("tasks", "header", "body"), options.get("queue") or queue, counted,
                    sent_here=here, in_chain=kind == "chain",
                )  # fmt: skip


def _check_signature(given: Any, place: str, inherited: Any, *, sent_here: bool) -> None:
    """Check one, without those nested in it."""
    where = f"a signature in {place}"
    signature = SIGNATURE.check(given, where, f"{where}: ")
    options, kind = OPTIONS.check(signature["options"], where, f"{where}: "), signature.get("subtask_type")
    if kind:
        parts = PARTS[kind].check(signature["kwargs"], where, f"a {kind} in {place}: ")
        if not parts["header" if kind == "chord" else "tasks"]:
            raise RefusedMessage(f"{where} is a {kind} without tasks: give it one, or leave it out")
    queue = options.get("queue") or inherited
    if queue and (queue.startswith(_RESERVED_PREFIXES) or "pidbox" in queue):
        raise RefusedMessage(f"{where} goes to {shown(queue)}, which is reserved: give a queue of your own")
    if not sent_here or kind:
        return
    if not queue or queue in QUEUES:
        raise RefusedMessage(
            f"{where} goes to the janitor's own queue: give its task another one, as in .set(queue='NAME')"
        )
    if signature["task"].startswith(("finetunes.", "celery.")):
        raise RefusedMessage(f"{where} names {shown(signature['task'])}: give a task of your own")
