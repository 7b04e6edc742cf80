"""Durations and points in time as people write them: `90s`, `24h`, `1h30m`, `2026-12-24T18:00:00Z`."""

import re
from datetime import UTC, datetime, timedelta

from tasks.errors import InvalidRequest

ACCEPTED_DURATION = "a duration such as 500ms, 90s, 15m, 24h, 7d, 2w or 1h30m, in lower case"
ACCEPTED_TIME = "a time in ISO 8601 such as 2026-12-24T18:00:00Z; without an offset it is UTC"

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_PART = re.compile(r" ?([0-9]+(?:\.[0-9]+)?) ?(ms|[smhdw])")
LONGEST = timedelta(days=3650)


def parse_duration(text: str) -> timedelta:
    """The `timedelta` for `text`; raises `InvalidRequest` with what is accepted.

    Units are lower case only: `6M` means six months elsewhere, and reading it as minutes deletes too early.
    """
    given = " ".join(text.split())
    parts = _PART.findall(given)
    if not parts or _PART.sub("", given):
        months = "; m is minutes, and there is no unit for months" if re.search(r"\d ?M", given) else ""
        raise InvalidRequest(f"{text!r} is not a duration: give {ACCEPTED_DURATION}{months}")
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if seconds > LONGEST.total_seconds():
        raise InvalidRequest(f"{text!r} is too long: give at most {LONGEST.days}d")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """`1h30m` for ninety minutes: text that `parse_duration` reads back."""
    text, left_ms = "", max(0, round(duration.total_seconds() * 1000))
    for unit in ("d", "h", "m", "s", "ms"):
        count, left_ms = divmod(left_ms, round(_UNITS[unit] * 1000))
        text += f"{count}{unit}" if count else ""
    return text or "0s"


def parse_time(text: str) -> datetime:
    """An aware UTC `datetime` for `text`; raises `InvalidRequest` with what is accepted."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(f"{text!r} is not a time: give {ACCEPTED_TIME}") from None


def iso(moment: datetime | None) -> str | None:
    """UTC, ISO 8601, milliseconds, `Z`: the one form of time in records and JSON."""
    if moment is None:
        return None
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
