"""Surveys of a real API: what is read of each finetune, how old it is, and what an API that fails does."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks import errors
from tasks.api import errors as api_errors
from tasks.api.client import BflReader
from tasks.cleanup.inventory import load
from tasks.cleanup.plans import list_plans
from tests.integration.cleaning import DAY, KEY, OLD, TESTS, UUID, ago, cleaner_of, proposed, reads

pytestmark = pytest.mark.usefixtures("same_time")


def test_details_are_read_once_and_again_only_of_what_would_be_deleted(cleaner, api):
    cleaner.plan(OLD)
    assert sorted(reads(api)) == ["a", "b", "c", "d", "e", "f"], "each once, on first sight"
    before = len(reads(api))
    cleaner.plan(OLD)
    assert sorted(reads(api)[before:]) == ["a", "b"]


def test_details_are_read_of_what_is_left_by_name_and_age_and_of_all_if_the_newest_stay(cleaner, api):
    for policies, read in [
        (TESTS, "abcdef"),
        (replace(TESTS, older_than=30 * DAY), "ab"),
        (replace(TESTS, older_than=30 * DAY, keep_newest=1, match=("[a-d]",)), "abcd"),
    ]:
        cleaner.plan(OLD)
        before = len(reads(api))
        cleaner.plan(policies)
        assert sorted(reads(api)[before:]) == list(read)
    cleaner.survey("default", [], reads_all=True)
    assert sorted(reads(api)[-6:]) == list("abcdef")


def test_a_name_used_again_is_another_finetune_though_the_inventory_still_knows_the_old_one(cleaner, ledger, api):
    cleaner.plan(OLD)
    api.create("a", timestamp=ago(days=2, minutes=1))
    plan = cleaner.plan(OLD)
    assert proposed(plan) == ["b"]
    assert plan.items[0].reason == "not older than 30 days (2)"


def test_without_a_creation_time_age_counts_from_when_it_was_first_seen(ledger, api, clocked):
    only_g = replace(OLD, match=("g",))
    api.create("g", timestamp=None, id="unique-1")
    assert proposed(cleaner_of(ledger, api).plan(only_g)) == []
    clocked.after(days=31)
    assert proposed(cleaner_of(ledger, api).plan(only_g)) == ["g"]
    # Gone from the list in between, it is another one.
    api.remove("g")
    cleaner_of(ledger, api).plan(OLD)
    api.create("g", timestamp=None, id="unique-1")
    assert proposed(cleaner_of(ledger, api).plan(only_g)) == []


AGAIN: dict[str, Any] = {
    "another unique id": ({"id": "unique-2"}, False),
    "another notation": ({"id": "unique-1", "iterations": "300.0", "new_field": 1}, True),
    "a unique id no longer told": ({}, False),
}


@pytest.mark.parametrize("again", AGAIN)
def test_the_age_goes_on_only_if_it_is_known_to_be_the_same_one(ledger, api, clocked, again):
    details, is_same = AGAIN[again]
    api.create("g", timestamp=None, id="unique-1")
    cleaner_of(ledger, api).plan(OLD)
    before = load(ledger, "default").seen["g"]
    clocked.after(days=31)
    api.create("g", timestamp=None, **details)
    assert ("g" in proposed(cleaner_of(ledger, api).plan(OLD))) == is_same
    seen = load(ledger, "default").seen["g"]
    assert seen.first_seen == (before.first_seen if is_same else clocked.at_ms)
    assert (seen.observed_at, seen.vantage) == (clocked.at_ms, BflReader(api.url, KEY).vantage)


def test_equal_settings_alone_are_not_believed_for_long(ledger, api, clocked):
    # Given a finetune whose details tell neither a creation time nor a unique id
    api.create("g", timestamp=None)
    cleaner_of(ledger, api).plan(OLD)
    clocked.after(days=31)
    # Then it may be another one of the same name, so its age starts now.
    (item,) = [one for one in cleaner_of(ledger, api).plan(OLD).items if one.finetune_id == "g"]
    assert (item.action, item.reason) == ("keep", "not older than 30 days (0)")


def test_nothing_to_compare_means_keep(cleaner, api):
    nothing = dict.fromkeys(
        ("timestamp", "trigger_word", "mode", "iterations", "learning_rate", "lora_rank", "finetune_type")
    )
    api.create("x", **nothing, id="x-with-the-name", colour="blue")
    api.create("day", **nothing | {"timestamp": "2026-01-01"})
    kept = {item.finetune_id: item.reason for item in cleaner.plan(replace(OLD, older_than=DAY)).items}
    assert kept["x"] == kept["day"] == "which finetune it is could not be read"


WRONG_CLOCKS = {
    timedelta(days=400): [45, 31, 29, 3, 2, 1],
    timedelta(minutes=30): [45, 31, 29, 3, 2, 1],
    timedelta(0): [45, 31, 29, 3, 2, 1],
    timedelta(days=-2, minutes=-2): [42, 28, 26, 0, None, None],
    timedelta(days=-400): [None] * 6,
}


@pytest.mark.parametrize("ahead", WRONG_CLOCKS)
def test_of_two_clocks_the_one_counts_that_makes_a_finetune_younger(ledger, api, clocked, ahead):
    # Given a Redis whose clock is off, or an API's; nobody can tell which
    clocked.at_ms += ahead // timedelta(milliseconds=1)
    plan = cleaner_of(ledger, api).plan(OLD)
    assert [item.age_days for item in plan.items] == WRONG_CLOCKS[ahead]
    assert proposed(plan) == [item.finetune_id for item in plan.items if (item.age_days or 0) > 30]


TWO_TIMES = {  # created_at and timestamp: the age, or why there is none
    ("2 days ago", 45): "its creation time is not readable, or before 2024",
    ("1970-01-01", 45): "its creation time is not readable, or before 2024",
    (45, "2 days ago"): 45,
    (45, 3): 3,
    (3, 45): 3,
    ("", 45): 45,
}


@pytest.mark.parametrize("times", TWO_TIMES)
def test_of_two_creation_times_the_younger_counts_and_none_if_the_first_cannot_be_read(cleaner, api, times):
    created_at, timestamp = [ago(days=one, minutes=1) if isinstance(one, int) else one for one in times]
    api.create("x", created_at=created_at, timestamp=timestamp)
    (item,) = [item for item in cleaner.plan(OLD).items if item.finetune_id == "x"]
    assert TWO_TIMES[times] in (item.age_days, item.reason.removeprefix("its age is not known: "))


UNSOUND = {
    "yesterday": "its age is not known: its creation time is not readable, or before 2024",
    7: "its age is not known: its creation time is not readable, or before 2024",
    "0001-01-01T00:00:00Z": "its age is not known: its creation time is not readable, or before 2024",
    "1970-01-01T00:00:00Z": "its age is not known: its creation time is not readable, or before 2024",
    "2090-01-01T00:00:00Z": "its age is not known: its creation time is in the future",
    "9999-01-01T00:00:00Z": "its age is not known: its creation time is not readable, or before 2024",
}


@pytest.mark.parametrize("timestamp", UNSOUND)
def test_a_creation_time_that_is_not_sound_keeps_it_with_that_as_the_reason(cleaner, api, timestamp):
    api.create("x", timestamp=timestamp)
    (item,) = [item for item in cleaner.plan(OLD).items if item.finetune_id == "x"]
    assert (item.action, item.reason) == ("keep", UNSOUND[timestamp])


def test_what_cannot_be_read_is_kept(cleaner, api):
    api.fault("status", call="finetune_details", finetune_id="a", status=404, body={"detail": "no"}, times=None)
    plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "which finetune it is could not be read")


@pytest.mark.parametrize("row", ["{", "7", "[]", '{"incarnation": null}'])
def test_a_row_of_the_inventory_that_cannot_be_read_is_as_none(cleaner, ledger, api, row):
    # Given what another version may have written
    cleaner.plan(OLD)
    ledger.redis.hset(ledger.keys.inventory("default"), "a", row)
    assert load(ledger, "default").seen.keys() == set("bcdef")
    # Then its details are read again, and it is known.
    assert proposed(cleaner.plan(OLD)) == ["a", "b"]
    assert load(ledger, "default").seen.keys() == set("abcdef")


def test_an_account_can_be_surveyed_before_a_worker_has_registered_it(cleaner):
    emea = replace(cleaner, readers={"emea": cleaner.readers["default"]})
    assert proposed(emea.plan(replace(OLD, account="emea"))) == ["a", "b"]


def test_what_answers_in_another_shape_is_kept_and_the_others_go(cleaner, api):
    api.fault("reshaped", call="finetune_details", finetune_id="a", times=None)
    plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "which finetune it is could not be read")


def test_details_that_name_another_finetune_are_not_believed(cleaner, api):
    # Given what answers with the details of another finetune, such as a cache that ignores the query
    details = {"finetune_id": "b", "timestamp": ago(days=400), "trigger_word": "TOK"}
    api.fault(
        "status",
        call="finetune_details",
        finetune_id="f",
        status=200,
        body={"finetune_details": details},
        times=None,
    )
    plan = cleaner.plan(OLD)
    reasons = {item.finetune_id: item.reason for item in plan.items}
    assert (proposed(plan), reasons["f"]) == (["a", "b"], "which finetune it is could not be read")


BROKEN = [
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 200, "body": "x" * 2_000_000},
    {"kind": "reset"},
]


@pytest.mark.parametrize("fault", BROKEN, ids=["500", "too large", "reset"])
def test_one_whose_details_always_break_is_kept_and_the_others_go(cleaner, api, fault):
    api.fault(**fault, call="finetune_details", finetune_id="a", times=None)
    with capture_logs() as logs:
        plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "which finetune it is could not be read")
    assert {(line["event"], line["finetune"]) for line in logs if line["log_level"] == "warning"} == {
        ("survey.unreadable", "a")
    }


@pytest.mark.parametrize(("broken", "is_made"), [(3, True), (4, False)])
def test_if_the_details_of_many_break_it_is_the_api_and_one_of_them_is_named(cleaner, api, broken, is_made):
    for name in "cdef"[:broken]:
        api.fault(
            "status", call="finetune_details", finetune_id=name, times=None, status=500, body={"detail": "no"}
        )
    if is_made:
        assert proposed(cleaner.plan(OLD)) == ["a", "b"]
        return
    with pytest.raises(api_errors.Unclear, match=r"HTTP 500: no \(the details of '[c-f]'\)"):
        cleaner.plan(OLD)


def test_details_that_break_with_the_list_make_no_plan(cleaner, api):
    api.fault("status", call="finetune_details", finetune_id="a", times=None, status=500)
    api.fault("status", call="my_finetunes", times=None, skip=1, status=502)
    with pytest.raises(api_errors.Unclear, match="HTTP 502"):
        cleaner.plan(OLD)


FAILURES = {
    "a list that does not answer": ({"kind": "status", "call": "my_finetunes", "status": 500}, api_errors.Unclear),
    "a list that throttles": ({"kind": "status", "call": "my_finetunes", "status": 429}, api_errors.Throttled),
    "details that break midway": ({"kind": "reset", "call": "finetune_details", "skip": 2}, api_errors.Unclear),
    "a refused key": ({"kind": "status", "call": "my_finetunes", "status": 403}, api_errors.KeyRefused),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_api_that_fails_midway_makes_no_plan(cleaner, ledger, api, failure):
    fault, error = FAILURES[failure]
    api.fault(**fault, times=None)
    with pytest.raises(error):
        cleaner.plan(OLD)
    assert list_plans(ledger) == []
    assert ledger.redis.zcard(ledger.keys.permits("default")) == 0, "no permit is left taken"


def test_what_passes_is_tried_again(ledger, api):
    api.fault("reset", call="finetune_details", times=2)
    api.fault("status", call="my_finetunes", status=500)
    assert cleaner_of(ledger, api, budget=timedelta(seconds=20)).plan(OLD).deletions == 2


def test_a_list_with_two_spellings_of_a_uuid_has_one_finetune(cleaner, ledger, api, clocked, monkeypatch):
    # Given a finetune that was seen
    api.create(UUID.upper(), timestamp=None, id="unique-1")
    cleaner.plan(OLD)
    first = load(ledger, "default").seen[UUID]
    # When the list spells it differently, and twice
    clocked.after(days=2)
    api.remove(UUID.upper())
    api.create(UUID, timestamp=None, id="unique-1")
    listed = BflReader.my_finetunes
    twice = {UUID, UUID.upper()}
    monkeypatch.setattr(
        BflReader, "my_finetunes", lambda self: replace(listed(self), names=listed(self).names | twice)
    )
    plan = cleaner.plan(OLD)
    # Then it is one, and as old as before
    assert [item.finetune_id for item in plan.items if item.finetune_id not in "abcdef"] == [UUID]
    seen = load(ledger, "default").seen
    assert seen.keys() == {*"abcdef", UUID}
    assert seen[UUID].first_seen == first.first_seen


def test_one_whose_details_are_refused_is_kept_and_a_refused_key_makes_no_plan(cleaner, ledger, api):
    api.fault("status", call="finetune_details", finetune_id="a", status=403, times=None)
    plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "which finetune it is could not be read")
    api.create("z", timestamp=ago(days=45))
    api.fault("status", call="finetune_details", finetune_id="z", status=403, times=None)
    api.fault("status", call="my_finetunes", status=403, times=1, skip=1)
    with pytest.raises(api_errors.KeyRefused):
        cleaner.plan(OLD)


class Stopping(errors.JanitorError):
    """As `sleep` raises it when the process is to stop."""


def test_a_survey_ends_with_its_process(ledger, api):
    def stop(seconds):
        raise Stopping("the worker is stopping")

    with pytest.raises(Stopping):
        replace(cleaner_of(ledger, api), sleep=stop).plan(OLD)
    assert api.journal() == []
