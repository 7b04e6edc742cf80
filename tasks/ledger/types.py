"""What the ledger takes and gives.

Pure data; times are milliseconds on Redis's clock unless they are datetimes.
"""

from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from typing import Literal, NamedTuple

from tasks.records import Evidence, State


@dataclass(frozen=True)
class Terms:
    """The durations that the ledger works with; `worker.settings` says what each means.

    reports_clear_for: for how long a moment counts at which no report of use was in the broker.
    """

    lease: timedelta = timedelta(seconds=30)
    call_deadline: timedelta = timedelta(seconds=20)
    give_up_after: timedelta = timedelta(days=7)
    retention: timedelta = timedelta(days=90)
    audit_retention: timedelta = timedelta(days=1095)
    first_observation_after: timedelta = timedelta(seconds=30)
    reports_clear_for: timedelta = timedelta(seconds=5)


@dataclass(frozen=True)
class Act:
    """Who does something other than asking, by what way and why: kept in the audit log.

    who: a login, the name of a token, or what a message says of its sender. why: one printable line.
    """

    who: str | None
    via: Literal["command", "http", "name", "janitor"]
    why: str | None = None


class Accepted(NamedTuple):
    """What became of one request. `known`: the same request came before, and nothing changed."""

    id: str
    answer: Literal["accepted", "known", "conflict"]


class Withdrawn(NamedTuple):
    """Deletions that are withdrawn. under_way: withdrawn too, but a call may be under way that still deletes."""

    withdrawn: list[str]
    under_way: list[str]


@dataclass(frozen=True)
class Try:
    """What the last attempt of a sibling came to.

    by: the sibling; its state and evidence now. mark, finish: numbers of the ledger's counter, when the attempt
    was about to start and when its result was written. result: `deleted`, or `unclear` if it may have been
    applied.
    """

    by: str
    mark: int
    finish: int
    result: Literal["deleted", "unclear"]
    incarnation: str = ""
    vantage: str = ""
    born_after: int = 0
    state: str = ""
    evidence: str = ""

    @property
    def has_deleted(self) -> bool:
        """Whether that sibling is on record as deleted, by an attempt of its own."""
        return self.state == State.DELETED and self.evidence != Evidence.SIBLING


@dataclass(frozen=True)
class Claim:
    """A deletion in the hands of one runner, until its lease ends.

    kind: `delete`; `resolve` if no further attempt is allowed and an observation decides; `observe` for a first
    observation. token: fences off earlier holders. accepted: number of the ledger's counter. now: when it was
    claimed.
    started_at: when the account was last started again (0: never stopped). unclear_at: when an attempt was made
    that may have been applied (0: none). born_after: the finetune was certainly created after this (0: not
    known). not_founds: how often a delete answered 404 while the finetune was visible.
    """

    id: str
    kind: Literal["delete", "resolve", "observe"]
    token: str
    lane: str
    account: str
    finetune_id: str
    now: int
    accepted: int = 0
    asked_at: int = 0
    due_at: int = 0
    started_at: int = 0
    unclear_at: int = 0
    cancel_requested_at: int = 0
    observed_at: int = 0
    born_after: int = 0
    backoffs: int = 0
    not_founds: int = 0
    last_try: bool = False
    cleanup: bool = False
    incarnation: str = ""
    vantage: str = ""
    tries: tuple[Try, ...] = ()


@dataclass(frozen=True)
class Claimed:
    """The answer to a claim.

    more: publish one more wake-up. why: if there is no claim: full, parked, cooling, paused, idle. dropped: ids
    without a readable record.
    """

    claim: Claim | None = None
    more: bool = False
    why: str = ""
    dropped: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """Whether a call may start: `go`, or lost, cancelled, held, paused, parked, cooling, full, stale.

    now: Redis's clock, ms. why: if it is held, since when, who holds it and why.
    """

    word: str
    wait: timedelta = timedelta(0)
    now: int = 0
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What is known of a deletion in progress, beside its outcome: kept by each mark and by the finish."""

    incarnation: str = ""
    observed_at: int = 0
    vantage: str = ""
    unclear_at: int = 0
    born_after: int = 0


@dataclass(frozen=True)
class Finish:
    """What came of a claim.

    result: a final state; `back`, to wait and be tried again; or `observed`, after a first observation. delay:
    before the next try (of an `observed` that failed: before the next observation). counted: whether it makes the
    next back-off longer. last_try: the deadline has passed and no further attempt is made. pause: why the whole
    account must stop.
    """

    result: State | Literal["back", "observed"]
    message: str = ""
    _: KW_ONLY
    status: str | None = None
    timestamp: str | None = None
    evidence: Evidence | None = None
    deleted_by: str | None = None
    delay: timedelta | None = None
    counted: bool = True
    last_try: bool = False
    pause: str | None = None
    # Taken over from a sibling's attempt, if that one deleted the finetune.
    incarnation: str | None = None
    vantage: str | None = None


@dataclass(frozen=True)
class Progress:
    """What one claim has led to so far.

    made: its last mark whose call was made (0: none). lines, counts: attempts that are not in the record yet, as
    JSON, and the statistics that go with them.
    """

    made: int
    findings: Findings
    lines: tuple[str, ...] = ()
    counts: Mapping[str, int] = field(default_factory=dict)
    not_founds: int = 0


class Finished(NamedTuple):
    """`done`; `late` if the deletion was no longer the claim's; `gone` if it has no record.

    due: its Celery result is to be written.
    """

    word: Literal["done", "late", "gone"]
    due: bool


@dataclass(frozen=True)
class Maintained:
    """One round for one account.

    leases: (lane, id, end), a permit's (`permit`, holder, end); dropped: ids without a readable record.
    """

    reclaimed: int
    wake: bool
    dropped: tuple[str, ...] = ()
    leases: tuple[tuple[str, str, int], ...] = ()
