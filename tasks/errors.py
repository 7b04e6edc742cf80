"""The one exception tree.

JanitorError
├── InvalidRequest            what was asked cannot be accepted; nothing was written
│   └── IdConflict            a known id came with other arguments
├── UnknownDeletion           no record has this id
├── LedgerUnavailable         Redis cannot be reached, or refuses to write
│   └── LedgerRefused         it refused this one, and would again
├── UnknownPlan               no plan has this id
├── PlanRefused               a plan is blocked or too old
├── DeletionNotDone           a deletion ended otherwise than asked; carries the record
└── ApiError                  a call to the BFL API had no good answer
    ├── NotSent               no connection, name or TLS: the request never left
    ├── Throttled             429, 402, 503 with Retry-After: the account must cool down
    ├── TryAgain              408, 425: not applied, try again
    ├── NotFound              404
    ├── KeyRefused            401, 403
    ├── Refused               422, 400, other 4xx and any 3xx: final
    ├── WrongFinetune         200 that names another finetune: alarming
    └── Unclear               timeout, reset, 5xx, an unreadable 2xx: may have been applied
        └── Reshaped          an answer in a shape that is not known
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any


class JanitorError(Exception):
    """Anything this project raises on purpose; `str()` of it is one line fit for a person."""


class InvalidRequest(JanitorError, ValueError):
    """What was asked cannot be accepted: the message says what was given and what is accepted."""


class IdConflict(InvalidRequest):
    """A request's id is known already, with other arguments."""


class UnknownDeletion(JanitorError, LookupError):
    """No deletion and no request has this id."""


class UnknownPlan(JanitorError, LookupError):
    """No plan has this id."""


class PlanRefused(JanitorError):
    """A plan must not be applied: it is blocked, or too old."""


class LedgerUnavailable(JanitorError, ConnectionError):
    """Redis cannot be reached, or refuses to write."""


class LedgerRefused(LedgerUnavailable):
    """Redis refused what it was given; the same again would be refused again."""


class DeletionNotDone(JanitorError):
    """A deletion ended otherwise than asked.

    `args[0]` is the record as a JSON-compatible dict, so a Celery producer that has none of our code
    reads it from the exception that `AsyncResult.get()` raises.
    """

    def __init__(self, record: Mapping[str, Any]) -> None:
        super().__init__(dict(record))

    @property
    def record(self) -> dict[str, Any]:
        record: dict[str, Any] = self.args[0]
        return record


class ApiError(JanitorError):
    """A call to the BFL API had no good answer.

    http_status: the answer's status, None where there was none.
    detail:      what the API said, or what happened, in one line; never the key.
    retry_after: how long the API asked to wait, None where it did not say.
    seconds:     how long the call took.
    """

    def __init__(
        self,
        detail: str,
        *,
        http_status: int | None = None,
        retry_after: timedelta | None = None,
        seconds: float = 0.0,
        from_api: bool = False,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.http_status = http_status
        self.retry_after = retry_after
        self.seconds = seconds
        self.from_api = from_api

    def __str__(self) -> str:
        return f"HTTP {self.http_status}: {self.detail}" if self.http_status else self.detail


class NotSent(ApiError):
    """The request never left: refused connection, name resolution, TLS failure."""


class Throttled(ApiError):
    """429, 402 or 503 with `Retry-After`: not applied; the whole account must cool down."""


class TryAgain(ApiError):
    """408 or 425: not applied, worth trying again."""


class NotFound(ApiError):
    """404. `from_api` is true where it is JSON with `detail`, as BFL answers for an unknown id."""


class KeyRefused(ApiError):
    """401 or 403: not applied; either the key or this one finetune is refused."""


class Refused(ApiError):
    """422, 400, any other 4xx, and any 3xx: not applied, and never will be."""


class WrongFinetune(ApiError):
    """200 whose `deleted_finetune_id` is not the one asked for."""


class Unclear(ApiError):
    """It may have been applied: read timeout, reset, 5xx, a 2xx that cannot be read."""


class Reshaped(Unclear):
    """A 2xx whose shape is not known: the list of finetunes is not what it was."""
