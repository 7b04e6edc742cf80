"""Which life of a name this is: a fingerprint of its details, since BFL lets a name be used again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

# Seen in BFL's finetune_details; the comment is left out on purpose, it can hold personal data.
FIELDS = ("timestamp", "finetune_type", "trigger_word", "mode", "iterations", "learning_rate", "lora_rank")
CLOCK_TOLERANCE = timedelta(seconds=60)
_VERSION = "v1"
_FIRST_YEAR = 2024  # BFL has no older finetunes; 0001 and 1970 are how software writes "no time"


def fingerprint(details: Mapping[str, Any]) -> str:
    """`v1:timestamp=1f0c...,mode=93ab...`: a short hash of each field that is present."""
    parts = [f"{field}={_short_hash(details[field])}" for field in FIELDS if details.get(field) is not None]
    return f"{_VERSION}:{','.join(parts)}"


def is_weak(stored: str) -> bool:
    """Whether a fingerprint lacks the timestamp, which tells lives apart best."""
    return "timestamp=" not in stored


def differing_fields(one: str, other: str) -> list[str]:
    """The fields in which two fingerprints differ, present in one only included."""
    ours, theirs = _parts(one), _parts(other)
    return [field for field in FIELDS if ours.get(field) != theirs.get(field)]


def api_timestamp(details: Mapping[str, Any], now: datetime) -> datetime | None:
    """When the API says this life began; None where that is absent or not sound."""
    return read_timestamp(details, now)[0]


def read_timestamp(details: Mapping[str, Any], now: datetime) -> tuple[datetime | None, str | None]:
    """When the API says this life began, or why its timestamp is not sound; neither where there is none."""
    text = details.get("timestamp")
    if text is None:
        return None, None
    try:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            return None, "without an offset"
        moment = moment.astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return None, "not readable"
    if moment.year < _FIRST_YEAR:
        return None, "older than finetunes are"
    return (None, "in the future") if moment > now + CLOCK_TOLERANCE else (moment, None)


def _short_hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parts(stored: str) -> dict[str, str]:
    _, _, body = stored.partition(":")
    return dict(part.split("=", 1) for part in body.split(",") if "=" in part)
