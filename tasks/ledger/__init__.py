"""The store in Redis: records, queues, claims. `Ledger` writes; `queries` and `statistics` read."""

from tasks.ledger.store import Ledger
from tasks.ledger.types import Accepted, Claim, Claimed, Finish, Finished, Maintained, Terms, Try, Verdict

__all__ = ["Accepted", "Claim", "Claimed", "Finish", "Finished", "Ledger", "Maintained", "Terms", "Try", "Verdict"]
