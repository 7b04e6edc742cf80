"""Durations and times as people write them: read back as they were written, or refused with what is accepted."""

from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.durations import ACCEPTED_DURATION, ACCEPTED_TIME, format_duration, iso, parse_duration, parse_time
from tasks.errors import InvalidRequest

EVENING = datetime(2026, 12, 24, 18, tzinfo=UTC)


@given(st.integers(0, 3650 * 86_400_000).map(lambda ms: timedelta(milliseconds=ms)))
def test_what_is_written_is_read_back_to_the_millisecond(duration):
    assert parse_duration(format_duration(duration)) == duration


@given(st.text() | st.from_regex(r"\A[0-9]{0,400}\.?[0-9]*(ms|[smhdw])?\Z"))
def test_any_text_is_a_bounded_duration_or_refused(text):
    with suppress(InvalidRequest):
        assert timedelta(0) <= parse_duration(text) <= timedelta(days=3650)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("500ms", timedelta(milliseconds=500)), ("90s", timedelta(seconds=90)),
        (" 1h 30m ", timedelta(minutes=90)), ("1 h  30 m", timedelta(minutes=90)),
        ("0.5h", timedelta(minutes=30)), ("2w", timedelta(days=14)), ("3650d", timedelta(days=3650)),
        ("0s", timedelta(0)),
    ],
)  # fmt: skip
def test_durations_are_written_in_short_units(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text", ["", "30", "s", "-5s", "1y", "1h-30m", "1,5h", "1h!", "1e3s", "nan", "5 apples", "1 5m", "1. 5h"]
)
def test_anything_else_is_refused_with_what_was_given_and_what_is_accepted(text):
    with pytest.raises(InvalidRequest) as refused:
        parse_duration(text)
    assert str(refused.value) == f"{text!r} is not a duration: give {ACCEPTED_DURATION}"
    with pytest.raises(InvalidRequest, match="'3651d' is too long: give at most 3650d"):
        parse_duration("3651d")


@pytest.mark.parametrize("text", ["24H", "7D", "500MS"])
def test_units_are_lower_case(text):
    with pytest.raises(InvalidRequest, match="in lower case"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["6M", "1 M", "1h30M"])
def test_a_capital_m_is_refused_with_a_hint_for_it_may_mean_months(text):
    with pytest.raises(InvalidRequest, match=r"m is minutes, and there is no unit for months$"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (timedelta(minutes=90), "1h30m"),
        (timedelta(days=1, milliseconds=5), "1d5ms"),
        (timedelta(seconds=-1), "0s"),
    ],
)
def test_it_is_written_from_the_largest_unit_down(duration, text):
    assert format_duration(duration) == text


@pytest.mark.parametrize(
    "text",
    ["2026-12-24T18:00:00Z", "2026-12-24 18:00", "2026-12-24T20:00:00+02:00", " 20261224T180000Z "],
)
def test_a_time_is_utc_unless_it_says_otherwise(text):
    moment = parse_time(text)
    assert (moment, moment.utcoffset()) == (EVENING, timedelta(0))


@pytest.mark.parametrize("text", ["", "tomorrow", "24.12.2026", "2026-13-01", "1798135200"])
def test_anything_else_is_no_time(text):
    with pytest.raises(InvalidRequest) as refused:
        parse_time(text)
    assert str(refused.value) == f"{text!r} is not a time: give {ACCEPTED_TIME}"


def test_records_have_one_form_of_time():
    assert iso(EVENING.astimezone(timezone(timedelta(hours=9)))) == "2026-12-24T18:00:00.000Z"
    assert iso(None) is None
