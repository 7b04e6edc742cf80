"""What a call to the BFL API raises: one class for each way to go on.

JanitorError
└── ApiError                  a call had no good answer
    ├── NotSent               no connection, no name resolution, no TLS: the request did not leave
    ├── Throttled             429, 402, 503 with Retry-After: not applied; the account must cool down
    ├── TryAgain              408, 425: not applied, try again
    ├── NotFound              404
    ├── KeyRefused            401, 403: not applied; either the key or this one finetune is refused
    ├── Refused               other 4xx and any 3xx: not applied, and never will be
    ├── WrongFinetune         an answer that names another finetune: alarming
    └── Unclear               read timeout, reset, 1xx, 5xx, an unreadable 2xx: may have been applied
        └── Reshaped          a 2xx in a shape that is not known, such as another list of finetunes
"""

from dataclasses import KW_ONLY, dataclass
from datetime import timedelta

from tasks.errors import JanitorError


@dataclass(eq=False, repr=False)
class ApiError(JanitorError):
    """A call to the BFL API had no good answer.

    detail:      what the API said, or what happened, in one printable line; never the key.
    http_status: the answer's status, None if there was none.
    retry_after: how long the API asked to wait, None if it did not say.
    seconds:     how long the call took.
    from_api:    whether the answer is JSON with `detail`, as BFL's are.
    """

    detail: str
    _: KW_ONLY
    http_status: int | None = None
    retry_after: timedelta | None = None
    seconds: float = 0.0
    from_api: bool = False

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


# That 402 can be back-pressure is known from public reports.
_KINDS = {
    401: KeyRefused, 402: Throttled, 403: KeyRefused, 404: NotFound, 408: TryAgain, 425: TryAgain, 429: Throttled,
}  # fmt: skip


def error_kind(status: int, *, told_to_wait: bool) -> type[ApiError]:
    """The error for a status that is not 2xx.

    told_to_wait: whether the answer has a `Retry-After`; it makes a 503 back-pressure.
    """
    if status == 503 and told_to_wait:
        return Throttled
    return _KINDS.get(status, Refused if 300 <= status < 500 else Unclear)
