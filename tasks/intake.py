"""The way in: requests are checked whole, written, and only then is a worker woken."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import structlog

from tasks.claims import Accepted, WakeUp
from tasks.durations import LONGEST
from tasks.errors import IdConflict, InvalidRequest
from tasks.ledger import Ledger
from tasks.queries import get_many, known_accounts
from tasks.records import DEFAULT_ACCOUNT, Deletion, NewRequest, check_account

log = structlog.get_logger()

BULK = 100  # more than this many at once let single requests go first


@dataclass(frozen=True)
class Intake:
    """Accepts requests into the ledger. wake: sends a wake-up; where that fails, dispatch sends another."""

    ledger: Ledger
    wake: Callable[[WakeUp], None]
    allow_org_ids: bool = False
    accounts: Collection[str] = ()  # known here, registered or not yet

    def check(self, requests: Sequence[NewRequest]) -> None:
        """Raise `InvalidRequest` for the first that cannot be accepted."""
        accounts = {DEFAULT_ACCOUNT, *self.accounts}
        if not accounts.issuperset(request.account for request in requests if isinstance(request.account, str)):
            accounts |= known_accounts(self.ledger)
        now = datetime.now(UTC)
        oldest, latest = now - self.ledger.terms.retention, now + LONGEST
        for request in requests:
            request.checked(allow_org_ids=self.allow_org_ids)
            if request.account not in accounts:
                check_account(request.account, accounts)
            if request.requested_at is not None and request.requested_at < oldest:
                raise InvalidRequest(
                    f"requested_at {request.requested_at.isoformat()} is older than records are kept: send it anew"
                )
            if request.due_at is not None and request.due_at > latest:
                raise InvalidRequest(f"due_at {request.due_at.isoformat()} is too far off: give at most ten years")

    def accept(self, requests: Sequence[NewRequest]) -> list[Accepted]:
        """Accept all or none. Raises `InvalidRequest` for the first that cannot be, before anything is written."""
        self.check(requests)
        accepted, wakeups = self.ledger.accept(requests)
        for wakeup in wakeups:
            self._wake(wakeup)
        return accepted

    def _wake(self, wakeup: WakeUp) -> None:
        try:
            self.wake(wakeup)
        except Exception as error:
            log.warning("wakeup.not_sent", account=wakeup.account, error=str(error))


def conflict(request: NewRequest, deletion: Deletion | None) -> IdConflict | None:
    """The error for a request whose id is known with other arguments, None where they agree."""
    if deletion is None or (deletion.finetune_id, deletion.account) == (request.finetune_id, request.account):
        return None
    return IdConflict(
        f"the request id {request.id!r} is known already, for {deletion.finetune_id!r} of account "
        f"{deletion.account!r}: give this request an id of its own"
    )


def conflicts(ledger: Ledger, requests: Sequence[NewRequest], accepted: Sequence[Accepted]) -> list[IdConflict]:
    """The conflicts among requests that turned out to be known."""
    known = [(request, answer) for request, answer in zip(requests, accepted, strict=True) if answer.known]
    deletions = get_many(ledger, [answer.deletion_id for _, answer in known])
    found = (conflict(request, deletion) for (request, _), deletion in zip(known, deletions, strict=True))
    return [error for error in found if error]
