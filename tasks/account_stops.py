"""Stops of a whole account that follow from an answer of the API."""

from datetime import timedelta

from tasks.api.errors import KeyRefused, Throttled
from tasks.api.retry import COOL_DOWN
from tasks.ledger import Ledger

PROBE_EVERY = timedelta(seconds=30)  # how often a parked account is asked again


def cool_down(ledger: Ledger, account: str, error: Throttled) -> timedelta:
    """Let the account wait, for all workers, as long as the API asked; answers for how long.

    If the API named no time, the wait starts short and doubles while one throttled answer soon follows another.
    Raises `LedgerUnavailable`.
    """
    first, longest = COOL_DOWN.get(error.http_status or 0, COOL_DOWN[429])
    ms = ledger.account(account, "cool", reason=str(error), ms=error.retry_after, step_ms=first, most_ms=longest)
    return timedelta(milliseconds=ms)


def park(ledger: Ledger, account: str, error: KeyRefused) -> None:
    """Start nothing more for the account until its key is accepted again. Raises `LedgerUnavailable`."""
    ledger.account(account, "park", reason=str(error), probe_ms=PROBE_EVERY)
