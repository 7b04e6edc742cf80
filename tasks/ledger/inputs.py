"""What the scripts take: see the top of each script in `lua/`. A moment or a duration is sent as milliseconds."""

import json
from datetime import datetime, timedelta
from typing import Any

from tasks.ledger.types import Act, Claim, Finish, Progress
from tasks.records import NewRequest, to_ms
from tasks.text import finetune_key


def progress_input(claim: Claim, progress: Progress) -> dict[str, Any]:
    """What `mark.lua` and `finish.lua` take of a claim and what it has led to so far."""
    return {
        "id": claim.id, "token": claim.token, "made": progress.made or "",
        "attempts": progress.lines, "counts": progress.counts,
        "findings": {name: value or "" for name, value in vars(progress.findings).items()},
    }  # fmt: skip


def request_input(request: NewRequest) -> dict[str, Any]:
    """What `accept.lua` takes; `record` are fields that it writes as they are."""
    return vars(request) | {
        "name": finetune_key(request.finetune_id), "lane": request.lane, "digest": request.digest or "-",
        "delay_ms": request.delay, "by_name": request.source == "name", "cleanup": request.is_cleanup,
        "callbacks": json.dumps(request.callbacks) if request.callbacks else None,
        "record": {"requested_by": request.requested_by, "reason": request.reason,
                   "labels": json.dumps(request.labels) if request.labels else None,
                   "missing_ok": "1" if request.missing_ok else None,
                   "needs_use": "1" if request.needs_use else None},
    }  # fmt: skip


def finish_input(claim: Claim, finish: Finish, progress: Progress) -> dict[str, Any]:
    """What `finish.lua` takes."""
    given = progress_input(claim, progress)
    taken_over = {"incarnation": finish.incarnation, "vantage": finish.vantage}
    given["findings"] |= {name: value for name, value in taken_over.items() if value is not None}
    return vars(finish) | given | {
        "delay_ms": finish.delay, "last_try": finish.last_try and "1", "not_founds": progress.not_founds or "",
    }  # fmt: skip


def encoded(value: datetime | timedelta | Act) -> Any:
    """What JSON has no form for, as scripts take it."""
    return vars(value) if isinstance(value, Act) else in_milliseconds(value)


def in_milliseconds(value: datetime | timedelta) -> int:
    """A moment or a duration as scripts take it."""
    return to_ms(value) if isinstance(value, datetime) else round(value.total_seconds() * 1000)
