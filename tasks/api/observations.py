"""Observations: what the API shows of a finetune at one moment, and whether it existed at another one.

Absent takes two witnesses: details answers 404 with the API's own words, and a whole list lacks the name.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from tasks.api import errors
from tasks.api.client import BflReader
from tasks.api.incarnations import Incarnation, incarnation_of
from tasks.api.moments import ANY_ZONE

TOLERANCE_WITH_DATE = timedelta(seconds=5)
TOLERANCE_WITHOUT_DATE = timedelta(seconds=60)


class Presence(StrEnum):
    PRESENT = "present"
    ABSENT = "absent"
    UNLISTED = "unlisted"  # details does not work at all, and the list lacks the name


@dataclass(frozen=True)
class Observation:
    """What the API showed.

    incarnation: None if it is not present, or if details does not work. vantage: host and tag of the key.
    date: the moment of the answer by the API's clock, None if it had no `Date`.
    """

    presence: Presence
    incarnation: Incarnation | None
    vantage: str
    host: str
    date: datetime | None

    @property
    def has_offset(self) -> bool:
        """Whether the creation time tells its zone."""
        created = self.incarnation.created if self.incarnation else None
        return created is None or created.has_offset

    @property
    def tolerance(self) -> timedelta:
        """How far ages by two clocks may be apart. Without a `Date`, our clock stands in for the API's."""
        by_clocks = TOLERANCE_WITH_DATE if self.date else TOLERANCE_WITHOUT_DATE
        return by_clocks if self.has_offset else by_clocks + ANY_ZONE

    def age(self, now: datetime) -> timedelta | None:
        """How old the incarnation was when observed; now: that moment on our clock.

        None without a usable creation time: none is told, it is a date alone, or it lies in the future.
        """
        created = self.incarnation.created if self.incarnation else None
        if created is None or created.is_date:
            return None
        age = (self.date or now) - created.moment
        return age if age >= -self.tolerance else None


def observe(api: BflReader, finetune_id: str, before_next: Callable[[], None]) -> Observation:
    """Look at one finetune. Raises `ApiError` if the answers do not tell whether it is there.

    If details does not work at all (405, or a 404 that is not the API's own), the list tells presence.
    before_next: called before a second API call, which may come late; what it raises passes through.
    """
    try:
        details = api.finetune_details(finetune_id)
        found = incarnation_of(details.fields, finetune_id)
        return Observation(Presence.PRESENT, found, api.vantage, api.host, details.date)
    except errors.NotFound as error:
        works = error.from_api
    except errors.Refused as error:
        if error.http_status != 405:
            raise
        works = False
    before_next()
    return Observation(_by_list(api, finetune_id, works=works), None, api.vantage, api.host, date=None)


def existed(observation: Observation, asked_at: datetime, now: datetime) -> bool | None:
    """Whether the incarnation existed at `asked_at`: False only if it is clearly younger.

    asked_at: a moment on our clock, such as that of a request or an attempt. now: the moment of the observation on
    the same clock. Two clocks are never compared: both moments are ages. None without a usable creation time, or
    if its zone would decide.
    """
    age, since, tolerance = observation.age(now), now - asked_at, observation.tolerance
    if age is None or (not observation.has_offset and abs(age - since) <= tolerance):
        return None
    return age >= since - tolerance


def _by_list(api: BflReader, finetune_id: str, *, works: bool) -> Presence:
    listing = api.my_finetunes()
    if listing.has(finetune_id):
        if works:
            raise errors.Unclear("details answers 404, but the list has it")
        return Presence.PRESENT
    if not listing.is_whole:
        raise errors.Unclear(f"the list proves no absence, it may not be whole: {listing.more} may speak of more")
    return Presence.ABSENT if works else Presence.UNLISTED
