"""What cannot be undone is shown before it is done, and a person at a terminal is asked; scripts are not."""

import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click

from tasks.cleanup.inventory import protected_among
from tasks.cleanup.plans import Plan
from tasks.errors import InvalidRequest
from tasks.intake import BULK
from tasks.ledger import Ledger
from tasks.ledger.holds import Hold, holds
from tasks.ledger.queries import get_many
from tasks.records import Deletion, NewRequest, State
from worker.cli.output import note, some
from worker.cli.times import local

NOT_AGREED = 1  # the exit code
_SHOWN = 5  # holds, one a line


def agree_to_deletions(ledger: Ledger, requests: Sequence[NewRequest], *, yes: bool) -> bool:
    """Whether to ask for these; a question only if one is protected, or if there are many.

    The retry of a cleanup's deletion keeps what is protected. Raises `InvalidRequest` for what cannot be retried.
    """
    cleanups = {one.id for one in _retried(ledger, requests) if one.source.startswith("cleanup:")}
    protected: list[str] = []
    kept: list[Hold] = []
    for account, ids in _by_account(requests):
        kept += holds(ledger, account, ids)
    for account, ids in _by_account(one for one in requests if one.retry_of not in cleanups):
        protected += protected_among(ledger, account, ids)
    for one in kept[:_SHOWN]:
        note(f"{one.finetune_id} is {one.short}: a deletion that starts meanwhile ends cancelled")
    if len(kept) > _SHOWN:
        note(f"{len(kept) - _SHOWN} more of them are held: `janitor holds` lists what is held")
    if cleanups:
        note(f"what a cleanup asked for ({len(cleanups)}) is kept if it was used or protected since")
    if protected:
        are = "is" if len(protected) == 1 else "are"
        note(f"{some(protected)} {are} protected from cleanups, and not from this request")
    agreed = True if not protected and len(requests) <= BULK else _agree(_what(requests), yes=yes)
    if agreed:
        _retried(ledger, requests)  # again: the question may have been open for long
    return agreed


def agree_to_plan(plan: Plan, due_at: datetime, *, yes: bool) -> bool:
    """Whether to apply a plan."""
    unless = "unless they are used, protected or cancelled before"
    what = f"this deletes {plan.deletions} of {plan.total} finetunes of account {plan.account}"
    return _agree(f"{what} at {local(due_at)}, {unless}", yes=yes)


def when(request: NewRequest) -> str:
    """`at` and the time from which a deletion runs, or `now`."""
    due_at = datetime.now(UTC) + request.delay if request.delay else request.due_at
    return f"at {local(due_at)}" if due_at else "now"


def _retried(ledger: Ledger, requests: Iterable[NewRequest]) -> list[Deletion]:
    """The old deletions of those that are retries; raises `InvalidRequest` for one that cannot be retried."""
    found = [one for one in get_many(ledger, [one.retry_of for one in requests if one.retry_of]) if one]
    for one in found:
        if one.state in (State.DELETED, State.SUPERSEDED) or not one.is_final:
            raise InvalidRequest(f"{one.id} is {one.state}: only what ended otherwise can be retried")
        if one.retried_by:
            raise InvalidRequest(f"{one.id} was retried already: {one.retried_by}")
    return found


def _by_account(requests: Iterable[NewRequest]) -> Iterable[tuple[str, list[str]]]:
    """The finetunes of each account."""
    found: dict[str, list[str]] = {}
    for one in requests:
        found.setdefault(one.account, []).append(one.finetune_id)
    return sorted(found.items())


def _what(requests: Sequence[NewRequest]) -> str:
    accounts = ", ".join(sorted({one.account for one in requests}))
    names = some([one.finetune_id for one in requests])
    return f"this deletes {len(requests)} of account {accounts} {when(requests[0])}, permanently: {names}"


def _agree(what: str, *, yes: bool) -> bool:
    note(what)
    if yes or not sys.stdin.isatty() or click.confirm("Is that right?", err=True):
        return True
    note("nothing was written")
    return False
