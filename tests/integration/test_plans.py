"""Surveys and plans against a real API: what is read, what is proposed, and what stops a plan."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks import errors
from tasks.api import errors as api_errors
from tasks.api.client import BflReader
from tasks.api.incarnations import Incarnation
from tasks.cleanup import plans, schedule
from tasks.cleanup.inventory import load, protect, touch, unknown_among
from tasks.cleanup.plans import apply_plan, get_plan, list_plans
from tasks.cleanup.policies import Policy
from tasks.cleanup.schedule import Cleaner, last_window
from tasks.intake import Intake
from tasks.ledger import audit
from tasks.ledger.holds import hold
from tasks.ledger.queries import Filter, get, list_deletions
from tasks.ledger.types import Act
from tasks.records import State, to_ms
from tests.conftest import accept, asking, carry_out_one, claim_all, finish, mark
from worker.doctor.policies import scheduled_policies
from worker.sandbox.api import Sandbox

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OLD = Policy("old", older_than=30 * DAY, max_percent=100)
KEY = "sandbox-key"
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
MIXED = "0F8fad5b-D9cb-469f-A165-70867728950e"


class Stopping(errors.JanitorError):
    """As `sleep` raises it when the process is to stop."""


def ago(**duration):
    return (datetime.now(UTC) - timedelta(**duration)).isoformat()


@pytest.fixture(autouse=True)
def same_time(clocked):
    """The hand-held clock starts at the API's time: ages are measured against the API's `Date`."""
    clocked.at_ms = to_ms(datetime.now(UTC))


@pytest.fixture
def api():
    """Two stale finetunes and four that are not."""
    with Sandbox(latency_seconds=0) as sandbox:
        for name, days in {"a": 45, "b": 31, "c": 29, "d": 3, "e": 2, "f": 1}.items():
            sandbox.create(name, timestamp=ago(days=days, minutes=1))
        yield sandbox


def no_sleep(seconds):
    """Retries at once."""


@pytest.fixture
def cleaner(ledger, api):
    return cleaner_of(ledger, api)


def cleaner_of(ledger, api, budget=timedelta(seconds=0)):
    intake = Intake(ledger, lambda account: None)
    return Cleaner(ledger, {"default": BflReader(api.url, KEY)}, 8, budget, no_sleep, intake=intake)


def tick(ledger, api, policies):
    """One tick of another process, whose file has these policies, or cannot be read."""
    cleaner_of(ledger, api).tick(lambda: said(policies))


def said(policies):
    """What reading the file does."""
    if isinstance(policies, Exception):
        raise policies
    return policies


def applied(cleaner, plan, by=None, policies=None):
    return apply_plan(cleaner.ledger, cleaner.intake, plan, Act(by, "command"), policies)


def proposed(plan):
    return [item.finetune_id for item in plan.items if item.action == "delete"]


def reads(api):
    return [call["finetune_id"] for call in api.journal() if call["call"] == "finetune_details"]


def test_a_plan_lists_every_finetune_with_its_reason_and_deletes_nothing(cleaner, ledger, api):
    plan = cleaner.plan(OLD)
    told = {item.finetune_id: (item.action, item.reason, item.age_days) for item in plan.items}
    day = datetime.now(UTC) - 45 * DAY
    assert told["a"] == ("delete", f"older than 30 days (45), created {day:%Y-%m-%d}", 45)
    assert told["c"] == ("keep", "not older than 30 days (29)", 29)
    assert (plan.deletions, plan.total, plan.blocked) == (2, 6, None)
    assert get_plan(ledger, plan.id) == plan
    assert list_plans(ledger) == list_plans(ledger, accounts=["default"]) == [replace(plan, items=())]
    assert list_plans(ledger, accounts=["emea"]) == []
    assert api.deletes() == []
    assert {call["call"] for call in api.journal()} == {"my_finetunes", "finetune_details"}


def test_details_are_read_once_and_again_only_of_what_would_be_deleted(cleaner, api):
    cleaner.plan(OLD)
    assert sorted(reads(api)) == ["a", "b", "c", "d", "e", "f"], "each once, on first sight"
    before = len(reads(api))
    cleaner.plan(OLD)
    assert sorted(reads(api)[before:]) == ["a", "b"]


READ = {
    "hash": lambda client, key: client.hgetall(key),
    "list": lambda client, key: client.lrange(key, 0, -1),
    "set": lambda client, key: client.smembers(key),
    "string": lambda client, key: client.get(key),
    "zset": lambda client, key: client.zrange(key, 0, -1),
}
TESTS = Policy("tests", comment=("*A Test*",), max_percent=100)


def test_what_details_say_selects_at_planning_time_and_is_kept_nowhere(cleaner, ledger, api, redis_client):
    # Given surveys that know every finetune, two of them tests by their comments,
    cleaner.plan(OLD)
    for name, days in {"c": 29, "d": 3}.items():
        api.create(name, timestamp=ago(days=days, minutes=1), finetune_comment=f"a test for Ms Miller {name}")
    told = []
    # when a policy asks for tests,
    plan = cleaner.plan(TESTS, tell=told.append)
    # then those are proposed, and what their comments say is shown and not stored.
    assert proposed(plan) == ["c", "d"]
    reasons = {item.finetune_id: item.reason for item in plan.items}
    assert (reasons["a"], reasons["c"]) == ("its comment does not match", "matches by comment")
    assert told[0].about["c"]["comment"] == ("a test for Ms Miller c",)
    assert applied(cleaner, plan)[0].created
    stored = str([READ[redis_client.type(key)](redis_client, key) for key in redis_client.scan_iter()])
    assert ("matches by comment" in stored, "Miller" in stored) == (True, False)
    # A comment that was changed since counts.
    api.create("c", timestamp=ago(days=29, minutes=1), finetune_comment="for a fair")
    assert [item.reason for item in cleaner.plan(TESTS).items if item.finetune_id == "c"] != ["matches by comment"]


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


def test_a_held_finetune_is_kept_with_who_and_why(cleaner, ledger):
    cleaner.plan(OLD)
    hold(ledger, "default", "a", None, Act("ana", "command", "a lawsuit"))
    plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "held by ana: a lawsuit")


def test_names_that_no_survey_has_seen_are_told(cleaner, ledger, api):
    assert unknown_among(ledger, "default", ["a"]) == ["a"]
    api.create(MIXED, timestamp=ago(days=1))
    cleaner.plan(OLD)
    assert unknown_among(ledger, "default", ["a", "A", MIXED, UUID.upper(), UUID, "nothing"]) == ["A", "nothing"]
    assert unknown_among(ledger, "default", []) == []


@pytest.mark.parametrize("listed", [UUID, UUID.upper(), MIXED])
@pytest.mark.parametrize("given", [UUID, UUID.upper(), MIXED])
def test_a_uuid_is_protected_and_used_in_whatever_way_it_is_spelled(cleaner, ledger, api, listed, given):
    api.create(listed, timestamp=ago(days=45))
    protect(ledger, "default", [given])
    touch(ledger, "default", [given])
    (item,) = [one for one in cleaner.plan(OLD).items if one.finetune_id == listed]
    assert (item.action, item.reason, bool(item.last_used)) == ("keep", "protected for good", True)


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


NEWEST = replace(OLD, older_than=HOUR, keep_newest=2)


def test_what_is_listed_but_gone_is_none_of_the_newest(cleaner, api):
    # Given the newest two, of which the list still tells and details no longer do
    cleaner.plan(NEWEST)
    for name in "ef":
        api.fault(
            "status", call="finetune_details", finetune_id=name, status=404, body={"detail": "no"}, times=None
        )
    # Then the newest two of those that are there stay.
    reasons = {item.finetune_id: item.reason for item in cleaner.plan(NEWEST).items}
    assert [reasons[name] for name in "cd"] == ["among the newest 2"] * 2


def test_the_newest_are_told_by_what_details_say_now(cleaner, ledger, api):
    # Given one that looked younger to another key at another host
    cleaner.plan(NEWEST)
    key, young = ledger.keys.inventory("default"), to_ms(datetime.now(UTC) - DAY / 2)
    seen = json.loads(ledger.redis.hget(key, "a")) | {"created": young, "vantage": "staging.example 0a1b2c3d"}
    ledger.redis.hset(key, "a", json.dumps(seen))
    # Then it takes the place of none that is younger, and what need not be read is not.
    before = len(reads(api))
    assert proposed(cleaner.plan(NEWEST)) == ["a", "b", "c", "d"]
    assert sorted(reads(api)[before:]) == list("abcdef")
    before = len(reads(api))
    cleaner.plan(replace(NEWEST, older_than=60 * DAY))
    assert reads(api)[before:] == []


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


def shrink(api):
    for name in "bcdf":
        api.remove(name)


def test_a_list_that_is_reshaped_empty_or_shrunken_blocks_the_plan(cleaner, ledger, api, clocked):
    cleaner.plan(OLD)
    api.fault("reshaped", call="my_finetunes")
    reshaped = cleaner.plan(OLD)
    assert (reshaped.blocked, reshaped.items) == (
        "HTTP 200: my_finetunes answered in a shape that is not known",
        (),
    )
    shrink(api)
    shrunk = cleaner.plan(replace(OLD, max_percent=100))
    assert shrunk.blocked == "the list has shrunk from 6 to 2, and not by our deletions"
    assert cleaner.plan(OLD).blocked == shrunk.blocked, "asking again does not make it true"
    # It is believed once it has stayed so for a day.
    assert cleaner_of(clocked.after(days=1, minutes=1), api).plan(OLD).blocked is None
    for name in "ae":
        api.remove(name)
    assert cleaner_of(clocked(), api).plan(OLD).blocked == "the list is empty: is this the right account?"


def test_a_list_that_loses_half_again_and_again_is_measured_against_the_longest_of_the_day(ledger, api, clocked):
    cleaner_of(ledger, api).plan(OLD)
    blocked = []
    # Given a list that loses up to half at each survey, all within a day
    for gone in ("ef", "d", "c"):
        for name in gone:
            api.remove(name)
        blocked.append(cleaner_of(clocked.after(minutes=1), api).plan(replace(OLD, older_than=40 * DAY)).blocked)
    assert blocked == [
        None, None, "the list has shrunk from 6 to 2, and not by our deletions",
    ]  # fmt: skip
    # A day later what is left is believed, and from then on it is measured against that.
    clocked.after(days=1)
    assert cleaner_of(ledger, api).plan(replace(OLD, older_than=40 * DAY)).blocked is None
    assert load(ledger, "default").listed_count == 2


def test_what_we_deleted_ourselves_is_no_shrinkage(cleaner, ledger, api):
    cleaner.plan(OLD)
    for name in "bcdf":
        accept(ledger, asking(name))
        carry_out_one(ledger)
    shrink(api)
    assert cleaner.plan(OLD).blocked is None


def test_a_list_that_is_not_whole_cannot_show_what_is_gone(cleaner, ledger, api, monkeypatch):
    cleaner.plan(OLD)
    shrink(api)
    whole = BflReader.my_finetunes
    monkeypatch.setattr(BflReader, "my_finetunes", lambda self: replace(whole(self), more="the field 'next'"))
    plan = cleaner.plan(OLD)
    assert (plan.blocked, plan.items) == ("my_finetunes may not list all: the field 'next' may speak of more", ())
    assert load(ledger, "default").seen.keys() == set("abcdef"), "nothing is forgotten"


def test_two_spellings_of_a_uuid_are_one_finetune(cleaner, ledger, api, clocked, monkeypatch):
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


def test_a_protect_pattern_that_fits_nothing_is_a_warning_of_the_plan(cleaner, ledger):
    plan = cleaner.plan(replace(OLD, protect=("A", "prod-*")))
    assert (proposed(plan), plan.blocked) == (["b"], None)
    assert plan.warnings == ("the protect pattern 'prod-*' fits none of the 6 finetunes of account default",)
    assert get_plan(ledger, plan.id) == plan
    assert list_plans(ledger)[0].warnings == plan.warnings
    assert json.loads(json.dumps(plan.to_json()))["warnings"] == list(plan.warnings)


def test_a_full_redis_still_shows_plans_and_finetunes(cleaner, ledger):
    plan = cleaner.plan(OLD)
    ledger.redis.config_set("maxmemory-policy", "noeviction")
    ledger.redis.config_set("maxmemory", 1)
    try:
        assert get_plan(ledger, plan.id) == plan
        assert list_plans(ledger) == [replace(plan, items=())]
        assert load(ledger, "default").seen.keys() == set("abcdef")
        with pytest.raises(errors.LedgerUnavailable, match="of memory left"):
            applied(cleaner, plan)
    finally:
        ledger.redis.config_set("maxmemory", 0)


def test_a_list_wholly_stale_blocks_the_plan(cleaner, api):
    for name in "cdef":
        api.remove(name)
    assert cleaner.plan(OLD).blocked == "all 2 finetunes would be deleted"


class TestApply:
    def test_it_asks_for_exactly_the_plan_each_bound_to_what_was_seen_after_its_grace(
        self, cleaner, ledger, clocked
    ):
        plan = cleaner.plan(OLD)
        clocked.after(minutes=5)
        a, b = applied(cleaner, plan, "somebody")
        assert [(one.finetune_id, one.created, one.kept, one.error) for one in (a, b)] == [
            ("a", True, None, None),
            ("b", True, None, None),
        ]
        deletion, item = a.deletion, plan.items[0]
        assert (deletion.state, deletion.due_at) == (State.SCHEDULED, clocked.now + OLD.grace)
        assert (deletion.incarnation, deletion.vantage) == (item.incarnation, cleaner.readers["default"].vantage)
        assert deletion.observed_at == item.observed_at == deletion.asked_at == plan.created_at
        assert (deletion.source, deletion.requested_by) == (f"cleanup:{plan.id}", "somebody")
        assert deletion.reason == f"old: {item.reason}"
        assert get_plan(ledger, plan.id).applied_at == clocked.now

    def test_the_incarnation_is_kept_as_an_observation_would_write_it(self, cleaner, ledger):
        (a, _) = applied(cleaner, cleaner.plan(OLD))
        stored = ledger.redis.hget(ledger.keys.deletion(a.deletion.id), "incarnation")
        observed = Incarnation.from_text(stored)
        assert observed is not None
        assert stored == observed.to_text() == load(ledger, "default").seen["a"].incarnation

    def test_applied_again_it_asks_for_nothing_again_and_what_was_cancelled_stays_so(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        first = applied(cleaner, plan, "somebody")
        ledger.cancel([first[0].deletion.id], Act("somebody", "command"))
        again = applied(cleaner, plan, "somebody else")
        assert [one.created for one in again] == [False, False]
        assert [one.deletion.id for one in again] == [one.deletion.id for one in first]
        assert (again[0].deletion.state, again[0].kept) == (State.CANCELLED, None)

    def test_an_id_that_is_taken_is_an_error_of_that_item_and_shows_nobody_elses_record(
        self, cleaner, ledger, clocked
    ):
        # Given somebody's request under the id that the plan would use
        plan = cleaner.plan(OLD)
        taken = applied(cleaner, plan)[0].deletion.id
        for key in ledger.redis.keys(f"*{taken}*"):
            ledger.redis.delete(key)
        accept(ledger, asking("secret", id=taken))
        a, b = applied(cleaner, plan)
        assert (a.finetune_id, a.deletion, a.created, a.kept) == ("a", None, False, None)
        assert a.error == f"the request id {taken} belongs to another request: make a new plan"
        assert (b.deletion.finetune_id, b.error) == ("b", None)

    def test_what_was_used_or_protected_since_is_kept_and_said_so(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        touch(ledger, "default", ["a"])
        protect(ledger, "default", ["b"])
        assert [one.kept for one in applied(cleaner, plan)] == [
            "kept: it was used after the plan was made",
            "kept: it is protected",
        ]

    def test_what_was_replaced_since_is_kept(self, cleaner, api, clocked):
        plan = cleaner.plan(OLD)
        api.create("a", timestamp=ago(days=40))
        clocked.after(minutes=1)
        cleaner.plan(OLD)
        kept = [one.kept for one in applied(cleaner, plan)]
        assert kept == ["kept: the name belongs to another finetune now", None]

    def test_what_somebody_asked_for_since_is_kept_and_their_deletion_goes_on(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        accept(ledger, asking("a", id="r1", delay=3 * DAY))
        (a, _) = applied(cleaner, plan)
        assert a.kept == "kept: another deletion of it is unfinished"
        assert get(ledger, "r1").state == State.SCHEDULED

    def test_a_plan_does_not_propose_what_has_an_unfinished_deletion(self, cleaner, ledger):
        applied(cleaner, cleaner.plan(OLD))
        again = cleaner.plan(OLD)
        assert proposed(again) == []
        assert {item.reason for item in again.items[:2]} == {"another deletion of it is unfinished"}

    @pytest.mark.parametrize("unused_for", [None, 2 * DAY])
    def test_what_is_selected_by_use_is_kept_if_reports_stop_in_its_grace(
        self, cleaner, ledger, api, clocked, unused_for
    ):
        for _ in range(4):
            touch(clocked.after(hours=20), "default", ["f"])
        plan = cleaner.plan(replace(OLD, unused_for=unused_for))
        (a, _) = applied(cleaner, plan)
        clocked.after(hours=25)
        ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
        claim_all(ledger)
        assert get(ledger, a.deletion.id).state == (State.CANCELLED if unused_for else State.RUNNING)

    BY_NAME = (
        replace(OLD, name="a", match=("a",), max_percent=25),
        replace(OLD, name="b", match=("b",), max_percent=25),
    )

    def test_plans_of_several_policies_are_within_the_caps_together(self, cleaner, ledger):
        # Given two policies, each of which may delete one of six, and the plan of the first applied
        first, second = self.BY_NAME
        applied(cleaner, cleaner.plan(first))
        # When the second is planned, then it is blocked until the first has been carried out.
        why = "1 of 6 would be deleted, besides 1 already deleted or waiting for it, and max_percent is 25 (1)"
        assert cleaner.plan(second).blocked == why

    @pytest.mark.parametrize("carried_out", [False, True])
    def test_plans_that_were_made_together_are_within_the_caps_together_when_they_are_applied(
        self, cleaner, ledger, clocked, carried_out
    ):
        # Given plans of several policies, made before any was applied, and one of them applied
        first, second = [cleaner.plan(replace(policy, grace=timedelta(0))) for policy in self.BY_NAME]
        applied(cleaner, first)
        # and even carried out,
        if carried_out:
            ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
            finish(ledger, *claim_all(ledger), "deleted", attempt=1)
        # when the second is applied, then it is refused, and the first can still be applied again.
        with pytest.raises(errors.PlanRefused, match="1 of 6 would be deleted, besides 1 already deleted"):
            applied(cleaner, second)
        assert [one.created for one in applied(cleaner, first)] == [False]

    def test_a_blocked_plan_and_an_old_one_are_refused(self, cleaner, ledger, api, clocked):
        blocked = cleaner.plan(replace(OLD, max_deletions=1))
        assert blocked.blocked == "2 would be deleted, and max_deletions is 1"
        with pytest.raises(errors.PlanRefused, match="is blocked, nothing was written: 2 would be"):
            applied(cleaner, blocked)
        plan = cleaner.plan(OLD)
        late = cleaner_of(clocked.after(hours=25), api)
        with pytest.raises(errors.PlanRefused, match="is 1d1h old, and the limit is 1d: `janitor cleanup plan"):
            applied(late, plan)
        assert ledger.redis.keys(ledger.keys.deletion("*")) == []

    @pytest.mark.parametrize("back", [timedelta(minutes=6), timedelta(days=10)])
    def test_a_plan_of_a_clock_that_was_ahead_is_refused(self, cleaner, api, clocked, back):
        plan = cleaner.plan(OLD)
        put_right = cleaner_of(clocked.after(seconds=-back.total_seconds()), api)
        with pytest.raises(errors.PlanRefused, match=r"and it is .*: `janitor cleanup plan --policy old` makes"):
            applied(put_right, plan)

    def test_a_use_since_the_plan_keeps_its_finetune_even_if_the_clock_was_set_back(
        self, cleaner, ledger, clocked
    ):
        plan = cleaner.plan(OLD)
        touch(clocked.after(seconds=-20), "default", ["a"])
        clocked.after(minutes=1)
        assert [one.kept for one in applied(cleaner, plan)] == ["kept: it was used after the plan was made", None]

    @pytest.mark.parametrize(
        "now",
        [[], [replace(OLD, protect=("a",))], [replace(OLD, name="other"), replace(OLD, grace=timedelta(0))]],
    )
    def test_a_plan_whose_policy_was_changed_or_removed_since_is_refused(self, cleaner, ledger, now):
        # Given a plan, when its policy is no longer there as it was, then the plan is refused.
        plan = cleaner.plan(OLD)
        with pytest.raises(errors.PlanRefused, match="policy old is not in the policies file as it was"):
            applied(cleaner, plan, policies=now)
        assert ledger.redis.keys(ledger.keys.deletion("*")) == []
        # With the policy as it was, others beside it, or if nobody can tell, it is applied.
        assert len(applied(cleaner, get_plan(ledger, plan.id), policies=[replace(OLD, name="other"), OLD])) == 2
        assert len(applied(cleaner, plan)) == 2

    def test_a_plan_of_before_policies_were_noted_is_refused(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        key = ledger.keys.plan(plan.id)
        summary = json.loads(ledger.redis.hget(key, "summary"))
        del summary["policy_digest"]
        ledger.redis.hset(key, "summary", json.dumps(summary))
        with pytest.raises(errors.PlanRefused, match="as it was when"):
            applied(cleaner, get_plan(ledger, plan.id), policies=[OLD])

    def test_a_plan_of_nothing_is_applied_and_does_nothing(self, cleaner):
        assert applied(cleaner, cleaner.plan(replace(OLD, match=("zzz",)))) == []


@pytest.mark.parametrize(
    ("schedule", "window"),
    [
        ("0 3 * * *", "2026-11-25T03:00:00+00:00"),
        ("30 4 * * *", "2026-11-24T04:30:00+00:00"),
        ("0 4 * * *", "2026-11-25T04:00:00+00:00"),
        ("0 0 1 * *", "2026-11-01T00:00:00+00:00"),
        ("0 0 * * mon", "2026-11-23T00:00:00+00:00"),
    ],
)
def test_the_last_window_is_at_or_before_now_in_utc(schedule, window):
    now = datetime(2026, 11, 25, 4, 0, 0, 123, tzinfo=UTC)
    assert last_window(schedule, now).isoformat() == window


class TestTick:
    DAILY = replace(OLD, schedule="0 3 * * *")

    def next_window(self, clocked, **more):
        """The ledger's clock moved on to just after 3 o'clock."""
        now = clocked.now
        three = now.replace(hour=3, minute=0, second=1, microsecond=0)
        return clocked.after(seconds=(three - now).total_seconds() + (86_400 if three <= now else 0), **more)

    def never_ran(self, ledger, policy):
        """Its last run was due in 1970."""
        ledger.redis.hset(
            ledger.keys.policy_runs, policy.name, schedule.noted(policy, datetime.fromtimestamp(0, UTC))
        )

    def test_a_new_policy_waits_for_its_time(self, ledger, api, clocked):
        for _ in range(3):
            tick(ledger, api, [self.DAILY])
        assert list_plans(ledger) == []
        assert int(ledger.redis.get(ledger.keys.tick)) == clocked.at_ms
        tick(self.next_window(clocked), api, [self.DAILY])
        assert len(list_plans(ledger)) == 1

    def test_two_beats_or_a_restart_run_a_window_once(self, ledger, api, clocked):
        tick(ledger, api, [self.DAILY])
        due = self.next_window(clocked)
        for _ in range(4):
            tick(due, api, [self.DAILY])
        assert len(list_plans(ledger)) == 1
        # Missed for days, it runs once, late.
        late = self.next_window(clocked, days=5)
        for _ in range(3):
            tick(late, api, [self.DAILY])
        assert len(list_plans(ledger)) == 2

    @pytest.mark.parametrize(
        "before", [{"schedule": "0 23 * * *"}, {"protect": ("a",)}, {"keep_newest": 9}, {"mode": "plan"}]
    )
    def test_a_policy_that_reads_otherwise_than_before_waits_for_its_next_time(self, ledger, api, clocked, before):
        # Given a policy that was seen, and a tick after its time
        edited = replace(self.DAILY, mode="apply")
        tick(ledger, api, [replace(edited, **before)])
        due = self.next_window(clocked, hours=9)
        # When it reads otherwise then, because it was edited, or because its file is only half written,
        with capture_logs() as logs:
            for _ in range(3):
                tick(due, api, [edited])
        # Then nothing runs
        assert list_plans(ledger) == []
        assert [line["event"] for line in logs] == ["cleanup.policy_changed"]
        # And its first run is the next one.
        tick(self.next_window(clocked), api, [edited])
        assert [plan.applied_at is not None for plan in list_plans(ledger)] == [True]

    @pytest.mark.parametrize(
        "meanwhile",
        [
            [], [replace(OLD, name="other", schedule="0 4 * * *")], [replace(OLD, schedule=None)],
            errors.InvalidRequest("not TOML"),
        ],
    )  # fmt: skip
    def test_a_policy_that_was_out_of_the_file_waits_for_its_time_again(self, ledger, api, clocked, meanwhile):
        # Given a policy that applies its plans, and a file at its time that is without it, or cannot be read
        policy = replace(self.DAILY, mode="apply")
        tick(ledger, api, [policy])
        due = self.next_window(clocked)
        tick(due, api, meanwhile)
        # When it is put back unchanged
        for _ in range(3):
            tick(due, api, [policy])
        # Then the run that it missed is not made up for
        assert list_plans(ledger) == []
        # And its first run is the next one.
        tick(self.next_window(clocked), api, [policy])
        assert [plan.applied_at is not None for plan in list_plans(ledger)] == [True]

    def test_a_worker_without_a_policies_file_takes_no_policy_away(self, ledger, api, clocked):
        tick(ledger, api, [self.DAILY])
        due = self.next_window(clocked)
        # Given a tick that a worker without the file gets
        cleaner_of(due, api).tick(None)
        assert int(ledger.redis.get(ledger.keys.tick)) == clocked.at_ms, "beat is heard of"
        # When one with it gets the next, then the run that is due is made.
        tick(due, api, [self.DAILY])
        assert len(list_plans(ledger)) == 1

    def test_a_tick_while_the_clock_is_ahead_does_not_end_the_runs_until_then(self, ledger, api, clocked):
        # Given a tick while Redis's clock is a month ahead
        tick(clocked.after(days=30), api, [self.DAILY])
        clocked.after(days=-30)
        # When it is right again, then the next run is made, and the month is not made up for.
        with capture_logs() as logs:
            tick(ledger, api, [self.DAILY])
        assert [line["event"] for line in logs] == ["cleanup.clock_stepped"]
        for _ in range(2):
            tick(self.next_window(clocked), api, [self.DAILY])
        assert len(list_plans(ledger)) == 2

    @pytest.mark.parametrize(
        "now",
        [[], [replace(OLD, schedule="0 3 * * *", mode="apply", protect=("a",))], errors.InvalidRequest("no")],
    )
    def test_what_the_file_says_when_the_survey_has_ended_decides_whether_a_plan_is_applied(
        self, ledger, api, clocked, monkeypatch, now
    ):
        # Given a policy that is taken out, edited or spoilt while its survey is under way
        policy = replace(self.DAILY, mode="apply")
        tick(ledger, api, [policy])
        says, listed = [[policy]], BflReader.my_finetunes

        def list_and_change(reader):
            says.append(now)
            return listed(reader)

        monkeypatch.setattr(BflReader, "my_finetunes", list_and_change)
        # When the plan is made, then it is not applied.
        cleaner_of(self.next_window(clocked), api).tick(lambda: said(says[-1]))
        assert [plan.applied_at for plan in list_plans(ledger)] == [None]
        assert ledger.redis.zcard(ledger.keys.wait("default")) == 0

    def test_one_tick_at_a_time_surveys_in_a_process(self, ledger, api, clocked, monkeypatch):
        # Given two policies that are due, and a tick of the same process in the midst of each survey
        both = [replace(self.DAILY, name="first"), replace(self.DAILY, name="second")]
        tick(ledger, api, both)
        due, under_way, listed = self.next_window(clocked), [], BflReader.my_finetunes
        cleaner = cleaner_of(due, api)

        def list_and_tick(reader):
            under_way.append(reader)
            assert len(under_way) == 1, "it surveys beside the other"
            cleaner.tick(lambda: both)
            found = listed(reader)
            under_way.pop()
            return found

        monkeypatch.setattr(BflReader, "my_finetunes", list_and_tick)
        # When the first tick ends, then it has made both.
        cleaner.tick(lambda: both)
        assert sorted(plan.policy for plan in list_plans(ledger)) == ["first", "second"]

    def test_a_run_that_another_worker_is_making_is_left_to_it(self, ledger, api, clocked, monkeypatch):
        tick(ledger, api, [self.DAILY])
        due = self.next_window(clocked)
        # Given a run, in the middle of which a second worker ticks
        lists, listed = [], BflReader.my_finetunes

        def list_and_tick(reader):
            lists.append(reader)
            if len(lists) == 1:
                tick(due, api, [self.DAILY])
            return listed(reader)

        monkeypatch.setattr(BflReader, "my_finetunes", list_and_tick)
        tick(due, api, [self.DAILY])
        # Then only one of them has surveyed the account
        assert len(lists) == 1

    def test_plan_mode_asks_for_nothing_and_apply_mode_for_the_plan(self, ledger, api, clocked):
        both = [self.DAILY, replace(self.DAILY, name="apply", mode="apply")]
        tick(ledger, api, both)
        tick(self.next_window(clocked), api, both)
        plans = {plan.policy: plan for plan in list_plans(ledger)}
        assert (plans["old"].applied_at, plans["apply"].applied_at is not None) == (None, True)
        assert ledger.redis.zcard(ledger.keys.wait("default")) == 2

    def test_a_blocked_plan_is_kept_and_not_applied(self, ledger, api, clocked):
        policy = replace(self.DAILY, mode="apply", max_deletions=1)
        tick(ledger, api, [policy])
        with capture_logs() as logs:
            tick(self.next_window(clocked), api, [policy])
        (plan,) = list_plans(ledger)
        assert plan.blocked
        (line,) = [line for line in logs if line["event"] == "cleanup.planned"]
        assert (line["log_level"], line["blocked"]) == ("warning", plan.blocked)
        assert ledger.redis.zcard(ledger.keys.wait("default")) == 0

    def test_a_run_whose_plan_is_refused_is_not_made_each_minute(self, ledger, api, clocked, monkeypatch):
        # Given a run whose plan is beyond its caps by the time it is applied, since somebody asked for others
        policy, make = replace(self.DAILY, mode="apply"), schedule.make_plan

        def make_and_ask(*given):
            plan = make(*given)
            accept(ledger, *[asking(name, delay=DAY) for name in "cdef"])
            return plan

        tick(ledger, api, [policy])
        due = self.next_window(clocked)
        monkeypatch.setattr(schedule, "make_plan", make_and_ask)
        with capture_logs() as logs:
            for _ in range(3):
                tick(due, api, [policy])
        # Then nothing of it is asked for, and that is told once.
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["cleanup.refused"]
        assert [plan.applied_at for plan in list_plans(ledger)] == [None]

    def test_a_run_that_failed_is_made_up_for_and_the_others_run(self, ledger, api, clocked):
        both = [replace(self.DAILY, name="first"), replace(self.DAILY, name="second")]
        tick(ledger, api, both)
        due = self.next_window(clocked)
        api.fault("status", call="my_finetunes", status=500)
        tick(due, api, both)
        assert [plan.policy for plan in list_plans(ledger)] == ["second"]
        tick(due, api, both)
        assert sorted(plan.policy for plan in list_plans(ledger)) == ["first", "second"]

    def test_a_fault_of_ours_in_one_run_does_not_end_the_others(self, ledger, api, clocked, monkeypatch):
        both = [replace(self.DAILY, name="first"), replace(self.DAILY, name="second")]
        tick(ledger, api, both)
        make = schedule.make_plan

        def fail_first(policy, *more):
            if policy.name == "first":
                raise KeyError("a row that nobody foresaw")
            return make(policy, *more)

        monkeypatch.setattr(schedule, "make_plan", fail_first)
        with capture_logs() as logs:
            tick(self.next_window(clocked), api, both)
        failed = [(line["policy"], line.get("exc_info")) for line in logs if line["event"] == "cleanup.failed"]
        assert failed == [("first", True)]
        assert [plan.policy for plan in list_plans(ledger)] == ["second"]

    def test_a_run_that_a_crash_cut_off_is_the_same_plan_again(self, ledger, api, clocked, monkeypatch):
        policy = replace(self.DAILY, mode="apply")
        tick(ledger, api, [policy])
        due = self.next_window(clocked)
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "apply_plan", crash)
            with pytest.raises(KeyboardInterrupt):
                tick(due, api, [policy])
        (stored,) = list_plans(ledger)
        tick(due, api, [policy])
        assert [(plan.id, plan.applied_at is not None) for plan in list_plans(ledger)] == [(stored.id, True)]

    def test_a_run_that_a_crash_cut_off_for_days_ends_and_is_not_started_again_each_minute(
        self, ledger, api, clocked, monkeypatch
    ):
        policy = replace(self.DAILY, schedule="0 0 1 1 *", mode="apply")
        self.never_ran(ledger, policy)
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "apply_plan", crash)
            with pytest.raises(KeyboardInterrupt):
                tick(ledger, api, [policy])
        late = clocked.after(hours=30)
        for _ in range(2):
            tick(late, api, [policy])
        lists = [call for call in api.journal() if call["call"] == "my_finetunes"]
        assert len(lists) == 2, "once before the crash and once after it"

    def test_a_policy_that_was_edited_after_a_crash_does_not_run_its_old_plan(
        self, ledger, api, clocked, monkeypatch
    ):
        policy = replace(self.DAILY, mode="apply")
        self.never_ran(ledger, policy)
        with monkeypatch.context() as patch:
            patch.setattr(schedule, "apply_plan", crash)
            with pytest.raises(KeyboardInterrupt):
                tick(ledger, api, [policy])
        tick(ledger, api, [replace(policy, protect=("a",))])
        assert ledger.redis.zcard(ledger.keys.wait("default")) == 0

    def test_a_policy_whose_account_has_no_key_here_is_left_to_others_and_overdue_until_then(
        self, ledger, api, clocked
    ):
        # Given a policy of an account whose key no worker that ticks has, and its time
        policy = replace(self.DAILY, account="other")
        tick(ledger, api, [policy])
        due = self.next_window(clocked)
        tick(due, api, [policy])
        # Then nobody has run it, and that is seen
        (one,) = scheduled_policies(due)
        assert (list_plans(due), one.account, one.overdue(clocked.now)) == ([], "other", timedelta(seconds=1))
        # And when one has the key, it is run.
        due.maintain("other", 8)
        replace(cleaner_of(due, api), readers={"other": BflReader(api.url, KEY)}).tick(lambda: [policy])
        (one,) = scheduled_policies(due)
        assert (len(list_plans(due)), one.overdue(clocked.now)) == (1, timedelta(0))


def crash(*_, **__):
    raise KeyboardInterrupt


def test_use_is_not_forgotten_if_a_list_lacks_a_finetune_for_once(ledger, api, clocked):
    # Given one used twenty days ago, and a list that lacked it since
    touch(ledger, "default", ["a"])
    cleaner_of(ledger, api).plan(OLD)
    began = ago(days=45)
    for _ in range(20):
        touch(clocked.after(days=1), "default", ["f"])
    api.remove("a")
    cleaner_of(clocked(), api).plan(OLD)
    api.create("a", timestamp=began)
    # When it is there again
    plan = cleaner_of(clocked(), api).plan(replace(OLD, unused_for=15 * DAY))
    # Then its use counts: within thirty days it was used.
    assert load(clocked(), "default").used.keys() >= {"a"}
    assert {item.finetune_id: item.last_used for item in plan.items}["a"] is not None


@pytest.mark.parametrize("odd", ["with a space", "x" * 256, "tab\there"])
def test_an_id_that_cannot_be_asked_for_is_kept_and_the_others_go(cleaner, api, odd):
    api.create(odd, timestamp=ago(days=45))
    plan = cleaner.plan(OLD)
    assert proposed(plan) == ["a", "b"]
    assert len(applied(cleaner, plan)) == 2


def test_a_list_with_what_is_no_text_at_all_blocks_the_plan(cleaner, api):
    api.create("\ud800", timestamp=ago(days=45))
    assert "shape that is not known" in cleaner.plan(OLD).blocked


def test_one_whose_details_are_refused_is_kept_and_a_refused_key_makes_no_plan(cleaner, ledger, api):
    api.fault("status", call="finetune_details", finetune_id="a", status=403, times=None)
    plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "which finetune it is could not be read")
    api.create("z", timestamp=ago(days=45))
    api.fault("status", call="finetune_details", finetune_id="z", status=403, times=None)
    api.fault("status", call="my_finetunes", status=403, times=1, skip=1)
    with pytest.raises(api_errors.KeyRefused):
        cleaner.plan(OLD)


def test_a_survey_ends_with_its_process(ledger, api):
    def stop(seconds):
        raise Stopping("the worker is stopping")

    with pytest.raises(Stopping):
        replace(cleaner_of(ledger, api), sleep=stop).plan(OLD)
    assert api.journal() == []


def test_what_became_of_a_withdrawn_cleanup_is_told_as_it_is(cleaner, ledger, clocked):
    # Given two that are used while their calls are under way
    plan = cleaner.plan(replace(OLD, grace=timedelta(0), max_deletions=2))
    applied(cleaner, plan)
    ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
    claimed, other = claim_all(ledger)
    assert [mark(ledger, one) for one in (claimed, other)] == ["go", "go"]
    touch(ledger, "default", ["a", "b"])
    under_way = {one.kept for one in applied(cleaner, plan)}
    assert under_way == {"if the call under way has not deleted it; an observation will show"}
    # When one of the calls has deleted and the other has not
    finish(ledger, claimed, "deleted", attempt=1)
    finish(ledger, other, "cancelled", attempt=1)
    kept = {one.deletion.state: one.kept for one in applied(cleaner, plan)}
    assert kept == {State.DELETED: None, State.CANCELLED: "as the test says"}


def test_a_plan_that_was_withdrawn_asks_for_nothing_more(cleaner, ledger, api, monkeypatch):
    # Given a plan whose apply writes one deletion at a time, and a person who says no after the first one,
    monkeypatch.setattr(plans, "BATCH", 1)
    plan = cleaner.plan(OLD, UUID)
    accept = ledger.accept

    def accept_then_no(*given, **more):
        answer = accept(*given, **more)
        plans.withdraw(ledger, plan, Act("ana", "command", "wrong policy"))
        return answer

    monkeypatch.setattr(ledger, "accept", accept_then_no)
    with pytest.raises(errors.PlanRefused, match="withdrawn by ana: wrong policy"):
        apply_plan(ledger, cleaner.intake, plan, Act("ben", "command"))
    # when it is applied again, or its schedule takes it up again, then nothing more is asked for.
    with pytest.raises(errors.PlanRefused):
        apply_plan(ledger, cleaner.intake, get_plan(ledger, UUID), Act("ben", "command"))
    assert cleaner.plan(OLD, UUID).blocked == "withdrawn by ana: wrong policy"
    assert len(list_deletions(ledger, Filter()).deletions) == 1
    # The log says who withdrew it.
    acts = [entry for _, entry in audit.read(ledger, audit.Wanted(act="withdraw")) if entry]
    assert [(one.who, one.ids, one.why) for one in acts] == [("ana", (UUID,), "wrong policy")]
