"""Verification: a 200 is only a statement, so deleted finetunes are looked for in the list afterwards.

`finding` decides about one record, `verify_round` asks the API for one account. A record is `gone` as soon as the
list lacks it. It needs a person only if the same incarnation is there ten minutes and again an hour after the
deletion; everything else ends after a day without a result.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from tasks.account_stops import cool_down
from tasks.api import errors
from tasks.api.client import BflReader
from tasks.api.incarnations import Incarnation, Verdict, compare, incarnation_of
from tasks.ledger.queries import each
from tasks.ledger.store import BATCH, Ledger
from tasks.records import from_ms, to_ms

log = structlog.get_logger()

FIRST_AFTER = timedelta(minutes=10)  # a list may lag behind for so long
SECOND_AFTER = timedelta(minutes=50)
AGAIN_AFTER = timedelta(hours=1)
GIVE_UP_AFTER = timedelta(days=1)
STILL_THERE = "it was recorded as deleted, but the same finetune is still there after an hour"
_ROUND_EVERY = timedelta(seconds=55)
_MOST_DETAILS = 20  # calls in one round
_FIELDS = ("finetune_id", "finished_at", "vantage", "incarnation", "verify_hits")


@dataclass(frozen=True)
class Unverified:
    """A deleted record to verify. hits: how often the same incarnation was found after the deletion."""

    id: str
    finetune_id: str
    finished_at: datetime
    vantage: str
    incarnation: str
    hits: int


def finding(record: Unverified, now: datetime, *, listed: bool | None, is_same: bool) -> dict[str, Any]:
    """What an observation means for a record, as `verify.lua` takes it.

    listed: whether the list has it; None if nobody can tell from here. is_same: whether its details show the
    incarnation that was deleted, by its unique id or creation time.
    """
    of_it = {"id": record.id, "finished_at": to_ms(record.finished_at)}
    again = {**of_it, "word": "again", "hits": record.hits}
    age = now - record.finished_at
    if listed is False:
        return of_it | {"word": "gone"}
    if listed and is_same and age >= FIRST_AFTER:
        if record.hits:
            return of_it | {"word": "still_there"}
        return again | {"at": to_ms(now + SECOND_AFTER), "hits": 1}
    if age >= GIVE_UP_AFTER:
        return of_it | {"word": "end"}
    if listed and age < FIRST_AFTER:
        return again | {"at": to_ms(record.finished_at + FIRST_AFTER)}
    return again | {"at": to_ms(min(now + AGAIN_AFTER, record.finished_at + GIVE_UP_AFTER))}


def verify_round(ledger: Ledger, account: str, api: BflReader, max_concurrent: int) -> None:
    """Ask once for what is unverified in an account, if this process is the first of its minute.

    Raises `LedgerUnavailable`; an API that does not answer is asked again in the next round.
    """
    now_ms, lease = ledger.now_ms(), ledger.keys.verify_lease(account)
    is_due = ledger.redis.zcount(ledger.keys.verify(account), "-inf", now_ms)
    if not is_due or not ledger.redis.set(lease, "1", nx=True, px=_ROUND_EVERY):
        return
    try:
        found = _findings(_due(ledger, account, now_ms), ledger, account, api, max_concurrent)
    except errors.Throttled as error:
        cool_down(ledger, account, error)
        return
    except errors.ApiError as error:
        log.warning("verification.waits", account=account, error=str(error))
        return
    for id_ in ledger.verify(account, found, STILL_THERE) if found else ():
        log.error("verification.failed", deletion=id_, account=account, message=STILL_THERE)


def _due(ledger: Ledger, account: str, now_ms: int) -> list[Unverified]:
    ids: Any = ledger.redis.zrangebyscore(ledger.keys.verify(account), "-inf", now_ms, 0, BATCH)
    rows = each(ledger, ids, lambda pipe, id_: pipe.hmget(ledger.keys.deletion(id_), _FIELDS))
    return [
        Unverified(id_, name or "", from_ms(finished_at or 0), vantage or "", incarnation or "", int(hits or 0))
        for id_, row in zip(ids, rows, strict=True)
        for name, finished_at, vantage, incarnation, hits in [row or [None] * len(_FIELDS)]
    ]


def _findings(
    records: Sequence[Unverified], ledger: Ledger, account: str, api: BflReader, max_concurrent: int
) -> list[dict[str, Any]]:
    """A finding for each record that could be looked at in this round."""
    holder = f"verify:{uuid.uuid4().hex}"

    def may_call() -> bool:  # a permit expires with the longest call, so each call takes it again
        return ledger.permit(account, holder, max_concurrent).word == "go"

    try:
        if not may_call():
            return []
        listing = api.my_finetunes()
        if listing.more:
            log.warning("verification.waits", account=account, error=f"{listing.more} may speak of more finetunes")
        now, details, found = from_ms(ledger.now_ms()), 0, []
        for record in records:
            has = listing.has(record.finetune_id)
            can_tell = record.vantage == api.vantage and (has or listing.is_whole)
            is_same = False
            if can_tell and has and now - record.finished_at >= FIRST_AFTER:
                details += 1
                if details > _MOST_DETAILS or not may_call():
                    continue  # the next round looks at it
                is_same = _is_same(record, ledger, account, api)
            found.append(finding(record, now, listed=has if can_tell else None, is_same=is_same))
        return found
    finally:
        ledger.release(account, holder)


def _is_same(record: Unverified, ledger: Ledger, account: str, api: BflReader) -> bool:
    """Whether the details show the incarnation that was deleted; equal settings alone are no proof."""
    try:
        deleted = Incarnation.from_text(record.incarnation) or Incarnation()
        details = api.finetune_details(record.finetune_id)
    except errors.Throttled as error:
        cool_down(ledger, account, error)  # so that no further call of this round is permitted
        return False
    except (errors.ApiError, ValueError):
        return False
    seen = incarnation_of(details.fields, record.finetune_id)
    by_identity = (Incarnation(identity=one.identity) for one in (deleted, seen))
    return compare(*by_identity, gap=timedelta(0), within=timedelta(0))[0] is Verdict.SAME
