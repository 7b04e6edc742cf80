"""What is kept of an attempt: a line for the record, and counters for metrics."""

import json
from bisect import bisect_left
from datetime import datetime

from tasks.api import errors
from tasks.api.client import Answer
from tasks.records import to_ms

CALL_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)  # the buckets of call times; longer ones are `inf`
_BUCKETS = (*map(str, CALL_SECONDS), "inf")


def attempt_line(at: datetime, result: Answer | errors.ApiError, vantage: str) -> str:
    """One attempt as JSON, read back as `tasks.records.Attempt`. at: when the call began."""
    failed = isinstance(result, errors.ApiError)
    return json.dumps({
        "at": to_ms(at), "sent": not isinstance(result, errors.NotSent), "http_status": result.http_status,
        "error": type(result).__name__ if failed else None, "seconds": round(result.seconds, 3),
        "message": result.detail if isinstance(result, errors.ApiError) else result.message, "vantage": vantage,
    })  # fmt: skip


def attempt_counts(result: Answer | errors.ApiError) -> dict[str, int]:
    """What one attempt adds to the account's statistics: a call by answer and duration, and its milliseconds."""
    answer = str(result.http_status or type(result).__name__)
    bucket = _BUCKETS[bisect_left(CALL_SECONDS, result.seconds)]
    return {f"call:{answer}:{bucket}": 1, f"ms:{answer}": round(result.seconds * 1000)}
