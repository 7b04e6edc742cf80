"""Exceptions that this project raises on purpose. Those of a call to the BFL API are in `tasks.api.errors`.

JanitorError
├── InvalidRequest            what was asked cannot be accepted; nothing was written
│   ├── IdConflict            a known id came with other arguments
│   └── NotInReview           only a deletion in review can be resolved, and once
├── UnknownDeletion           no record has this id
├── UnknownPlan               no plan has this id
├── PlanRefused               a plan is blocked or too old
├── LedgerUnavailable         Redis cannot be reached, or refuses to write for now
│   ├── LedgerFull            too little memory is free to keep what was asked
│   └── LedgerRefused         it refused this one, and would again
├── WrongLedger               the ledger was written by another version
├── HandBack                  a deletion goes back to the ledger: a stop, a pause, a parked account, a lost lease
├── Cancelled                 a deletion was withdrawn, or its finetune held, while it was running
├── DeletionNotDone           a deletion ended otherwise than asked; carries the record
└── ApiError                  see `tasks.api.errors`
"""


class JanitorError(Exception):
    """Anything this project raises on purpose; `str()` of it is one line fit for a person."""


class InvalidRequest(JanitorError, ValueError):
    """What was asked cannot be accepted: the message says what was given and what is accepted."""


class IdConflict(InvalidRequest): ...


class NotInReview(InvalidRequest): ...


class UnknownDeletion(JanitorError, LookupError): ...


class UnknownPlan(JanitorError, LookupError): ...


class PlanRefused(JanitorError): ...


class LedgerUnavailable(JanitorError, ConnectionError): ...


class LedgerFull(LedgerUnavailable): ...


class LedgerRefused(LedgerUnavailable): ...


class WrongLedger(JanitorError): ...


class HandBack(JanitorError): ...


class Cancelled(JanitorError): ...


class DeletionNotDone(JanitorError):
    """A deletion ended otherwise than asked.

    `args[0]` is the record as a JSON-compatible dict, so a Celery producer that has none of our code reads it
    from the exception that `AsyncResult.get()` raises.
    """
