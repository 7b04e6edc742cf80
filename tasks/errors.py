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
    ├── NotSent               no connection, no name resolution, no TLS: the request never left
    ├── Throttled             429, 402, 503 with Retry-After: not applied; the account must cool down
    ├── TryAgain              408, 425: not applied, try again
    ├── NotFound              404
    ├── KeyRefused            401, 403: not applied; either the key or this one finetune is refused
    ├── Refused               422, 400, other 4xx and any 3xx: not applied, and never will be
    ├── WrongFinetune         200 that names another finetune: alarming
    └── Unclear               read timeout, reset, 5xx, an unreadable 2xx: may have been applied
        └── Reshaped          a 2xx in a shape that is not known, such as another list of finetunes
"""

from __future__ import annotations

from datetime import timedelta


class JanitorError(Exception):
    """Anything this project raises on purpose; `str()` of it is one line fit for a person."""


class InvalidRequest(JanitorError, ValueError):
    """What was asked cannot be accepted: the message says what was given and what is accepted."""


class IdConflict(InvalidRequest): ...


class UnknownDeletion(JanitorError, LookupError): ...


class UnknownPlan(JanitorError, LookupError): ...


class PlanRefused(JanitorError): ...


class LedgerUnavailable(JanitorError, ConnectionError): ...


class LedgerRefused(LedgerUnavailable): ...


class DeletionNotDone(JanitorError):
    """A deletion ended otherwise than asked.

    `args[0]` is the record as a JSON-compatible dict, so a Celery producer that has none of our code
    reads it from the exception that `AsyncResult.get()` raises.
    """


class ApiError(JanitorError):
    """A call to the BFL API had no good answer.

    http_status: the answer's status, None where there was none.
    detail:      what the API said, or what happened, in one line; never the key.
    retry_after: how long the API asked to wait, None where it did not say.
    seconds:     how long the call took.
    from_api:    whether the answer is JSON with `detail`, as BFL's are.
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


class NotSent(ApiError): ...


class Throttled(ApiError): ...


class TryAgain(ApiError): ...


class NotFound(ApiError): ...


class KeyRefused(ApiError): ...


class Refused(ApiError): ...


class WrongFinetune(ApiError): ...


class Unclear(ApiError): ...


class Reshaped(Unclear): ...
