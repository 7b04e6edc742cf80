"""The way in: requests are checked whole, written, and only then is a worker woken."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import structlog

from tasks.durations import LONGEST
from tasks.errors import IdConflict, InvalidRequest, LedgerUnavailable
from tasks.ledger.queries import known_accounts
from tasks.ledger.store import Ledger
from tasks.ledger.types import Accepted, Act
from tasks.records import DEFAULT_ACCOUNT, NewRequest, check_account
from tasks.text import one_line

log = structlog.get_logger()

BULK = 100  # more than this many at once let single requests go first


@dataclass(frozen=True)
class Intake:
    """Accepts requests into the ledger.

    wake: publishes a wake-up for an account, and never raises. accounts: known here, registered by a worker or not
    yet.
    """

    ledger: Ledger
    wake: Callable[[str], object]
    allow_org_ids: bool = False
    accounts: Collection[str] = ()

    def check(self, requests: Sequence[NewRequest]) -> None:
        """Raise `InvalidRequest` for the first request that cannot be accepted."""
        known = self._known({request.account for request in requests if isinstance(request.account, str)})
        now = datetime.now(UTC)
        oldest, latest = now - self.ledger.terms.retention, now + LONGEST
        for request in requests:
            request.checked(allow_org_ids=self.allow_org_ids)
            check_account(request.account, known)
            if request.requested_at is not None and request.requested_at < oldest:
                asked_at = request.requested_at.isoformat()
                raise InvalidRequest(f"requested_at {asked_at} is older than records are kept: ask again now")
            if request.due_at is not None and request.due_at > latest:
                raise InvalidRequest(f"due_at {request.due_at.isoformat()} is too far off: give at most ten years")

    def accept(
        self, requests: Sequence[NewRequest], *, wake: bool = True, act: Act | None = None
    ) -> list[Accepted]:
        """What became of each request; wake: whether to publish wake-ups for what is due; act: see `Ledger`.

        Raises `InvalidRequest` for the first that cannot be accepted, before anything is written, and
        `LedgerUnavailable`.
        """
        self.check(requests)
        accepted, to_wake = self.ledger.accept(requests, wake=wake, act=act)
        for account in to_wake:
            self.wake(account)
        return accepted

    def note_refused(self, request_id: str, account: object, error: InvalidRequest) -> None:
        """Log and count a refused request whose sender may not wait for an answer."""
        self.count_refused(account, "conflict" if isinstance(error, IdConflict) else None)
        log.warning("request.refused", deletion=one_line(request_id), error=one_line(str(error)))

    def count_refused(self, account: object, why: str | None = None, count: int = 1) -> None:
        """Count what is refused. why: by default `request`, or `account` if that is not known."""
        with suppress(LedgerUnavailable):
            is_known = isinstance(account, str) and account in self._known({account})
            # A sender's name for an account makes no key of its own.
            stats = self.ledger.keys.stats(account if is_known else DEFAULT_ACCOUNT)
            self.ledger.redis.hincrby(stats, f"refused:{why or ('request' if is_known else 'account')}", count)

    def _known(self, asked: set[str]) -> set[str]:
        known = {DEFAULT_ACCOUNT, *self.accounts}
        return known if asked <= known else known | known_accounts(self.ledger)


def digest_of(finetune_id: object, account: object, options: Mapping[str, Any]) -> str:
    """A digest of a request's arguments as given: the same id with another digest is a conflict."""
    given = json.dumps([finetune_id, account, options], sort_keys=True, default=str)
    return hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def conflict(request: NewRequest) -> IdConflict:
    """The error for a request whose id is known with other arguments; it tells nothing of the other record."""
    return IdConflict(
        f"the request id {request.id!r} was used before with other arguments: give this request an id of its own"
    )
