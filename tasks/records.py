"""What is kept about a deletion: its requests, its attempts, its outcome. Pure data, no I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from tasks.durations import iso
from tasks.errors import InvalidRequest

MAX_ID_LENGTH = 255
MAX_REQUEST_ID_LENGTH = 128
MAX_TEXT_LENGTH = 500
DEFAULT_ACCOUNT = "default"
_ACCOUNT = re.compile(r"[a-z0-9_]{1,40}")


class State(StrEnum):
    """Where a deletion stands; `TRANSITIONS` says who may follow whom."""

    SCHEDULED = "scheduled"  # waits for its time: a grace period, or a long backoff
    QUEUED = "queued"  # due; runs when a worker and a permit are free
    RUNNING = "running"  # claimed; an attempt may be under way until the lease ends
    DELETED = "deleted"  # BFL confirmed it, or a read-back showed it gone after an attempt of ours
    NOT_FOUND = "not_found"  # BFL does not know it, and no attempt of ours removed it
    SUPERSEDED = "superseded"  # the name belongs to another incarnation; nothing was deleted
    FAILED = "failed"  # refused for good, or given up at its deadline
    REVIEW = "review"  # the outcome could not be established; a person must look
    CANCELLED = "cancelled"  # withdrawn, and not deleted

    @property
    def is_final(self) -> bool:
        return self not in (State.SCHEDULED, State.QUEUED, State.RUNNING)


FINAL = frozenset(state for state in State if state.is_final)

# A final state never changes, except that a late 200 for our own attempt turns any other into `deleted`.
TRANSITIONS: Mapping[State, frozenset[State]] = {
    State.SCHEDULED: FINAL | {State.QUEUED},
    State.QUEUED: FINAL | {State.RUNNING, State.SCHEDULED},
    State.RUNNING: FINAL | {State.QUEUED, State.SCHEDULED},
    **{state: frozenset({State.DELETED} - {state}) for state in FINAL},
}


class Evidence(StrEnum):
    """How it is known that a finetune is deleted."""

    RESPONSE = "response"  # BFL said so in its answer
    READ_BACK = "read-back"  # a look after an attempt of ours showed it gone


class Plain:
    """The stable JSON form: the fields in their order; times in UTC, ISO 8601, milliseconds."""

    def to_json(self) -> dict[str, Any]:
        return {field.name: _plain(getattr(self, field.name)) for field in fields(self)}  # type: ignore[arg-type] # of dataclasses only


@dataclass(frozen=True)
class Request(Plain):
    """One asking for a deletion: who, why, when, how soon."""

    id: str
    at: datetime
    requested_by: str | None
    reason: str | None
    source: str
    due_at: datetime
    missing_ok: bool
    withdrawn_at: datetime | None = None  # a cleanup's, whose finetune was used or protected since

    def to_json(self) -> dict[str, Any]:
        whole = super().to_json()
        return whole if self.withdrawn_at else {name: whole[name] for name in whole if name != "withdrawn_at"}


@dataclass(frozen=True)
class Attempt(Plain):
    """One delete call to the API. `sent` is false where it is known that the request never left."""

    at: datetime
    sent: bool
    http_status: int | None = None
    error: str | None = None
    message: str | None = None
    seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class Deletion(Plain):
    """The record of one deletion, as it is answered to whoever asks for it."""

    id: str
    finetune_id: str
    account: str
    state: State
    status: str | None = None
    message: str | None = None
    timestamp: str | None = None
    evidence: Evidence | None = None
    created_at: datetime
    due_at: datetime
    deadline: datetime
    finished_at: datetime | None = None
    looked_at: datetime | None = None
    fingerprint: str | None = None
    cancel_requested_at: datetime | None = None
    retried_by: str | None = None
    requests: tuple[Request, ...] = ()
    attempts: tuple[Attempt, ...] = ()

    def request(self, request_id: str) -> Request | None:
        return next((request for request in self.requests if request.id == request_id), None)

    def is_done(self, *, missing_ok: bool) -> bool:
        """Whether it ended as asked: deleted, or not there where that is fine."""
        return self.state is State.DELETED or (missing_ok and self.state is State.NOT_FOUND)


@dataclass(frozen=True)
class NewRequest:
    """A request on its way into the ledger; `checked()` is what makes it acceptable."""

    id: str
    finetune_id: str
    account: str = DEFAULT_ACCOUNT
    source: str = "command"
    requested_by: str | None = None
    reason: str | None = None
    due_at: datetime | None = None
    delay: timedelta | None = None
    requested_at: datetime | None = None
    missing_ok: bool = False
    fingerprint: str | None = None
    bulk: bool = False
    callbacks: Mapping[str, Any] | None = None

    def checked(self, *, allow_org_ids: bool) -> NewRequest:
        """Itself; raises `InvalidRequest` with what was given and what is accepted."""
        check_request_id(self.id)
        check_finetune_id(self.finetune_id, allow_org_ids=allow_org_ids)
        check_account(self.account)
        for name, text in (("reason", self.reason), ("requested_by", self.requested_by)):
            if text is not None and not _is_line(text, MAX_TEXT_LENGTH):
                accepted = f"give one line of at most {MAX_TEXT_LENGTH} printable characters"
                raise InvalidRequest(f"{name} is {_shown(text)}: {accepted}")
        if not isinstance(self.missing_ok, bool):
            raise InvalidRequest(f"missing_ok is {_shown(self.missing_ok)}: give true or false")
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
    shown, accepted = _shown(finetune_id), f"give 1 to {MAX_ID_LENGTH} printable characters without spaces"
    if not isinstance(finetune_id, str):
        raise InvalidRequest(f"the finetune id {shown} is no text: {accepted}")
    if not finetune_id:
        raise InvalidRequest(f"the finetune id is empty: {accepted}")
    if len(finetune_id) > MAX_ID_LENGTH:
        raise InvalidRequest(f"the finetune id {shown} has {len(finetune_id)} characters: {accepted}")
    if not finetune_id.isprintable() or " " in finetune_id:
        raise InvalidRequest(f"the finetune id {shown} has a space or a control character: {accepted}")
    if "/" in finetune_id and not allow_org_ids:
        raise InvalidRequest(
            f"the finetune id {shown} names another organisation's finetune (org/name): give one of your own, or "
            "set JANITOR_ALLOW_ORG_IDS=true if that is meant"
        )
    return finetune_id


def check_request_id(request_id: object) -> str:
    """`request_id` if it can be one; raises `InvalidRequest`."""
    if not request_id or not _is_line(request_id, MAX_REQUEST_ID_LENGTH):
        raise InvalidRequest(
            f"the request id {_shown(request_id)} is not accepted: give 1 to {MAX_REQUEST_ID_LENGTH} printable "
            "characters, such as a UUID"
        )
    return str(request_id)


def check_account(account: object, known: Iterable[str] | None = None) -> str:
    """`account` if it is a name, and one of `known` where that is given; raises `InvalidRequest`."""
    if not isinstance(account, str) or not is_account(account):
        raise InvalidRequest(
            f"the account {_shown(account)} is not a name: give lowercase letters, digits and _, at most 40"
        )
    if known is not None and account not in known:
        raise InvalidRequest(f"the account {account!r} is not known: give one of {', '.join(sorted(known))}")
    return account


def is_account(name: str) -> bool:
    """Whether an account can be called so."""
    return _ACCOUNT.fullmatch(name) is not None


def check_state(state: str) -> State:
    """The `State` called so; raises `InvalidRequest`."""
    try:
        return State(state)
    except ValueError:
        raise InvalidRequest(f"{_shown(state)} is not a state: give one of {', '.join(State)}") from None


def from_ms(milliseconds: float | str) -> datetime:
    """An aware UTC datetime; the ledger's scripts count milliseconds since the epoch."""
    return datetime.fromtimestamp(float(milliseconds) / 1000, UTC)


def moment(milliseconds: float | str | None) -> datetime | None:
    """`from_ms` of what may be absent."""
    return None if milliseconds is None else from_ms(milliseconds)


def to_ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return iso(value)
    if isinstance(value, tuple):
        return [one.to_json() for one in value]
    return value.value if isinstance(value, StrEnum) else value


def _is_line(value: object, most: int) -> bool:
    return isinstance(value, str) and len(value) <= most and value.isprintable()


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
