"""Waits are bounded: by what the API may ask for, by the budget in hand, and by an hour in the ledger."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as st

from tasks.api.retry import COOL_DOWN, LONGEST_RETRY_AFTER, Again, long_delay, retried, retry_after

DATE = "Wed, 21 Oct 2026 07:28:00 GMT"
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
BUDGET = timedelta(seconds=20)


class Clock:
    """Seconds on a monotonic clock; a sleep only moves it on."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


@pytest.mark.parametrize(
    ("text", "wait"),
    [
        ("120", timedelta(minutes=2)), (" 0.5 ", timedelta(milliseconds=500)), ("0", timedelta(0)),
        ("31536000", HOUR), ("1e300", HOUR), ("Wed, 21 Oct 2026 07:29:30 GMT", timedelta(seconds=90)),
        ("Wed, 21 Oct 2026 09:29:30 +0200", timedelta(seconds=90)),
        ("Wed, 21 Oct 2026 07:00:00 GMT", timedelta(0)), ("Thu, 21 Oct 2027 07:28:00 GMT", HOUR), ("nan", None),
        ("inf", None), ("-inf", None), ("-1", None), ("", None), ("soon", None), ("2026-10-21", None),
    ],
)  # fmt: skip
def test_retry_after_is_seconds_or_a_date_and_at_most_an_hour(text, wait):
    assert retry_after({"Retry-After": text, "Date": DATE}) == wait


@pytest.mark.parametrize("date", ["", "yesterday"])
def test_a_date_is_measured_against_our_own_clock_if_the_answer_has_none(date):
    assert retry_after({"Retry-After": "Fri, 01 Jan 2100 00:00:00 GMT", "Date": date}) == HOUR
    assert retry_after({"Retry-After": "Thu, 01 Jan 2015 00:00:00 GMT", "Date": date}) == timedelta(0)


@given(st.text() | st.floats().map(str) | st.integers().map(str), st.text())
def test_for_any_header_the_wait_stays_within_an_hour(text, date):
    wait = retry_after({"Retry-After": text, "Date": date})
    assert wait is None or timedelta(0) <= wait <= LONGEST_RETRY_AFTER


@given(st.integers(0, 10_000))
def test_a_long_delay_is_jittered_between_a_second_and_an_hour(backoffs):
    longest = min(timedelta(seconds=30) * 2 ** min(backoffs, 20), HOUR)
    assert SECOND <= long_delay(backoffs) <= longest


@pytest.mark.parametrize("asked", [timedelta(seconds=10), timedelta(seconds=31), HOUR])
def test_a_long_delay_is_never_shorter_than_what_was_asked_for(asked):
    delays = {long_delay(5, asked) for _ in range(100)}
    assert all(asked <= delay <= max(asked, timedelta(minutes=16)) for delay in delays)
    assert (len(delays) == 1) == (asked > timedelta(seconds=30)), "jittered, unless the API named the time"


class Tries:
    """A call that wants to be tried again as often as it is told to, on a clock of its own."""

    def __init__(self, monkeypatch, *errors: Exception) -> None:
        self.clock = Clock()
        self.errors = list(errors)
        monkeypatch.setattr(tenacity, "time", SimpleNamespace(monotonic=self.clock))

    def loop(self) -> str:
        return retried(self.once, BUDGET, self.clock.sleep)

    def once(self) -> str:
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_what_may_be_repeated_is_repeated_after_a_wait(monkeypatch):
    tries = Tries(monkeypatch, Again("busy"), Again("busy"))
    assert tries.loop() == "done"
    assert len(tries.clock.slept) == 2
    assert all(0 <= seconds <= 8 for seconds in tries.clock.slept)


def test_the_wait_is_the_one_the_api_named(monkeypatch):
    tries = Tries(monkeypatch, Again("busy", timedelta(seconds=7)))
    assert (tries.loop(), tries.clock.slept) == ("done", [7.0])


def test_retries_end_within_the_budget_with_the_last_reason(monkeypatch):
    tries = Tries(monkeypatch, *(Again(f"busy {n}", timedelta(seconds=6)) for n in range(1, 9)))
    with pytest.raises(Again, match="busy 4"):
        tries.loop()
    assert sum(tries.clock.slept) == 18 < BUDGET.total_seconds()


def test_a_wait_that_would_pass_the_budget_does_not_start(monkeypatch):
    tries = Tries(monkeypatch, Again("busy", BUDGET))
    with pytest.raises(Again) as raised:
        tries.loop()
    assert (tries.clock.slept, raised.value.wait) == ([], BUDGET)


def test_anything_else_is_raised_at_once(monkeypatch):
    tries = Tries(monkeypatch, ValueError("a bug"))
    with pytest.raises(ValueError, match="a bug"):
        tries.loop()
    assert not tries.clock.slept


def test_an_account_cools_down_in_steps():
    assert COOL_DOWN[402] == (timedelta(seconds=30), timedelta(minutes=5))
    assert COOL_DOWN[429] == (SECOND, timedelta(minutes=1))
