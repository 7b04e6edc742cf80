"""Moments in any common notation. Nobody has promised how the API writes them, or that they make sense."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import lru_cache

_DAY = timedelta(days=1)
_EPOCH = re.compile(r"(\d{10})((?:\d{3}){0,2})(?:\.(\d+))?")  # seconds, milliseconds or microseconds since 1970
_SECONDS = re.compile(r":\d\d:\d\d|[T ]\d{6}")
_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d{1,6})")
_OFFSET = re.compile(r"(?:Z|[+-]\d\d:?\d\d(?::?\d\d)?)$")
# BFL has no older finetunes; 0001 and 1970 are how software writes "no time".
_FIRST_YEAR, _LAST_YEAR = 2024, 2099
_LONGEST = 64  # characters
ANY_ZONE = timedelta(hours=14)  # how far a time whose zone is not told can be from UTC


@dataclass(frozen=True)
class Created:
    """When a finetune was created. moment: UTC.

    unit: how exactly it was written; a day for a date alone and for a time without seconds, which cannot tell what
    was made first within a minute.
    has_offset: whether the zone was told. Without it the moment is read as UTC, and can be off by hours.
    """

    moment: datetime
    unit: timedelta
    has_offset: bool = True

    @property
    def is_date(self) -> bool:
        return self.unit >= _DAY

    def __str__(self) -> str:
        """ISO 8601 in UTC, no more exact than it was written; `read_created` reads it back."""
        text = f"{self.moment:%Y-%m-%dT%H:%M:%S.%f}"
        digits = len(str(timedelta(seconds=1) // self.unit)) - 1
        zone = "Z" if self.has_offset else ""
        return text[:10] if self.is_date else f"{text[: 20 + digits].rstrip('.')}{zone}"


def read_created(value: object) -> Created | None:
    """`value` as a creation time; None if it is unreadable or not sound (before 2024, after 2099).

    ISO 8601 with any offset, separator and number of digits, seconds or milliseconds since 1970 as number or text,
    RFC 2822. Without an offset it is read as UTC.
    """
    # What is longer is no time: it would cost the patterns minutes, and the cache its size.
    is_short = isinstance(value, int | float) or (isinstance(value, str) and len(value) <= _LONGEST)
    return _read(str(value).strip().upper()) if is_short else None


def is_same_moment(one: str, other: str) -> bool | None:
    """Whether two creation times can be one; None if that stays open.

    It does if one is a date alone or unreadable, or if only one tells its zone and they differ by hours.
    """
    here, there = read_created(one), read_created(other)
    if here is None or there is None:
        return None
    # Another notation may drop digits. A date may be in any zone, as may a time if only the other tells its zone.
    unit = max(here.unit, there.unit) * (1 if here.is_date == there.is_date else 2)
    apart = abs(here.moment - there.moment)
    if apart >= (unit if here.has_offset == there.has_offset else max(unit, ANY_ZONE)):
        return False
    return None if here.is_date or there.is_date or apart >= unit else True


def http_date(text: str) -> datetime | None:
    """A `Date` header (RFC 9110, 5.6.7) in UTC; None if it is none, or not sound."""
    moment = _in_utc(parsedate_to_datetime, text)
    return moment if moment and moment.year < 3000 else None  # so that ages can be taken from other moments


def _in_utc(read: Callable[[str], datetime], text: str) -> datetime | None:
    try:
        moment = read(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError, IndexError):
        return None


@lru_cache(maxsize=1000)  # each deletion reads the same few times again
def _read(text: str) -> Created | None:
    if epoch := _EPOCH.fullmatch(text):
        digits = (epoch[2] + (epoch[3] or "").rstrip("0"))[:6]
        text = f"{datetime.fromtimestamp(int(epoch[1]), UTC):%Y-%m-%dT%H:%M:%S}.{digits}".rstrip(".")
    iso = re.sub(r"\s+(?=[+-]\d\d)", "", re.sub(r"\s*(?:UTC|GMT|Z)$", "Z", text))
    moment = _in_utc(datetime.fromisoformat, iso) or http_date(text)
    if moment is None or not _FIRST_YEAR <= moment.year <= _LAST_YEAR:
        return None
    fraction = _FRACTION.search(iso)
    exact = timedelta(seconds=1) / 10 ** (len(fraction[1]) if fraction else 0)
    has_offset = bool(epoch or _OFFSET.search(iso))
    return Created(moment, exact if _SECONDS.search(iso) else _DAY, has_offset)
