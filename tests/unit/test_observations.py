"""Observations: what counts as absent, as present, and what the answers do not tell; ages instead of clocks."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.api.client import Details, Listing
from tasks.api.errors import ApiError, KeyRefused, NotFound, Refused, TryAgain, Unclear
from tasks.api.incarnations import incarnation_of
from tasks.api.observations import Observation, Presence, existed, observe

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
OURS = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
FIELDS = {"mode": "style", "created_at": "2026-02-01T10:00:00Z"}
THERE = Details(FIELDS, NOW)
GONE = NotFound("Finetune not found or access denied", http_status=404, from_api=True)
NO_PAGE = NotFound("Not Found", http_status=404)
NOT_ALLOWED = Refused("Method Not Allowed", http_status=405, from_api=True)
NO_KEY = KeyRefused("Forbidden", http_status=403, from_api=True)
RESET = Unclear("the connection broke (ConnectionResetError)")
MORE = Listing(frozenset({"another"}), 1, "the field 'next'")
PRESENT, ABSENT, UNLISTED = Presence


def listing(*names):
    return Listing(frozenset(names), len(names))


class Api:
    host, vantage = "api.bfl.ai", "api.bfl.ai 12345678"

    def __init__(self, details, listed):
        self.answers = {"details": details, "list": listed}
        self.calls: list[str] = []

    def _answer(self, call):
        self.calls.append(call)
        if isinstance(self.answers[call], Exception):
            raise self.answers[call]
        return self.answers[call]

    def finetune_details(self, finetune_id):
        assert finetune_id == OURS
        return self._answer("details")

    def my_finetunes(self):
        return self._answer("list")


def observed(details, listed) -> Observation:
    api: Any = Api(details, listed)
    return observe(api, OURS, lambda: api.calls.append("before_next"))


@pytest.mark.parametrize(
    ("details", "listed", "presence"),
    [
        (THERE, RESET, PRESENT),
        (GONE, listing("another"), ABSENT),
        (GONE, listing(), ABSENT),
        (NO_PAGE, listing(), UNLISTED),
        (NO_PAGE, listing(OURS), PRESENT),
        (NO_PAGE, listing(OURS.upper()), PRESENT),
        (NOT_ALLOWED, listing("another"), UNLISTED),
        (NOT_ALLOWED, listing(OURS), PRESENT),
        (NO_PAGE, Listing(frozenset({OURS}), 1, "the field 'next'"), PRESENT),
    ],
)
def test_absent_takes_two_witnesses_and_the_list_tells_presence_if_details_do_not_work(details, listed, presence):
    found = observed(details, listed)
    assert found.presence == presence
    assert (found.host, found.vantage) == (Api.host, Api.vantage)
    assert found.incarnation == (incarnation_of(FIELDS, OURS) if details is THERE else None)
    assert found.date == (NOW if details is THERE else None)


@pytest.mark.parametrize(
    ("details", "listed", "error"),
    [
        (GONE, listing(OURS), "but the list has it"),
        (GONE, listing(OURS.upper()), "but the list has it"),
        (GONE, MORE, "may not be whole: the field 'next'"), (NO_PAGE, MORE, "may not be whole"),
        (NOT_ALLOWED, MORE, "may not be whole"),
        (GONE, NO_PAGE, "404"), (GONE, NO_KEY, "403"), (GONE, RESET, "broke"), (RESET, listing(), "broke"),
        (NO_KEY, listing(), "403"), (Refused("no", http_status=422, from_api=True), listing(), "422"),
        (TryAgain("no", http_status=408), listing(), "408"),
    ],
)  # fmt: skip
def test_any_other_answer_tells_nothing(details, listed, error):
    with pytest.raises(ApiError, match=error):
        observed(details, listed)


def test_a_second_call_is_announced_and_can_be_forbidden():
    api: Any = Api(GONE, listing())
    observe(api, OURS, lambda: api.calls.append("announced"))
    assert api.calls == ["details", "announced", "list"]

    def stop():
        raise InterruptedError

    api = Api(GONE, listing())
    with pytest.raises(InterruptedError):
        observe(api, OURS, stop)
    assert api.calls == ["details"]
    assert Api(THERE, RESET).calls == []
    only: Any = Api(THERE, RESET)
    observe(only, OURS, stop)


def found(created_at, date: datetime | None = NOW) -> Observation:
    incarnation = incarnation_of({"created_at": created_at}, OURS)
    return Observation(PRESENT, incarnation, Api.vantage, Api.host, date)


@pytest.mark.parametrize(
    ("created_at", "date", "age_seconds"),
    [
        ("2026-03-01T11:59:00Z", NOW, 60),
        ("2026-03-01T11:59:00Z", NOW - timedelta(seconds=30), 30),
        ("2026-03-01T11:59:00Z", None, 90),  # our clock, half a minute ahead of the API's, stands in
        ("2026-03-01T12:00:05Z", NOW, -5),
        ("2026-03-01T12:00:06Z", NOW, None),  # in the future by the API's own clock: not sound
        ("2026-03-01T12:01:31Z", None, None),
        ("2026-02-01", NOW, None),
        ("yesterday", NOW, None),
    ],
)
def test_an_age_is_measured_by_the_apis_own_clock(created_at, date, age_seconds):
    age = found(created_at, date).age(NOW + timedelta(seconds=30))
    assert age == (None if age_seconds is None else timedelta(seconds=age_seconds))


def test_without_an_incarnation_there_is_no_age():
    assert Observation(PRESENT, None, "v", "h", NOW).age(NOW) is None
    assert existed(Observation(ABSENT, None, "v", "h", None), NOW, NOW) is None


# What broke: the API's clock 3 s ahead made the finetune that was meant look younger than its request.


@pytest.mark.parametrize(
    ("skew", "born_after_request", "date", "there"),
    [
        *(
            (skew, seconds, True, there)
            for skew in (timedelta(0), timedelta(seconds=3), timedelta(hours=-5), timedelta(days=2))
            for seconds, there in ((-60, True), (0, True), (5, True), (6, False))
        ),
        (timedelta(0), 60, False, True),
        (timedelta(0), 61, False, False),
        (timedelta(seconds=30), 29, False, True),
    ],
)
def test_a_finetune_is_younger_than_a_request_only_beyond_the_tolerance(skew, born_after_request, date, there):
    asked_at = NOW - timedelta(minutes=10)
    born = asked_at + timedelta(seconds=born_after_request) + skew
    seen = found(born.isoformat(), NOW + skew if date else None)
    assert existed(seen, asked_at, NOW) is there


@pytest.mark.parametrize(
    ("born_hours_after_request", "zone_hours", "there"),
    [(0.1, -7, None), (0.1, 9, None), (-1, 0, None), (-15, -12, True), (-40, 0, True), (15, 0, False)],
)
def test_a_creation_time_without_its_zone_decides_only_if_no_zone_could_change_that(
    born_hours_after_request, zone_hours, there
):
    # Given an API that writes its local time and says nothing of the zone
    now = NOW + timedelta(hours=16)
    local = NOW + timedelta(hours=born_hours_after_request + zone_hours)
    seen = found(f"{local:%Y-%m-%dT%H:%M:%S}", now)
    assert existed(seen, NOW, now) is there


def test_without_a_usable_creation_time_nothing_is_known():
    assert existed(found("2026-02-01"), NOW, NOW) is None
    assert found("x").tolerance == timedelta(seconds=5)
    assert found("x", None).tolerance == timedelta(seconds=60)
