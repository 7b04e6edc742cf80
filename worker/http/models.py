"""The shapes of what is sent and answered; the rules are `NewRequest.checked`'s, the record is `Deletion`'s."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from tasks.durations import ACCEPTED_TIME, LONGEST, parse_time
from tasks.errors import InvalidRequest
from tasks.intake import BULK
from tasks.records import DEFAULT_ACCOUNT, MAX_ID_LENGTH, MAX_TEXT_LENGTH, Deletion, NewRequest, State

MOST_AT_ONCE = 1000


def _moment(given: object) -> object:
    if not isinstance(given, str):
        raise InvalidRequest(f"give {ACCEPTED_TIME}")
    return parse_time(given)


Moment = Annotated[datetime, BeforeValidator(_moment)]


class NewDeletion(BaseModel):
    """Which finetune to delete, and how."""

    model_config = ConfigDict(extra="forbid", strict=True)

    finetune_id: str = Field(
        description="whom to delete", json_schema_extra={"minLength": 1, "maxLength": MAX_ID_LENGTH}
    )
    account: str = Field(DEFAULT_ACCOUNT, description="whose finetune it is")
    reason: str | None = Field(None, description=f"one line, at most {MAX_TEXT_LENGTH} characters, kept on record")
    due_at: Moment | None = Field(None, description="not before this time; in the past it counts as now")
    delay_seconds: float | None = Field(
        None, ge=0, le=LONGEST.total_seconds(), allow_inf_nan=False, description="not before so long from now"
    )
    requested_at: Moment | None = Field(
        None,
        description="when it was asked for, where that is earlier than now: it decides who was meant by a name",
    )
    missing_ok: bool = Field(default=False, description="it is fine if there is no such finetune")

    def request(self, id_: str, requested_by: str, *, bulk: bool) -> NewRequest:
        fields = self.model_dump(exclude={"delay_seconds"})
        delay = timedelta(seconds=self.delay_seconds) if self.delay_seconds is not None else None
        return NewRequest(id_, **fields, delay=delay, source="http", requested_by=requested_by, bulk=bulk)


class NewDeletions(BaseModel):
    """At least one; all are accepted or none."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"deletions": [{"finetune_id": "my-finetune", "reason": "customer left"}]}]
        },
    )

    deletions: list[NewDeletion] = Field(min_length=1, max_length=MOST_AT_ONCE)

    def requests(self, requested_by: str, key: str | None) -> list[NewRequest]:
        """A request for each, its id made from the idempotency key where one is given."""
        bulk = len(self.deletions) > BULK
        names = [f"{one.account}/{one.finetune_id}" for one in self.deletions]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise InvalidRequest(f"deletions has {twice!r} twice: name each finetune of an account once")
        ids = _ids(key, names)
        return [one.request(id_, requested_by, bulk=bulk) for id_, one in zip(ids, self.deletions, strict=True)]


class Asked(BaseModel):
    """What became of one request. `created` is false where it joined a deletion under way, or was known."""

    request_id: str
    created: bool
    deletion: Deletion


class Answers(BaseModel):
    """In the order of the requests."""

    deletions: list[Asked]


class Wanted(BaseModel):
    """Which deletions to list; all filters must match."""

    model_config = ConfigDict(extra="forbid")

    finetune_id: str | None = Field(None, json_schema_extra={"minLength": 1, "maxLength": MAX_ID_LENGTH})
    state: list[State] = Field(default=[], description="may be repeated")
    account: str | None = None
    since: Moment | None = Field(None, description="accepted at or after this time")
    until: Moment | None = Field(None, description="accepted at or before this time")
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, description="what the page before answered")


class Listed(BaseModel):
    """One page, newest first; `cursor` asks for the next one, null on the last."""

    deletions: list[Deletion]
    cursor: str | None


def _ids(key: str | None, names: list[str]) -> list[str]:
    if key is None:
        return [str(uuid.uuid4()) for _ in names]
    if len(names) == 1:
        return [key]
    space = uuid.uuid5(uuid.NAMESPACE_OID, key)
    return [str(uuid.uuid5(space, name)) for name in names]
