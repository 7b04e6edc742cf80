"""Scheduled cleanups: when a policy runs, once, and what becomes of a run that fails."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from structlog.testing import capture_logs

from tasks import errors
from tasks.api.client import BflReader
from tasks.cleanup import schedule
from tasks.cleanup.plans import list_plans
from tasks.cleanup.schedule import last_window
from tests.conftest import accept, asking
from tests.integration.cleaning import DAY, KEY, OLD, cleaner_of
from worker.doctor.policies import scheduled_policies

pytestmark = pytest.mark.usefixtures("same_time")


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


DAILY = replace(OLD, schedule="0 3 * * *")


def tick(ledger, api, policies):
    """One tick of another process, whose file has these policies, or cannot be read."""
    cleaner_of(ledger, api).tick(lambda: said(policies))


def said(policies):
    """What reading the file does."""
    if isinstance(policies, Exception):
        raise policies
    return policies


def next_window(clocked, **more):
    """The ledger's clock moved on to just after 3 o'clock."""
    now = clocked.now
    three = now.replace(hour=3, minute=0, second=1, microsecond=0)
    return clocked.after(seconds=(three - now).total_seconds() + (86_400 if three <= now else 0), **more)


def never_ran(ledger, policy):
    """Its last run was due in 1970."""
    ledger.redis.hset(ledger.keys.policy_runs, policy.name, schedule.noted(policy, datetime.fromtimestamp(0, UTC)))


def crash(*_, **__):
    raise KeyboardInterrupt


def test_a_new_policy_waits_for_its_time(ledger, api, clocked):
    for _ in range(3):
        tick(ledger, api, [DAILY])
    assert list_plans(ledger) == []
    assert int(ledger.redis.get(ledger.keys.tick)) == clocked.at_ms
    tick(next_window(clocked), api, [DAILY])
    assert len(list_plans(ledger)) == 1


def test_two_beats_or_a_restart_run_a_window_once(ledger, api, clocked):
    tick(ledger, api, [DAILY])
    due = next_window(clocked)
    for _ in range(4):
        tick(due, api, [DAILY])
    assert len(list_plans(ledger)) == 1
    # Missed for days, it runs once, late.
    late = next_window(clocked, days=5)
    for _ in range(3):
        tick(late, api, [DAILY])
    assert len(list_plans(ledger)) == 2


@pytest.mark.parametrize(
    "before", [{"schedule": "0 23 * * *"}, {"protect": ("a",)}, {"keep_newest": 9}, {"mode": "plan"}]
)
def test_a_policy_that_reads_otherwise_than_before_waits_for_its_next_time(ledger, api, clocked, before):
    # Given a policy that was seen, and a tick after its time
    edited = replace(DAILY, mode="apply")
    tick(ledger, api, [replace(edited, **before)])
    due = next_window(clocked, hours=9)
    # When it reads otherwise then, because it was edited, or because its file is only half written,
    with capture_logs() as logs:
        for _ in range(3):
            tick(due, api, [edited])
    # Then nothing runs
    assert list_plans(ledger) == []
    assert [line["event"] for line in logs] == ["cleanup.policy_changed"]
    # And its first run is the next one.
    tick(next_window(clocked), api, [edited])
    assert [plan.applied_at is not None for plan in list_plans(ledger)] == [True]


@pytest.mark.parametrize(
    "meanwhile",
    [
        [], [replace(OLD, name="other", schedule="0 4 * * *")], [replace(OLD, schedule=None)],
        errors.InvalidRequest("not TOML"),
    ],
)  # fmt: skip
def test_a_policy_that_was_out_of_the_file_waits_for_its_time_again(ledger, api, clocked, meanwhile):
    # Given a policy that applies its plans, and a file at its time that is without it, or cannot be read
    policy = replace(DAILY, mode="apply")
    tick(ledger, api, [policy])
    due = next_window(clocked)
    tick(due, api, meanwhile)
    # When it is put back unchanged
    for _ in range(3):
        tick(due, api, [policy])
    # Then the run that it missed is not made up for
    assert list_plans(ledger) == []
    # And its first run is the next one.
    tick(next_window(clocked), api, [policy])
    assert [plan.applied_at is not None for plan in list_plans(ledger)] == [True]


def test_a_worker_without_a_policies_file_takes_no_policy_away(ledger, api, clocked):
    tick(ledger, api, [DAILY])
    due = next_window(clocked)
    # Given a tick that a worker without the file gets
    cleaner_of(due, api).tick(None)
    assert int(ledger.redis.get(ledger.keys.tick)) == clocked.at_ms, "beat is heard of"
    # When one with it gets the next, then the run that is due is made.
    tick(due, api, [DAILY])
    assert len(list_plans(ledger)) == 1


def test_a_tick_while_the_clock_is_ahead_does_not_end_the_runs_until_then(ledger, api, clocked):
    # Given a tick while Redis's clock is a month ahead
    tick(clocked.after(days=30), api, [DAILY])
    clocked.after(days=-30)
    # When it is right again, then the next run is made, and the month is not made up for.
    with capture_logs() as logs:
        tick(ledger, api, [DAILY])
    assert [line["event"] for line in logs] == ["cleanup.clock_stepped"]
    for _ in range(2):
        tick(next_window(clocked), api, [DAILY])
    assert len(list_plans(ledger)) == 2


@pytest.mark.parametrize(
    "now",
    [[], [replace(OLD, schedule="0 3 * * *", mode="apply", protect=("a",))], errors.InvalidRequest("no")],
)
def test_what_the_file_says_when_the_survey_has_ended_decides_whether_a_plan_is_applied(
    ledger, api, clocked, monkeypatch, now
):
    # Given a policy that is taken out, edited or spoilt while its survey is under way
    policy = replace(DAILY, mode="apply")
    tick(ledger, api, [policy])
    says, listed = [[policy]], BflReader.my_finetunes

    def list_and_change(reader):
        says.append(now)
        return listed(reader)

    monkeypatch.setattr(BflReader, "my_finetunes", list_and_change)
    # When the plan is made, then it is not applied.
    cleaner_of(next_window(clocked), api).tick(lambda: said(says[-1]))
    assert [plan.applied_at for plan in list_plans(ledger)] == [None]
    assert ledger.redis.zcard(ledger.keys.wait("default")) == 0


def test_one_tick_at_a_time_surveys_in_a_process(ledger, api, clocked, monkeypatch):
    # Given two policies that are due, and a tick of the same process in the midst of each survey
    both = [replace(DAILY, name="first"), replace(DAILY, name="second")]
    tick(ledger, api, both)
    due, under_way, listed = next_window(clocked), [], BflReader.my_finetunes
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


def test_a_run_that_another_worker_is_making_is_left_to_it(ledger, api, clocked, monkeypatch):
    tick(ledger, api, [DAILY])
    due = next_window(clocked)
    # Given a run, in the middle of which a second worker ticks
    lists, listed = [], BflReader.my_finetunes

    def list_and_tick(reader):
        lists.append(reader)
        if len(lists) == 1:
            tick(due, api, [DAILY])
        return listed(reader)

    monkeypatch.setattr(BflReader, "my_finetunes", list_and_tick)
    tick(due, api, [DAILY])
    # Then only one of them has surveyed the account
    assert len(lists) == 1


def test_a_run_that_stood_still_does_not_undo_the_note_of_a_later_one(ledger, api, clocked, monkeypatch):
    tick(ledger, api, [DAILY])
    due, lists, listed = next_window(clocked), [], BflReader.my_finetunes

    def list_a_day_later(reader):
        lists.append(reader)
        if len(lists) == 1:  # its lease has ended, and another worker makes the next run
            due.redis.delete(due.keys.policy_lease(DAILY.name))
            tick(next_window(clocked), api, [DAILY])
        return listed(reader)

    monkeypatch.setattr(BflReader, "my_finetunes", list_a_day_later)
    tick(due, api, [DAILY])
    # Given a run that goes on after a later one, then the later one is not made again.
    tick(due, api, [DAILY])
    assert len(lists) == 2


def test_plan_mode_asks_for_nothing_and_apply_mode_for_the_plan(ledger, api, clocked):
    both = [DAILY, replace(DAILY, name="apply", mode="apply")]
    tick(ledger, api, both)
    tick(next_window(clocked), api, both)
    plans = {plan.policy: plan for plan in list_plans(ledger)}
    assert (plans["old"].applied_at, plans["apply"].applied_at is not None) == (None, True)
    assert ledger.redis.zcard(ledger.keys.wait("default")) == 2


def test_a_blocked_plan_is_kept_and_not_applied(ledger, api, clocked):
    policy = replace(DAILY, mode="apply", max_deletions=1)
    tick(ledger, api, [policy])
    with capture_logs() as logs:
        tick(next_window(clocked), api, [policy])
    (plan,) = list_plans(ledger)
    assert plan.blocked
    (line,) = [line for line in logs if line["event"] == "cleanup.planned"]
    assert (line["log_level"], line["blocked"]) == ("warning", plan.blocked)
    assert ledger.redis.zcard(ledger.keys.wait("default")) == 0


def test_a_run_whose_plan_is_refused_is_not_made_each_minute(ledger, api, clocked, monkeypatch):
    # Given a run whose plan is beyond its caps by the time it is applied, since somebody asked for others
    policy, make = replace(DAILY, mode="apply"), schedule.make_plan

    def make_and_ask(*given):
        plan = make(*given)
        accept(ledger, *[asking(name, delay=DAY) for name in "cdef"])
        return plan

    tick(ledger, api, [policy])
    due = next_window(clocked)
    monkeypatch.setattr(schedule, "make_plan", make_and_ask)
    with capture_logs() as logs:
        for _ in range(3):
            tick(due, api, [policy])
    # Then nothing of it is asked for, and that is told once.
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["cleanup.refused"]
    assert [plan.applied_at for plan in list_plans(ledger)] == [None]


def test_a_run_that_failed_is_made_up_for_and_the_others_run(ledger, api, clocked):
    both = [replace(DAILY, name="first"), replace(DAILY, name="second")]
    tick(ledger, api, both)
    due = next_window(clocked)
    api.fault("status", call="my_finetunes", status=500)
    tick(due, api, both)
    assert [plan.policy for plan in list_plans(ledger)] == ["second"]
    tick(due, api, both)
    assert sorted(plan.policy for plan in list_plans(ledger)) == ["first", "second"]


def test_a_fault_of_ours_in_one_run_does_not_end_the_others(ledger, api, clocked, monkeypatch):
    both = [replace(DAILY, name="first"), replace(DAILY, name="second")]
    tick(ledger, api, both)
    make = schedule.make_plan

    def fail_first(policy, *more):
        if policy.name == "first":
            raise KeyError("a row that nobody foresaw")
        return make(policy, *more)

    monkeypatch.setattr(schedule, "make_plan", fail_first)
    with capture_logs() as logs:
        tick(next_window(clocked), api, both)
    failed = [(line["policy"], line.get("exc_info")) for line in logs if line["event"] == "cleanup.failed"]
    assert failed == [("first", True)]
    assert [plan.policy for plan in list_plans(ledger)] == ["second"]


def test_a_run_that_a_crash_cut_off_is_the_same_plan_again(ledger, api, clocked, monkeypatch):
    policy = replace(DAILY, mode="apply")
    tick(ledger, api, [policy])
    due = next_window(clocked)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "apply_plan", crash)
        with pytest.raises(KeyboardInterrupt):
            tick(due, api, [policy])
    (stored,) = list_plans(ledger)
    tick(due, api, [policy])
    assert [(plan.id, plan.applied_at is not None) for plan in list_plans(ledger)] == [(stored.id, True)]


def test_a_run_that_a_crash_cut_off_for_days_ends_and_is_not_started_again_each_minute(
    ledger, api, clocked, monkeypatch
):
    policy = replace(DAILY, schedule="0 0 1 1 *", mode="apply")
    never_ran(ledger, policy)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "apply_plan", crash)
        with pytest.raises(KeyboardInterrupt):
            tick(ledger, api, [policy])
    late = clocked.after(hours=30)
    for _ in range(2):
        tick(late, api, [policy])
    lists = [call for call in api.journal() if call["call"] == "my_finetunes"]
    assert len(lists) == 2, "once before the crash and once after it"


def test_a_policy_that_was_edited_after_a_crash_does_not_run_its_old_plan(ledger, api, clocked, monkeypatch):
    policy = replace(DAILY, mode="apply")
    never_ran(ledger, policy)
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "apply_plan", crash)
        with pytest.raises(KeyboardInterrupt):
            tick(ledger, api, [policy])
    tick(ledger, api, [replace(policy, protect=("a",))])
    assert ledger.redis.zcard(ledger.keys.wait("default")) == 0


def test_a_policy_whose_account_has_no_key_here_is_left_to_others_and_overdue_until_then(ledger, api, clocked):
    # Given a policy of an account whose key no worker that ticks has, and its time
    policy = replace(DAILY, account="other")
    tick(ledger, api, [policy])
    due = next_window(clocked)
    tick(due, api, [policy])
    # Then nobody has run it, and that is seen
    (one,) = scheduled_policies(due)
    assert (list_plans(due), one.account, one.overdue(clocked.now)) == ([], "other", timedelta(seconds=1))
    # And when one has the key, it is run.
    due.maintain("other", 8)
    replace(cleaner_of(due, api), readers={"other": BflReader(api.url, KEY)}).tick(lambda: [policy])
    (one,) = scheduled_policies(due)
    assert (len(list_plans(due)), one.overdue(clocked.now)) == (1, timedelta(0))
