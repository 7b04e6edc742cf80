"""What the ledger takes and gives: requests accepted, work claimed, permission given. Pure data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import NamedTuple


@dataclass(frozen=True)
class Terms:
    """The durations the ledger works with; `worker.settings` says what each means."""

    lease: timedelta = timedelta(seconds=30)
    call_deadline: timedelta = timedelta(seconds=20)
    give_up_after: timedelta = timedelta(days=7)
    retention: timedelta = timedelta(days=90)
    first_look_after: timedelta = timedelta(seconds=30)


class Accepted(NamedTuple):
    """What became of one request: the deletion it belongs to, and whether that is new."""

    deletion_id: str
    created: bool
    known: bool


class WakeUp(NamedTuple):
    """A Celery message to send: this account has work."""

    account: str
    id: str


class Claimed(NamedTuple):
    """What a worker holds: a first look, a delete, or the probe of a parked account. Times: ms, Redis's clock.

    permit: its name; empty for what was claimed ahead, for a thread to go on to under the permit it has.
    """

    kind: str
    id: str
    token: int
    finetune_id: str = ""
    lane: str = ""
    created_at: int = 0
    asked_at: int = 0
    due_at: int = 0
    deadline: int = 0
    fingerprint: str = ""
    looked_at: int = 0
    unclear_at: int = 0
    cancel_requested_at: int = 0
    backoffs: int = 0
    last_tried: int = 0
    calling: int = 0
    joined: int = 0
    permit: str = ""
    claimed_at: int = 0
    account: str = ""


class Verdict(NamedTuple):
    """Whether a call may start: `go`, `lost`, `cancelled`, `paused`, `cooling`, `parked` or `full`."""

    word: str
    wait: timedelta


class Dispatched(NamedTuple):
    """What a round of dispatch found: wake-ups to send, results to write, records pruned."""

    wakeups: list[WakeUp]
    owed: list[str]
    pruned: int
