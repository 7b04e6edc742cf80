"""Moments in any common notation. Nobody has promised how the API writes them, or that they make sense."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from email.utils import parsedate_to_datetime

_DAY = timedelta(days=1)
_EPOCH = re.compile(r"(\d{10})((?:\d{3}){0,2})(?:\.(\d+))?")  # seconds, milliseconds or microseconds since 1970
_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d+)")
# BFL has no older finetunes; 0001 and 1970 are how software writes "no time".
_FIRST_YEAR, _LAST_YEAR = 2024, 2099


@dataclass(frozen=True)
class Created:
    """When a finetune was created. moment: UTC. unit: how exactly it was written; a day for a date alone."""

    moment: datetime
    unit: timedelta

    @property
    def is_date(self) -> bool:
        return self.unit >= _DAY

    def __str__(self) -> str:
        """ISO 8601 in UTC, no more exact than it was written; `read_created` reads it back."""
        if self.is_date:
            return f"{self.moment:%Y-%m-%d}"
        digits = len(str(timedelta(seconds=1) // self.unit)) - 1
        fraction = f".{self.moment:%f}"[: digits + 1] if digits else ""
        return f"{self.moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"

    def differs(self, other: Created) -> bool:
        """Whether these cannot be one moment: another notation may drop digits, and a date may be in any zone."""
        unit = max(self.unit, other.unit)
        return abs(self.moment - other.moment) >= (unit if self.is_date == other.is_date else 2 * unit)


def read_created(value: object) -> Created | None:
    """`value` as a creation time; None if it is unreadable or not sound (before 2024, after 2099).

    ISO 8601 with any offset, separator and number of digits, seconds or milliseconds since 1970 as number or text,
    RFC 2822. Without an offset it is read as UTC.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    text = str(value).strip().upper()
    try:
        moment, digits = _from_epoch(text) or _from_iso(text) or (parsedate_to_datetime(text), 0)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    if not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        return None
    return Created(moment, _DAY if digits is None else timedelta(seconds=1) / 10 ** min(digits, 6))


def http_date(text: str) -> datetime | None:
    """A `Date` header (RFC 9110, 5.6.7) as an aware moment; None if it is none."""
    try:
        moment = parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _from_epoch(text: str) -> tuple[datetime, int | None] | None:
    match = _EPOCH.fullmatch(text)
    if not match:
        return None
    fraction = (match[2] + (match[3] or "").rstrip("0"))[:6]
    seconds = datetime.fromtimestamp(int(match[1]), UTC)
    return seconds + timedelta(microseconds=int(fraction.ljust(6, "0"))), len(fraction)


def _from_iso(text: str) -> tuple[datetime, int | None] | None:
    try:
        day = date.fromisoformat(text)
        return datetime(day.year, day.month, day.day, tzinfo=UTC), None
    except ValueError:
        pass
    plain = re.sub(r"\s*(?:UTC|GMT|Z)$", "Z", text)
    plain = re.sub(r"\s+(?=[+-]\d\d)", "", plain)
    fraction = _FRACTION.search(plain)
    try:
        return datetime.fromisoformat(plain), len(fraction[1]) if fraction else 0
    except ValueError:
        return None
