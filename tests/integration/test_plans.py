"""Surveys and plans against a real API: what is read, what is proposed, and what stops a plan."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks import errors
from tasks.bfl import BflReader
from tasks.gate import HandBack
from tasks.intake import Intake
from tasks.inventory import load, protect, touch
from tasks.plans import get_plan, list_plans
from tasks.policies import Policy
from tasks.queries import get
from tasks.records import State
from tasks.schedule import Cleaner, last_window
from tests.conftest import asking, outcome
from worker.sandbox import Sandbox

DAY = timedelta(days=1)
OLD = Policy("old", older_than=30 * DAY, max_percent=100)
KEY = "sandbox-key"


def ago(**duration):
    return (datetime.now(UTC) - timedelta(**duration)).isoformat()


@pytest.fixture
def api():
    """Two stale finetunes and four that are not."""
    with Sandbox(latency_seconds=0) as sandbox:
        for name, days in {"a": 45, "b": 31, "c": 29, "d": 3, "e": 2, "f": 1}.items():
            sandbox.create(name, timestamp=ago(days=days))
        yield sandbox


def no_sleep(seconds):
    """Retries at once."""


@pytest.fixture
def cleaner(ledger, api):
    return cleaner_of(ledger, api)


def cleaner_of(ledger, api, budget=timedelta(seconds=0)):
    intake = Intake(ledger, lambda wakeup: None)
    return Cleaner(ledger, intake, {"default": BflReader(api.url, KEY)}, 8, budget, no_sleep)


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
    assert list_plans(ledger) == [replace(plan, items=())]
    assert api.deletes() == []
    assert {call["call"] for call in api.journal()} == {"my_finetunes", "finetune_details"}


def test_details_are_read_once_and_again_only_of_what_would_be_deleted(cleaner, api):
    cleaner.plan(OLD)
    assert sorted(reads(api)) == ["a", "b", "c", "d", "e", "f"], "each once, on first sight"
    before = len(reads(api))
    cleaner.plan(OLD)
    assert sorted(reads(api)[before:]) == ["a", "b"]


def test_a_name_reborn_starts_anew_even_where_the_inventory_still_knows_the_old_one(cleaner, ledger, api):
    cleaner.plan(OLD)
    api.create("a", timestamp=ago(days=2))
    plan = cleaner.plan(OLD)
    assert proposed(plan) == ["b"]
    assert plan.items[0].reason == "not older than 30 days (2)"


def test_without_a_timestamp_age_counts_from_when_it_was_first_seen(ledger, api, clocked):
    api.create("g", timestamp=None)
    assert "g" not in proposed(cleaner_of(ledger, api).plan(OLD))
    later = cleaner_of(clocked.after(days=31), api).plan(replace(OLD, match=("g",)))
    assert proposed(later) == ["g"]
    # Gone from the list in between, it is another one.
    api.remove("g")
    cleaner_of(clocked(), api).plan(OLD)
    api.create("g", timestamp=None)
    assert proposed(cleaner_of(clocked(), api).plan(replace(OLD, match=("g",)))) == []


UNSOUND = {
    "2026-01-01T00:00:00": "its age is not known: its timestamp is without an offset",
    "yesterday": "its age is not known: its timestamp is not readable",
    7: "its age is not known: its timestamp is not readable",
    "0001-01-01T00:00:00Z": "its age is not known: its timestamp is older than finetunes are",
    "1970-01-01T00:00:00Z": "its age is not known: its timestamp is older than finetunes are",
    "9999-01-01T00:00:00Z": "its age is not known: its timestamp is in the future",
    "0001-01-01T00:00:00+14:00": "its age is not known: its timestamp is not readable",
}


@pytest.mark.parametrize("timestamp", UNSOUND)
def test_a_timestamp_that_is_not_sound_keeps_it_with_that_as_the_reason(cleaner, api, timestamp):
    api.create("x", timestamp=timestamp)
    (item,) = [item for item in cleaner.plan(OLD).items if item.finetune_id == "x"]
    assert (item.action, item.reason) == ("keep", UNSOUND[timestamp])


def test_what_cannot_be_read_is_kept(cleaner, api):
    api.fault("status", call="finetune_details", finetune_id="a", status=404, body={"detail": "no"}, times=None)
    plan = cleaner.plan(OLD)
    assert (proposed(plan), plan.items[0].reason) == (["b"], "which finetune it is could not be read")


FAILURES = {
    "a list that does not answer": ({"kind": "status", "call": "my_finetunes", "status": 500}, errors.Unclear),
    "a list that throttles": ({"kind": "status", "call": "my_finetunes", "status": 429}, errors.Throttled),
    "details that break midway": ({"kind": "reset", "call": "finetune_details", "skip": 3}, errors.Unclear),
    "a refused key": ({"kind": "status", "call": "my_finetunes", "status": 403}, errors.KeyRefused),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_an_api_that_fails_midway_makes_no_plan(cleaner, ledger, api, failure):
    fault, error = FAILURES[failure]
    api.fault(**fault, times=None)
    with pytest.raises(error):
        cleaner.plan(OLD)
    assert list_plans(ledger) == []
    assert ledger.redis.zcard("janitor:permits:default") == 0, "no permit is left taken"


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
    assert (reshaped.blocked, reshaped.items) == ("my_finetunes answered in a shape that is not known", ())
    shrink(api)
    shrunk = cleaner.plan(replace(OLD, max_percent=100))
    assert shrunk.blocked == "the list has shrunk from 6 to 2 since the last look, and not by our deletions"
    assert cleaner.plan(OLD).blocked == shrunk.blocked, "asking again does not make it true"
    # It is believed once it has stayed so for a day.
    assert cleaner_of(clocked.after(days=1, minutes=1), api).plan(OLD).blocked is None
    for name in "ae":
        api.remove(name)
    assert cleaner_of(clocked(), api).plan(OLD).blocked == "the list is empty: is this the right account?"


def test_what_we_deleted_ourselves_is_no_shrinkage(cleaner, ledger, api):
    cleaner.plan(OLD)
    for name in "bcdf":
        ledger.accept([asking(name)])
        (claimed,), _ = ledger.claim("default", "w", 1)
        ledger.conclude([outcome(claimed, "deleted", evidence="response")])
    shrink(api)
    assert cleaner.plan(OLD).blocked is None


def test_a_list_wholly_stale_blocks_the_plan(cleaner, api):
    for name in "cdef":
        api.remove(name)
    assert cleaner.plan(OLD).blocked == "all 2 finetunes would be deleted"


class TestApply:
    def test_it_asks_for_just_the_plan_each_guarded_after_its_grace(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        applied = cleaner.apply(plan, "somebody")
        assert [(one.deletion.finetune_id, one.created, one.kept) for one in applied] == [
            ("a", True, None),
            ("b", True, None),
        ]
        deletion, request = applied[0].deletion, applied[0].deletion.requests[0]
        assert (deletion.state, deletion.fingerprint) == (State.SCHEDULED, plan.items[0].fingerprint)
        assert abs(deletion.due_at - deletion.created_at - OLD.grace) < timedelta(seconds=1)
        assert (request.source, request.requested_by) == (f"cleanup:{plan.id}", "somebody")
        assert request.reason == f"old: {plan.items[0].reason}"
        assert get_plan(ledger, plan.id).applied_at is not None

    def test_twice_applied_is_once_applied_and_what_was_cancelled_stays_so(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        first = cleaner.apply(plan)
        ledger.cancel([first[0].deletion.id])
        again = cleaner.apply(plan)
        assert [one.created for one in again] == [False, False]
        assert [one.deletion.id for one in again] == [one.deletion.id for one in first]
        assert get(ledger, first[0].deletion.id).state is State.CANCELLED

    def test_what_was_used_or_protected_since_is_kept_and_said_so(self, cleaner, ledger):
        plan = cleaner.plan(OLD)
        touch(ledger, "default", ["a"])
        protect(ledger, "default", ["b"])
        assert [one.kept for one in cleaner.apply(plan)] == [
            "kept: it was used after the plan was made",
            "kept: it is protected",
        ]

    def test_what_was_reborn_since_is_kept(self, cleaner, api):
        plan = cleaner.plan(OLD)
        api.create("a", timestamp=ago(days=40))
        cleaner.plan(OLD)
        kept = [one.kept for one in cleaner.apply(plan)]
        assert kept == ["kept: the name belongs to another finetune now", None]

    def test_one_that_somebody_asked_for_already_is_joined_and_its_cleanup_withdrawn_alone(self, cleaner, ledger):
        ledger.accept([asking("a", id="r1", delay=3 * DAY)])
        plan = cleaner.plan(OLD)
        (joined, _) = cleaner.apply(plan)
        assert (joined.created, joined.deletion.id) == (False, "r1")
        touch(ledger, "default", ["a"])
        assert cleaner.apply(plan)[0].kept == "kept from the cleanup; another request goes on"
        assert get(ledger, "r1").state is State.SCHEDULED

    def test_a_blocked_plan_and_an_old_one_are_refused(self, cleaner, ledger, api, clocked):
        blocked = cleaner.plan(replace(OLD, max_deletions=1))
        assert blocked.blocked == "2 would be deleted, and max_deletions is 1"
        with pytest.raises(errors.PlanRefused, match="is blocked, nothing was written: 2 would be"):
            cleaner.apply(blocked)
        plan = cleaner.plan(OLD)
        late = cleaner_of(clocked.after(hours=25), api)
        with pytest.raises(errors.PlanRefused, match="is 1d1h old, and the limit is 1d: `janitor cleanup plan"):
            late.apply(plan)
        assert ledger.redis.keys("janitor:d:*") == []

    def test_a_plan_of_nothing_is_applied_and_does_nothing(self, cleaner):
        assert cleaner.apply(cleaner.plan(replace(OLD, match=("zzz",)))) == []


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
        now = datetime.fromtimestamp(clocked().now_ms() / 1000, UTC)
        three = now.replace(hour=3, minute=0, second=1, microsecond=0)
        return clocked.after(seconds=(three - now).total_seconds() + (86_400 if three <= now else 0), **more)

    def test_a_new_policy_waits_for_its_time(self, ledger, api, clocked):
        for _ in range(3):
            cleaner_of(ledger, api).tick([self.DAILY])
        assert list_plans(ledger) == []
        assert int(ledger.redis.get("janitor:tick")) > 0
        cleaner_of(self.next_window(clocked), api).tick([self.DAILY])
        assert len(list_plans(ledger)) == 1

    def test_two_beats_a_restart_and_a_lost_file_run_a_window_once(self, ledger, api, clocked):
        cleaner_of(ledger, api).tick([self.DAILY])
        due = self.next_window(clocked)
        for _ in range(4):
            cleaner_of(due, api).tick([self.DAILY])
        assert len(list_plans(ledger)) == 1
        # Missed for days, it runs once, late.
        late = self.next_window(clocked, days=5)
        for _ in range(3):
            cleaner_of(late, api).tick([self.DAILY])
        assert len(list_plans(ledger)) == 2

    def test_plan_mode_asks_for_nothing_and_apply_mode_for_the_plan(self, ledger, api, clocked):
        both = [self.DAILY, replace(self.DAILY, name="apply", mode="apply")]
        cleaner_of(ledger, api).tick(both)
        cleaner_of(self.next_window(clocked), api).tick(both)
        plans = {plan.policy: plan for plan in list_plans(ledger)}
        assert (plans["old"].applied_at, plans["apply"].applied_at is not None) == (None, True)
        assert ledger.redis.zcard("janitor:wait:default") == 2

    def test_a_blocked_plan_is_kept_and_not_applied(self, ledger, api, clocked):
        policy = replace(self.DAILY, mode="apply", max_deletions=1)
        cleaner_of(ledger, api).tick([policy])
        cleaner_of(self.next_window(clocked), api).tick([policy])
        (plan,) = list_plans(ledger)
        assert plan.blocked
        assert ledger.redis.zcard("janitor:wait:default") == 0

    def test_a_run_that_failed_is_made_up_for_and_the_others_run(self, ledger, api, clocked):
        both = [replace(self.DAILY, name="first"), replace(self.DAILY, name="second")]
        cleaner_of(ledger, api).tick(both)
        due = self.next_window(clocked)
        api.fault("status", call="my_finetunes", status=500)
        cleaner_of(due, api).tick(both)
        assert [plan.policy for plan in list_plans(ledger)] == ["second"]
        cleaner_of(due, api).tick(both)
        assert sorted(plan.policy for plan in list_plans(ledger)) == ["first", "second"]

    def test_a_run_that_a_crash_cut_off_is_the_same_plan_again(self, ledger, api, clocked, monkeypatch):
        policy = replace(self.DAILY, mode="apply")
        cleaner_of(ledger, api).tick([policy])
        due = self.next_window(clocked)
        with monkeypatch.context() as patch:
            patch.setattr(Cleaner, "apply", crash)
            with pytest.raises(KeyboardInterrupt):
                cleaner_of(due, api).tick([policy])
        (stored,) = list_plans(ledger)
        cleaner_of(due, api).tick([policy])
        assert [(plan.id, plan.applied_at is not None) for plan in list_plans(ledger)] == [(stored.id, True)]

    def test_a_run_that_a_crash_cut_off_for_days_ends_and_is_not_begun_again_each_minute(
        self, ledger, api, clocked, monkeypatch
    ):
        policy = replace(self.DAILY, schedule="0 0 1 1 *", mode="apply")
        ledger.redis.hset("janitor:policy-runs", "old", 0)
        with monkeypatch.context() as patch:
            patch.setattr(Cleaner, "apply", crash)
            with pytest.raises(KeyboardInterrupt):
                cleaner_of(ledger, api).tick([policy])
        ledger.redis.delete("janitor:policy-lease:old")
        late = clocked.after(hours=30)
        for _ in range(2):
            cleaner_of(late, api).tick([policy])
        lists = [call for call in api.journal() if call["call"] == "my_finetunes"]
        assert len(lists) == 2, "once before the crash and once after it"

    def test_a_policy_that_was_edited_after_a_crash_does_not_run_its_old_plan(
        self, ledger, api, clocked, monkeypatch
    ):
        policy = replace(self.DAILY, mode="apply")
        ledger.redis.hset("janitor:policy-runs", "old", 0)
        with monkeypatch.context() as patch:
            patch.setattr(Cleaner, "apply", crash)
            with pytest.raises(KeyboardInterrupt):
                cleaner_of(ledger, api).tick([policy])
        cleaner_of(ledger, api).tick([replace(policy, protect=("a",))])
        assert list(ledger.redis.hgetall("janitor:open:default")) == ["b"]

    def test_a_policy_whose_account_has_no_key_here_is_left_to_others(self, ledger, api, clocked):
        policy = replace(self.DAILY, account="other")
        cleaner_of(ledger, api).tick([policy])
        assert ledger.redis.hgetall("janitor:policy-runs") == {}


def crash(*_, **__):
    raise KeyboardInterrupt


def test_use_older_than_the_finetune_is_another_ones(cleaner, ledger, api, clocked):
    touch(ledger, "default", ["a"])
    later = clocked.after(days=2)
    api.create("a", timestamp=(datetime.now(UTC) + timedelta(days=1)).isoformat())
    cleaner_of(later, api).plan(OLD)
    (found,) = [one for one in load(later, "default").finetunes() if one.id == "a"]
    assert found.last_used is None


def test_use_is_not_forgotten_where_a_list_lacks_a_finetune_for_once(ledger, api, clocked):
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
    assert len(cleaner.apply(plan)) == 2


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
    with pytest.raises(errors.KeyRefused):
        cleaner.plan(OLD)


def test_a_survey_ends_with_its_process(ledger, api):
    def stop(seconds):
        raise HandBack("the worker is stopping")

    with pytest.raises(HandBack):
        replace(cleaner_of(ledger, api), sleep=stop).plan(OLD)
    assert api.journal() == []


def test_what_became_of_a_withdrawn_cleanup_is_told_as_it_is(cleaner, ledger):
    # Given one that is used while its call is under way
    plan = cleaner.plan(replace(OLD, grace=timedelta(0), max_deletions=2))
    cleaner.apply(plan)
    claimed, other = ledger.claim("default", "w", 10, looks_first=True)[0]
    ledger.check([claimed, other], mark=True)
    touch(ledger, "default", ["a", "b"])
    under_way = {one.kept for one in cleaner.apply(plan)}
    assert under_way == {"if the call under way has not deleted it; a look will show"}
    ledger.conclude([outcome(claimed, "deleted", evidence="response"), outcome(other, "cancelled")])
    kept = {one.deletion.state: one.kept for one in cleaner.apply(plan)}
    assert kept == {State.DELETED: None, State.CANCELLED: "as the test says"}
