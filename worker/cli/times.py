"""Points in time as people write them: local unless a zone is named, or relative to now; and as they read them."""

import os
import re
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import TZPATH, ZoneInfo, available_timezones

import click

from tasks.durations import parse_duration
from tasks.errors import InvalidRequest
from worker.cli.text import nearest

_ACCEPTED = "2026-12-24T18:00 (local), 2026-12-24T18:00+01:00, '2026-12-24 18:00 Europe/Berlin'"
_RELATIVE = re.compile(r"in\s+(?P<ahead>.+)|(?P<ago>.+)\s+ago")
_RULE = re.compile(r"([A-Za-z]{3,}|<[^>]+>)[+-]?\d.*")  # POSIX: a zone without a file
_WITH_ZONE = re.compile(r"(?P<time>.+?)\s+(?P<zone>[A-Za-z]\S*)")


def local(moment: datetime | None) -> str:
    """Local time with its zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if moment else ""


def past_time(text: str) -> datetime:
    """An aware UTC `datetime`, relative ones in the past (`2h ago`); raises `InvalidRequest`.

    A time without a zone is local, as in tables, and is told on stderr with its zone.
    """
    return _read(text, "ago", "'2h ago'")


def later_time(text: str) -> datetime:
    """The same, relative ones in the future (`in 2h`); also raises `InvalidRequest` for a time in the past."""
    return _read(text, "ahead", "'in 2h'")


def unknown_zone() -> str | None:
    """What is wrong with TZ if it names a zone that this machine does not have, so that times are in UTC."""
    zone = os.environ.get("TZ", "").removeprefix(":")
    is_rule = zone in ("", "UTC", "GMT") or _RULE.fullmatch(zone)
    if is_rule or any(Path(folder, zone).is_file() for folder in TZPATH):
        return None
    like = nearest(zone, available_timezones())
    return f"TZ is the zone {zone!r}, which is not known here, so times are in UTC{like}"


def _read(text: str, direction: str, example: str) -> datetime:
    try:
        moment, is_bare = _relative(text, direction) or _absolute(text)
        moment, told = moment.astimezone(UTC), local(moment)
    except (ValueError, OverflowError) as error:
        why = f": {error}" if isinstance(error, InvalidRequest) else ""
        raise InvalidRequest(f"{text!r} is not a time{why}: give one such as {_ACCEPTED} or {example}") from None
    if direction == "ahead" and moment < datetime.now(UTC):
        raise InvalidRequest(f"{text!r} ({told}) is in the past: give a later time, or leave it out")
    if is_bare:
        click.echo(f"{text} has no zone, so it is local time: {told}", err=True)
    return moment


def _relative(text: str, direction: str) -> tuple[datetime, bool] | None:
    parts = _RELATIVE.fullmatch(text.strip())
    if parts is None:
        return None
    if not parts[direction]:
        raise InvalidRequest("it is in the past" if parts["ago"] else "it is in the future")
    away = parse_duration(parts[direction])
    return datetime.now(UTC) + (away if direction == "ahead" else -away), False


def _absolute(text: str) -> tuple[datetime, bool]:
    """A moment, and whether it was given without a zone."""
    if parts := _WITH_ZONE.fullmatch(text.strip()):
        return _in_zone(datetime.fromisoformat(parts["time"]), parts["zone"]), False
    # Tables show zones that have no letters as an offset after a space.
    moment = datetime.fromisoformat(re.sub(r"\s+(?=[+-]\d)", "", text.strip()))
    return (moment, False) if moment.tzinfo else (_only(moment, None), True)


def _in_zone(moment: datetime, zone: str) -> datetime:
    if moment.tzinfo:
        raise InvalidRequest("an offset and a zone are both given")
    # The name that tables show: of this machine's zone, in the hour that comes twice of the right one.
    for here in (moment.replace(fold=fold).astimezone() for fold in (0, 1)):
        if here.tzname() == zone:
            return here if here.replace(tzinfo=None) == moment else _only(moment, None)
    try:
        there = ZoneInfo(zone)
    except (KeyError, ValueError, OSError):  # OSError: a folder of zones, such as Europe
        like = nearest(zone, available_timezones())
        raise InvalidRequest(f"the zone {zone!r} is not known{like}") from None
    return _only(moment, there)


def _only(moment: datetime, zone: tzinfo | None) -> datetime:
    """The one moment when clocks there show this time. zone: None for the local one."""
    early, late = (moment.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    if early != late:
        exists = early.astimezone(zone).replace(tzinfo=None) == moment
        why = "clocks are set back then, so it comes twice" if exists else "clocks skip it"
        raise InvalidRequest(f"{why}: add an offset such as +01:00")
    return early
