"""Waiting for deletions to end, which they do whether or not anybody waits."""

import math
import time
from collections.abc import Sequence

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.queries import get, get_many
from tasks.records import Deletion, State
from tasks.text import in_command
from worker.cli import NOT_IN_TIME
from worker.cli.output import note, print_in_full, with_reasons
from worker.cli.session import progress

_POLL_SECONDS = 0.1
_AWAY_SECONDS = 30.0  # without Redis: a restart, or a failover
_QUIET_SECONDS = 2.0  # after this without a change, the reason is told
_LOOKED_AT = 20


def follow(
    ledger: Ledger, ids: Sequence[str], timeout_seconds: float | None, *, missing_ok: bool = False, first: str = ""
) -> int:
    """Wait until these deletions are final, and show them; the exit code: 0 if all ended as asked.

    first: is told before, so that a person who interrupts the wait knows what goes on without it.

    Raises `UnknownDeletion`. A bar shows the progress of many, on a terminal only.
    """
    try:
        if first:
            note(first)
        deletions = _wait(ledger, ids, timeout_seconds)
    except KeyboardInterrupt:
        again = f"`janitor wait {in_command(ids[0])}`" if len(ids) == 1 else "`janitor wait` with their ids"
        note(f"not waiting any more; the deletion goes on. {again} waits again, `janitor list` shows the state")
        raise
    print_in_full(with_reasons(ledger, deletions))
    if not all(one.is_final for one in deletions):
        note("not all ended in time: `janitor wait` waits for the rest")
        return NOT_IN_TIME
    done = [one.is_done or (missing_ok and one.state == State.NOT_FOUND) for one in deletions]
    return 0 if all(done) else 1


def _wait(ledger: Ledger, ids: Sequence[str], timeout_seconds: float | None) -> list[Deletion]:
    """The deletions once all are final, or the time is up."""
    heard = time.monotonic()
    over = heard + (math.inf if timeout_seconds is None else timeout_seconds)
    found: dict[str, Deletion] = {}
    left, reasons = ids, _Reasons(ledger)
    with progress("deletions") as advance:
        while True:
            try:
                found |= _read(ledger, left)
                heard = time.monotonic()
                left = [id_ for id_ in ids if not found[id_].is_final]
                advance(len(ids) - len(left), len(ids))
                if not left or heard >= over:
                    return [found[id_] for id_ in ids]
                reasons.tell([found[id_] for id_ in left])
            except LedgerUnavailable:
                # The deletions go on: an error now would read as if they had not been accepted.
                if time.monotonic() >= min(over, heard + _AWAY_SECONDS):
                    raise
            time.sleep(_POLL_SECONDS)


def _read(ledger: Ledger, ids: Sequence[str]) -> dict[str, Deletion]:
    # One that is not there is asked for by itself, which raises the error that says so.
    return {id_: one or get(ledger, id_) for id_, one in zip(ids, get_many(ledger, ids), strict=True)}


class _Reasons:
    """Tells why nothing happens, if nothing has changed for two seconds, and again when the reason changes."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._states: list[tuple[str, str]] = []
        self._look_at = 0.0
        self._told: str | None = None

    def tell(self, left: Sequence[Deletion]) -> None:
        states, now = [(one.id, one.state) for one in left], time.monotonic()
        if states != self._states:
            self._states, self._look_at = states, now + _QUIET_SECONDS
        if now < self._look_at:
            return
        self._look_at = now + _QUIET_SECONDS
        first = next((one for one in with_reasons(self._ledger, left[:_LOOKED_AT]) if one.waiting_for), None)
        why = (first and first.waiting_for) or ""
        kind = why.partition(", behind ")[0]  # how many are before it changes all the time
        if first and kind != self._told:
            self._told = kind
            which = f"{len(left)} have not ended, {first.finetune_id} waits" if len(left) > 1 else "it waits"
            note(f"{which}: {why}")
