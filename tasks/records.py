"""What is kept about a deletion, and which changes of state are allowed. Pure data, no I/O."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Annotated, Any, Self, TypeVar

from pydantic import BeforeValidator, Field

from tasks.durations import iso
from tasks.errors import InvalidRequest
from tasks.labels import check_labels
from tasks.text import is_line, shown

MAX_ID_LENGTH = 255
MAX_REQUEST_ID_LENGTH = 128
MAX_TEXT_LENGTH = 500
DEFAULT_ACCOUNT = "default"
T = TypeVar("T")
_ACCOUNT = re.compile(r"[a-z0-9_]{1,40}")


class State(StrEnum):
    """Where a deletion stands; `TRANSITIONS` says what may follow."""

    SCHEDULED = "scheduled"  # waits for its time: a delay that was asked for, or a retry
    QUEUED = "queued"  # due; runs when a runner and a permit are free
    RUNNING = "running"  # claimed until its lease ends
    DELETED = "deleted"  # BFL confirmed it, or an observation after our attempt showed it gone
    NOT_FOUND = "not_found"  # not visible to this key at this host, and no attempt of ours removed it
    SUPERSEDED = "superseded"  # another finetune has this name now; nothing was deleted
    FAILED = "failed"  # refused for good, or given up at its deadline
    REVIEW = "review"  # the outcome could not be established; a person must look
    CANCELLED = "cancelled"  # withdrawn; no attempt of this deletion removed it


UNFINISHED = frozenset({State.SCHEDULED, State.QUEUED, State.RUNNING})
FINAL = frozenset(State) - UNFINISHED

# A final state changes in two cases: a late confirmation of our own attempt, and a verification that finds the
# same incarnation still there. A late confirmation for a name that had passed to another finetune needs a person.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    **dict.fromkeys(UNFINISHED, frozenset(State)),
    **dict.fromkeys(FINAL, frozenset({State.DELETED})),
    State.SUPERSEDED: frozenset({State.REVIEW}),
    State.DELETED: frozenset({State.REVIEW}),
}


def is_final(state: str) -> bool:
    """Whether a deletion in this state is over; so is one in a state that this version does not know."""
    return state not in UNFINISHED


class Evidence(StrEnum):
    """How it is known that a finetune is deleted."""

    RESPONSE = "response"  # BFL said so
    READ_BACK = "read-back"  # an observation after an attempt of ours showed it gone
    SIBLING = "sibling"  # another deletion removed it: `deleted_by`


def from_ms(milliseconds: float | str) -> datetime:
    """An aware UTC datetime; the ledger's scripts count milliseconds since the epoch."""
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


# How pydantic reads a stored record: times are in milliseconds, and a newer version may have written other words.
Moment = Annotated[datetime, BeforeValidator(from_ms)]
OrUnknown = Annotated[T | str, Field(union_mode="left_to_right")]


class Plain:
    """The stable JSON form: the fields in their order; times in UTC, ISO 8601, milliseconds."""

    def to_json(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type] # of dataclasses only


@dataclass(frozen=True)
class Attempt(Plain):
    """One delete call to the API. `sent` is false if it is known that the request never left."""

    at: Moment
    sent: bool
    http_status: int | None = None
    error: str | None = None
    message: str | None = None
    seconds: float | None = None
    vantage: str | None = None


@dataclass(frozen=True, kw_only=True)
class Deletion(Plain):
    """The record of one deletion: one request to delete one finetune.

    due_at: the time that was asked for; it never moves. next_try_at: when an unfinished one is tried next.
    status, message, timestamp: BFL's words if it answered, else ours; filled when final. incarnation: which
    finetune it is about, as far as the API tells (`created_at`, unique id, settings). vantage: host and key tag
    from which the finetune was last seen. waiting_for: why an unfinished one waits; it is not
    stored, but filled when the record is shown. A state or evidence that this version does not know is plain text.
    """

    id: str
    finetune_id: str
    account: str
    state: OrUnknown[State]
    evidence: OrUnknown[Evidence] | None = None
    status: str | None = None
    message: str | None = None
    timestamp: str | None = None
    source: str = ""
    requested_by: str | None = None
    reason: str | None = None
    labels: Mapping[str, str] | None = None
    missing_ok: bool = False
    created_at: Moment
    asked_at: Moment
    due_at: Moment
    next_try_at: Moment | None = None
    deadline: Moment
    finished_at: Moment | None = None
    observed_at: Moment | None = None
    vantage: str | None = None
    incarnation: Mapping[str, Any] | None = None
    verified_at: Moment | None = None
    deleted_by: str | None = None
    cancel_requested_at: Moment | None = None
    cancelled_by: str | None = None
    cancel_reason: str | None = None
    resolved_at: Moment | None = None
    resolved_by: str | None = None
    resolution: str | None = None
    retry_of: str | None = None
    retried_by: str | None = None
    waiting_for: str | None = None
    attempts: tuple[Attempt, ...] = ()

    @property
    def is_final(self) -> bool:
        return is_final(self.state)

    @property
    def needs_person(self) -> bool:
        """Whether it is in review, and nobody has resolved or retried it."""
        return self.state == State.REVIEW and self.resolved_at is None and self.retried_by is None

    @property
    def is_done(self) -> bool:
        """Whether it ended as asked: deleted, or not there if that was said to be fine."""
        return self.state == State.DELETED or (self.missing_ok and self.state == State.NOT_FOUND)


