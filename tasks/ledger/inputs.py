"""What the scripts take, as JSON-compatible objects: see the top of each script in `lua/`.

Durations and moments are ms.
"""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

from tasks.ledger.types import Claim, Finish, Progress
from tasks.records import NewRequest, to_ms
from tasks.text import finetune_key


def progress_input(claim: Claim, progress: Progress) -> dict[str, Any]:
    """What `mark.lua` and `finish.lua` take of a claim and what it has led to so far."""
    found = progress.findings
    return {
        "id": claim.id, "token": claim.token, "attempt": progress.attempt or "", "made": progress.made or "",
        "attempts": list(progress.lines), "counts": dict(progress.counts), "incarnation": found.incarnation,
        "observed_at": found.observed_at or "", "vantage": found.vantage, "unclear_at": found.unclear_at or "",
        "born_after": found.born_after or "",
    }  # fmt: skip


def request_input(request: NewRequest) -> dict[str, Any]:
    """What `accept.lua` takes; `record` are fields that it writes as they are."""
    record = {
        "requested_by": request.requested_by,
        "reason": request.reason,
        "missing_ok": request.missing_ok and "1",
    }
    given = {
        "id": request.id, "finetune_id": request.finetune_id, "name": finetune_key(request.finetune_id),
        "account": request.account, "lane": request.lane, "source": request.source, "digest": request.digest or
        "-", "requested_at": _moment(request.requested_at), "due_at": _moment(request.due_at), "delay_ms":
        to_milliseconds(request.delay) if request.delay else None, "by_name": request.source == "name", "cleanup":
        request.is_cleanup, "incarnation": request.incarnation, "observed_at": _moment(request.observed_at),
        "vantage": request.vantage, "retry_of": request.retry_of, "callbacks": json.dumps(request.callbacks) if
        request.callbacks else None, "record": {name: text for name, text in record.items() if text},
    }  # fmt: skip
    return {name: value for name, value in given.items() if value}


def finish_input(claim: Claim, finish: Finish, progress: Progress) -> dict[str, Any]:
    """What `finish.lua` takes."""
    given = {
        "result": finish.result, "message": finish.message, "status": finish.status, "timestamp":
        finish.timestamp, "evidence": finish.evidence, "deleted_by": finish.deleted_by, "counted":
        finish.counted, "delay_ms": to_milliseconds(finish.delay) if finish.delay is not None else None, "pause":
        finish.pause, "last_try": "1" if finish.last_try else "", "not_founds": progress.not_founds or "",
    }  # fmt: skip
    taken_over = {"incarnation": finish.incarnation, "vantage": finish.vantage}
    kept = {name: value for name, value in taken_over.items() if value is not None}
    return progress_input(claim, progress) | given | kept


def to_milliseconds(duration: timedelta) -> int:
    """A duration as scripts take it."""
    return round(duration.total_seconds() * 1000)


def _moment(moment: datetime | None) -> int | None:
    return to_ms(moment) if moment else None
