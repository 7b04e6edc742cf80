"""The shapes of what is sent and answered; `NewRequest.checked` has the rules, `Deletion` is the record."""

import uuid
from collections import Counter
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.config import JsonDict

from tasks.durations import ACCEPTED_TIME, LONGEST, parse_time
from tasks.errors import InvalidRequest
from tasks.intake import BULK, digest_of
from tasks.labels import MAX_LABELS
from tasks.records import DEFAULT_ACCOUNT, MAX_ID_LENGTH, MAX_TEXT_LENGTH, Deletion, NewRequest, State
from tasks.text import finetune_key

MOST_AT_ONCE = 1000
_ID_LENGTH: JsonDict = {"minLength": 1, "maxLength": MAX_ID_LENGTH}  # only told: `check_finetune_id` has the words
# Ids made from idempotency keys are below this one, each token's in a name space of its own.
_IDS = uuid.UUID("5b0f0d0c-8f0e-4c53-9a55-6f6a3c1f2d11")


def _moment(given: object) -> object:
    if not isinstance(given, str):
        raise InvalidRequest(f"give {ACCEPTED_TIME}")
    return parse_time(given)


def _line(given: str) -> str:
    if not given.isprintable():
        raise InvalidRequest(f"give one line of at most {MAX_TEXT_LENGTH} printable characters")
    return given


Moment = Annotated[datetime, BeforeValidator(_moment)]
Line = Annotated[str, Field(max_length=MAX_TEXT_LENGTH), AfterValidator(_line)]


class NewDeletion(BaseModel):
    """Which finetune to delete, and how."""

    model_config = ConfigDict(extra="forbid", strict=True)

    finetune_id: str = Field(description="the finetune to delete", json_schema_extra=_ID_LENGTH)
    account: str = Field(DEFAULT_ACCOUNT, description="the account that has it")
    reason: str | None = Field(None, description=f"one line, at most {MAX_TEXT_LENGTH} characters, kept on record")
    labels: dict[str, str] | None = Field(
        None, description=f"up to {MAX_LABELS}, such as customer: 4711, kept on record"
    )
    due_at: Moment | None = Field(None, description="not before this time; a past time counts as now")
    delay_seconds: float | None = Field(None, ge=0, le=LONGEST.total_seconds(), allow_inf_nan=False,
        description="not before this many seconds")  # fmt: skip
    requested_at: Moment | None = Field(
        None, description="when it was asked for, if earlier than now: a finetune created later is not deleted"
    )
    missing_ok: bool = Field(default=False, description="it is fine if there is no such finetune")


class NewDeletions(BaseModel):
    """At least one; all are accepted or none."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={
        "examples": [{"deletions": [{"finetune_id": "my-finetune", "reason": "customer left"}]}]
    })  # fmt: skip

    deletions: list[NewDeletion] = Field(min_length=1, max_length=MOST_AT_ONCE)

    def requests(self, token: str, key: str | None) -> list[NewRequest]:
        """A request for each. token: the name of the caller's. Raises `InvalidRequest` if one is there twice.

        With an idempotency key, each id is made from the token's name, the key and the place in the list, and all
        have the digest of the whole body: so the first one tells whether the key was used for another body.
        """
        names = [f"{one.account}/{finetune_key(one.finetune_id)}" for one in self.deletions]
        for name, times in Counter(names).items():
            if times > 1:
                raise InvalidRequest(f"deletions has {name!r} twice: name each finetune of an account once")
        bulk, digest = len(names) > BULK, digest_of(names, None, self.model_dump(exclude_defaults=True))
        requests = []
        for n, one in enumerate(self.deletions):
            id_ = str(uuid.uuid5(_IDS, f"{token}/{n}/{key}") if key else uuid.uuid4())
            fields = one.model_dump(exclude={"delay_seconds"})
            delay = None if one.delay_seconds is None else timedelta(seconds=one.delay_seconds)
            requests.append(NewRequest(
                id_, **fields, delay=delay, source="http", requested_by=token, digest=digest, bulk=bulk
            ))  # fmt: skip
        return requests


class Asked(BaseModel):
    """What became of one request: its record. `created` is false if the request was known already."""

    created: bool
    deletion: Deletion


class Answers(BaseModel):
    """In the order of the requests."""

    deletions: list[Asked]


class Wanted(BaseModel):
    """Which deletions to list; all filters must match."""

    model_config = ConfigDict(extra="forbid")

    finetune_id: str | None = Field(None, json_schema_extra=_ID_LENGTH)
    state: list[State] = Field(default=[], max_length=len(State), description="may be repeated")
    account: str | None = None
    since: Moment | None = Field(None, description="accepted at or after this time")
    until: Moment | None = Field(None, description="accepted at or before this time")
    label: list[str] = Field(
        default=[], max_length=MAX_LABELS, description="`key=value`; may be repeated, all must fit"
    )
    requested_by: str | None = Field(None, description="who asked, as the record says")
    name: str | None = Field(
        None, max_length=MAX_ID_LENGTH, description="a pattern for the finetune's name, such as `test-*`"
    )
    limit: int = Field(50, ge=1, le=500)
    cursor: str | None = Field(None, description="that of the page before")


class Why(BaseModel):
    """Why this is done."""

    model_config = ConfigDict(extra="forbid")

    reason: Line | None = Field(None, description="why; kept in the audit log")


class Resolution(BaseModel):
    """What became of the finetune of a deletion in review, and how that is known."""

    model_config = ConfigDict(extra="forbid")

    found: Literal["deleted", "kept"] = Field(alias="as", description="what became of the finetune")
    note: Line = Field(min_length=1, description="how that is known; kept on record")
    reason: Line | None = Field(None, description="why; kept in the audit log")


class Listed(BaseModel):
    """One page, newest first; `cursor` asks for the next one, null on the last.

    It may have fewer than `limit`, or none, and still a cursor: at most 10,000 records are read for one.
    """

    deletions: list[Deletion]
    cursor: str | None
