"""Looks: what the API shows of a finetune, before a delete and after an unclear answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from tasks import errors
from tasks.bfl import BflReader
from tasks.incarnations import CLOCK_TOLERANCE, api_timestamp, differing_fields, fingerprint
from tasks.records import from_ms, to_ms


class Look(NamedTuple):
    """What the API showed. `details` is None where it is gone, or where only the list could be asked."""

    there: bool
    details: dict[str, Any] | None = None


class Other(NamedTuple):
    """Why a finetune is not the one asked for; `since_ms`: later requests mean this one."""

    why: str
    since_ms: int


GONE = Look(there=False)
_HALVES = re.compile("[\ud800-\udfff]")  # of surrogate pairs: JSON can hold one alone, nothing else can


def look(api: BflReader, finetune_id: str, before_next: Callable[[], None]) -> Look:
    """Is it there? Gone is: details answers 404 and the list is without it. Raises `errors.ApiError` if unclear.

    Where details does not work at all (405, or a 404 that is not the API's own), the list alone decides.
    before_next: called before a second call, which may come late.
    """
    try:
        return Look(there=True, details=api.finetune_details(finetune_id))
    except (errors.NotFound, errors.Refused) as error:
        if isinstance(error, errors.Refused) and error.http_status != 405:
            raise
        works = details_work(error)
    before_next()
    if finetune_id not in names(api.my_finetunes()):
        return GONE
    if works:
        raise errors.Unclear("details answers 404, yet the list has it")
    return Look(there=True)


def details_work(error: errors.NotFound | errors.Refused) -> bool:
    """Whether details works at all: a 405 says no, and so does a 404 that is not the API's own."""
    return error.http_status != 405 and (error.from_api or error.http_status != 404)


def names(listed: list[Any]) -> set[str]:
    """The ids in an answer of `my_finetunes` (seen: strings); raises `Reshaped` where it has another shape."""
    if not all(isinstance(item, str) and not _HALVES.search(item) for item in listed):
        raise errors.Reshaped("my_finetunes answered in a shape that is not known")
    return set(listed)


def other_incarnation(found: Look, known: str, looked_at_ms: int, asked_at_ms: int, now: datetime) -> Other | None:
    """Why what was found is not the incarnation asked for, None where nothing says so."""
    if found.details is None:
        return None
    seen, began = fingerprint(found.details), api_timestamp(found.details, now)
    if known and seen != known:
        fields = ", ".join(differing_fields(known, seen)) or "the form of its fingerprint"
        since = max(looked_at_ms, to_ms(began) if began else 0)
        return Other(f"the name belongs to another finetune now: {fields} changed", since)
    if began is not None and began > from_ms(asked_at_ms) + CLOCK_TOLERANCE:
        why = f"the name belongs to another finetune now: this one began {began.isoformat()}, after the request"
        return Other(why, to_ms(began))
    return None


def too_late_to_know(found: Look, known: str, asked_at_ms: int, now: datetime, within: timedelta) -> bool:
    """Whether a first look comes so late that only a sound API timestamp could show whom the request meant."""
    if known or now - from_ms(asked_at_ms) <= within:
        return False
    return found.details is None or api_timestamp(found.details, now) is None