@dataclass(frozen=True)
class NewRequest:
    """A request on its way into the ledger; `checked()` says whether it can be accepted.

    source: name | http | command | cleanup:<plan>. bulk: one of many, so that single requests go first.
    incarnation, observed_at, vantage, known_use: for a cleanup, what its plan saw; known_use is when it was last
    used, ms (0: never). needs_use: whether its policy asks for use, so that reports of use must go on.
    retry_of: an old deletion that this continues. digest: of the arguments as given; the same id with another
    digest is a conflict. callbacks: of a Celery producer.
    """

    id: str
    finetune_id: str
    account: str = DEFAULT_ACCOUNT
    source: str = "command"
    requested_by: str | None = None
    reason: str | None = None
    labels: Mapping[str, str] | None = None
    due_at: datetime | None = None
    delay: timedelta | None = None
    requested_at: datetime | None = None
    missing_ok: bool = False
    bulk: bool = False
    incarnation: str | None = None
    observed_at: datetime | None = None
    vantage: str | None = None
    known_use: int | None = None
    needs_use: bool = False
    retry_of: str | None = None
    digest: str = ""
    callbacks: Mapping[str, Any] | None = None

    @property
    def is_cleanup(self) -> bool:
        return self.source.startswith("cleanup:")

    @property
    def lane(self) -> str:
        return "cleanup" if self.is_cleanup else "bulk" if self.bulk else "single"

    def checked(self, *, allow_org_ids: bool) -> Self:
        """Itself; raises `InvalidRequest` with what was given and what is accepted."""
        check_request_id(self.id)
        check_finetune_id(self.finetune_id, allow_org_ids=allow_org_ids)
        check_account(self.account)
        check_line("reason", self.reason)
        check_line("requested_by", self.requested_by)
        check_labels(self.labels)
        if not isinstance(self.missing_ok, bool):
            raise InvalidRequest(f"missing_ok is {shown(self.missing_ok)}: give true or false")
        if self.due_at is not None and self.delay is not None:
            raise InvalidRequest("a time and a delay are both given: give one of them")
        if self.delay is not None and self.delay < timedelta(0):
            raise InvalidRequest(f"the delay is {self.delay.total_seconds():g} seconds: give 0 or more")
        return self


def check_finetune_id(finetune_id: object, *, allow_org_ids: bool = False) -> str:
    """`finetune_id` if the API could know it; raises `InvalidRequest`.

    Names chosen by people use lowercase letters, digits, `-` and `_`, older ids are UUIDs; `org/name` is
    another organisation's (public reports; the API's reference does not say).
    """
    accepted = f"give 1 to {MAX_ID_LENGTH} printable characters without spaces"
    if not isinstance(finetune_id, str):
        why = f"{shown(finetune_id)} is not a text"
    elif not finetune_id:
        why = "is empty"
    elif len(finetune_id) > MAX_ID_LENGTH:
        why = f"{shown(finetune_id)} has {len(finetune_id)} characters"
    elif not finetune_id.isprintable() or " " in finetune_id:
        why = f"{shown(finetune_id)} has a space or a control character"
    elif "/" in finetune_id and not allow_org_ids:
        why = f"{shown(finetune_id)} names another organisation's finetune (org/name)"
        accepted = "give one of your own, or set JANITOR_ALLOW_ORG_IDS=true if that is meant"
    else:
        return finetune_id
    raise InvalidRequest(f"the finetune id {why}: {accepted}")


def check_request_id(request_id: object) -> str:
    """`request_id` if it can be one; raises `InvalidRequest`."""
    if not request_id or not is_line(request_id, MAX_REQUEST_ID_LENGTH):
        accepted = f"give 1 to {MAX_REQUEST_ID_LENGTH} printable characters, such as a UUID"
        raise InvalidRequest(f"the request id {shown(request_id)} is not accepted: {accepted}")
    return str(request_id)


def check_line(name: str, text: object) -> None:
    """Raise `InvalidRequest` if a reason or a name, which may be None, is not one printable line."""
    if text is not None and not is_line(text, MAX_TEXT_LENGTH):
        accepted = f"give one line of at most {MAX_TEXT_LENGTH} printable characters"
        raise InvalidRequest(f"{name} is {shown(text)}: {accepted}")


def check_account(account: object, known: Iterable[str] | None = None) -> str:
    """`account` if it is a name, and one of `known` if that is given; raises `InvalidRequest`."""
    if not isinstance(account, str) or not is_account(account):
        accepted = "give lowercase letters, digits and _, at most 40"
        raise InvalidRequest(f"the account {shown(account)} is not a name: {accepted}")
    if known is not None and account not in known:
        raise InvalidRequest(f"the account {account!r} is not known: give one of {', '.join(sorted(known))}")
    return account


def is_account(name: str) -> bool:
    """Whether this can be the name of an account."""
    return _ACCOUNT.fullmatch(name) is not None


def check_state(state: str) -> State:
    """The `State` of this name; raises `InvalidRequest`."""
    if state not in list(State):
        raise InvalidRequest(f"{shown(state)} is not a state: give one of {', '.join(State)}")
    return State(state)


def moment(milliseconds: float | str | None) -> datetime | None:
    """`from_ms` of what may be absent."""
    return None if milliseconds is None else from_ms(milliseconds)


def to_ms(moment: datetime) -> int:
    # Rounded up, the last moment that Python knows would become one that it does not know.
    return (moment - from_ms(0)) // timedelta(milliseconds=1)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, Plain):
        return value.to_json()
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return value.value if isinstance(value, StrEnum) else value
