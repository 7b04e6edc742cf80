"""Plans of a real API's finetunes: what is proposed, and what blocks a plan."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks import errors
from tasks.api.client import BflReader
from tasks.cleanup.inventory import load, protect, touch, unknown_among
from tasks.cleanup.plans import get_plan, list_plans
from tasks.ledger.holds import hold
from tasks.ledger.types import Act
from tasks.records import to_ms
from tests.conftest import accept, asking, carry_out_one, claim_all, finish
from tests.integration.cleaning import (
    DAY,
    HOUR,
    MIXED,
    OLD,
    TESTS,
    UUID,
    ago,
    applied,
    cleaner_of,
    proposed,
    reads,
)  # fmt: skip

pytestmark = pytest.mark.usefixtures("same_time")


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


READ = {
    "hash": lambda client, key: client.hgetall(key),
    "list": lambda client, key: client.lrange(key, 0, -1),
    "set": lambda client, key: client.smembers(key),
    "string": lambda client, key: client.get(key),
    "zset": lambda client, key: client.zrange(key, 0, -1),
}


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
    deletions = [one.deletion.id for one in applied(cleaner, plan)]
    stored = str([READ[redis_client.type(key)](redis_client, key) for key in redis_client.scan_iter()])
    assert ("matches by comment" in stored, "Miller" in stored) == (True, False)
    # A comment that was changed since counts.
    ledger.cancel(deletions, Act("ana", "command"))
    api.create("c", timestamp=ago(days=29, minutes=1), finetune_comment="for a fair")
    again = cleaner.plan(TESTS)
    assert (proposed(again), again.items[2].reason) == (["d"], "its comment does not match")


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
        with pytest.raises(errors.LedgerUnavailable, match="Redis is full"):
            applied(cleaner, plan)
    finally:
        ledger.redis.config_set("maxmemory", 0)


def test_a_list_wholly_stale_blocks_the_plan(cleaner, api):
    for name in "cdef":
        api.remove(name)
    assert cleaner.plan(OLD).blocked == "all 2 finetunes would be deleted, which no plan may: use `janitor delete`"


BY_NAME = (
    replace(OLD, name="a", match=("a",), max_percent=25),
    replace(OLD, name="b", match=("b",), max_percent=25),
)


def test_plans_of_several_policies_are_within_the_caps_together(cleaner, ledger):
    # Given two policies, each of which may delete one of six, and the plan of the first applied
    first, second = BY_NAME
    applied(cleaner, cleaner.plan(first))
    # When the second is planned, then it is blocked until the first has been carried out.
    why = "1 of 6 would be deleted, besides 1 already deleted or waiting for it, and max_percent is 25 (1)"
    assert cleaner.plan(second).blocked == why


@pytest.mark.parametrize("carried_out", [False, True])
def test_plans_that_were_made_together_are_within_the_caps_together_when_they_are_applied(
    cleaner, ledger, clocked, carried_out
):
    # Given plans of several policies, made before any was applied, and one of them applied
    first, second = [cleaner.plan(replace(policy, grace=timedelta(0))) for policy in BY_NAME]
    applied(cleaner, first)
    # and even carried out,
    if carried_out:
        ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
        finish(ledger, *claim_all(ledger), "deleted", attempt=1)
    # when the second is applied, then it is refused, and the first can still be applied again.
    with pytest.raises(errors.PlanRefused, match="1 of 6 would be deleted, besides 1 already deleted"):
        applied(cleaner, second)
    assert [one.created for one in applied(cleaner, first)] == [False]


def test_what_is_deleted_and_still_listed_counts_for_an_hour(cleaner, ledger, clocked):
    # Given two policies, each of which may delete one of six, the first carried out, and a list that lags
    first, second = [replace(policy, grace=timedelta(0)) for policy in BY_NAME]
    applied(cleaner, cleaner.plan(first))
    ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
    finish(ledger, *claim_all(ledger), "deleted", attempt=1)
    # when the second is planned, then it is blocked as long as the first counts.
    clocked.after(minutes=59)
    assert "besides 1 already deleted or waiting for it" in str(cleaner.plan(second).blocked)
    clocked.after(minutes=2)
    assert cleaner.plan(second).blocked is None


def test_use_is_not_forgotten_if_a_list_lacks_a_finetune_for_once(ledger, api, clocked):
    # Given reports of thirty days, one used twenty days ago, and a list that lacked it since
    for _ in range(10):
        touch(clocked.after(days=1), "default", ["f"])
    touch(ledger, "default", ["a"])
    used = clocked.now
    cleaner_of(ledger, api).plan(OLD)
    began = ago(days=45)
    for _ in range(20):
        touch(clocked.after(days=1), "default", ["f"])
    api.remove("a")
    cleaner_of(clocked(), api).plan(OLD)
    api.create("a", timestamp=began)
    # When it is there again, then its use counts: it is not unused for 25 days.
    plan = cleaner_of(clocked(), api).plan(replace(OLD, unused_for=25 * DAY))
    (item,) = [one for one in plan.items if one.finetune_id == "a"]
    assert (item.action, item.reason) == ("keep", f"used within 25 days, on {used:%Y-%m-%d}")


@pytest.mark.parametrize("odd", ["with a space", "x" * 256, "tab\there"])
def test_an_id_that_cannot_be_asked_for_is_kept_and_the_others_go(cleaner, api, odd):
    api.create(odd, timestamp=ago(days=45))
    plan = cleaner.plan(OLD)
    assert proposed(plan) == ["a", "b"]
    assert len(applied(cleaner, plan)) == 2


def test_a_list_with_what_is_no_text_at_all_blocks_the_plan(cleaner, api):
    api.create("\ud800", timestamp=ago(days=45))
    assert "shape that is not known" in cleaner.plan(OLD).blocked
