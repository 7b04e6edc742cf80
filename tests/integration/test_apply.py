"""Plans that are applied: what is asked for, what is kept, and what is refused."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest

from tasks import errors
from tasks.api.incarnations import Incarnation
from tasks.cleanup import plans
from tasks.cleanup.inventory import load, protect, touch
from tasks.cleanup.plans import apply_plan, get_plan
from tasks.ledger import audit
from tasks.ledger.queries import Filter, get, list_deletions
from tasks.ledger.types import Act
from tasks.records import State
from tests.conftest import accept, asking, claim_all, finish, mark
from tests.integration.cleaning import DAY, OLD, UUID, ago, applied, cleaner_of, proposed
from tests.processes import janitor_here

pytestmark = pytest.mark.usefixtures("same_time")


def test_it_asks_for_exactly_the_plan_each_bound_to_what_was_seen_after_its_grace(cleaner, ledger, clocked):
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


def test_the_incarnation_is_kept_as_an_observation_would_write_it(cleaner, ledger):
    (a, _) = applied(cleaner, cleaner.plan(OLD))
    stored = ledger.redis.hget(ledger.keys.deletion(a.deletion.id), "incarnation")
    observed = Incarnation.from_text(stored)
    assert observed is not None
    assert stored == observed.to_text() == load(ledger, "default").seen["a"].incarnation


def test_applied_again_it_asks_for_nothing_again_and_what_was_cancelled_stays_so(cleaner, ledger):
    plan = cleaner.plan(OLD)
    first = applied(cleaner, plan, "somebody")
    ledger.cancel([first[0].deletion.id], Act("somebody", "command"))
    again = applied(cleaner, plan, "somebody else")
    assert [one.created for one in again] == [False, False]
    assert [one.deletion.id for one in again] == [one.deletion.id for one in first]
    assert (again[0].deletion.state, again[0].kept) == (State.CANCELLED, None)


def test_an_id_that_is_taken_is_an_error_of_that_item_and_shows_nobody_elses_record(cleaner, ledger, clocked):
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


def test_what_was_used_or_protected_since_is_kept_and_said_so(cleaner, ledger):
    plan = cleaner.plan(OLD)
    touch(ledger, "default", ["a"])
    protect(ledger, "default", ["b"])
    assert [one.kept for one in applied(cleaner, plan)] == [
        "kept: it was used after the plan was made",
        "kept: it is protected",
    ]


def test_what_was_replaced_since_is_kept(cleaner, api, clocked):
    plan = cleaner.plan(OLD)
    api.create("a", timestamp=ago(days=40))
    clocked.after(minutes=1)
    cleaner.plan(OLD)
    kept = [one.kept for one in applied(cleaner, plan)]
    assert kept == ["kept: the name belongs to another finetune now", None]


def test_what_somebody_asked_for_since_is_kept_and_their_deletion_goes_on(cleaner, ledger):
    plan = cleaner.plan(OLD)
    accept(ledger, asking("a", id="r1", delay=3 * DAY))
    (a, _) = applied(cleaner, plan)
    assert a.kept == "kept: another deletion of it is unfinished"
    assert get(ledger, "r1").state == State.SCHEDULED


def test_a_plan_does_not_propose_what_has_an_unfinished_deletion(cleaner, ledger):
    applied(cleaner, cleaner.plan(OLD))
    again = cleaner.plan(OLD)
    assert proposed(again) == []
    assert {item.reason for item in again.items[:2]} == {"another deletion of it is unfinished"}


@pytest.mark.parametrize("unused_for", [None, 2 * DAY])
def test_what_is_selected_by_use_is_kept_if_reports_stop_in_its_grace(cleaner, ledger, api, clocked, unused_for):
    for _ in range(4):
        touch(clocked.after(hours=20), "default", ["f"])
    plan = cleaner.plan(replace(OLD, unused_for=unused_for))
    (a, _) = applied(cleaner, plan)
    clocked.after(hours=25)
    ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
    claim_all(ledger)
    assert get(ledger, a.deletion.id).state == (State.CANCELLED if unused_for else State.RUNNING)


def test_a_blocked_plan_and_an_old_one_are_refused(cleaner, ledger, api, clocked):
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
def test_a_plan_of_a_clock_that_was_ahead_is_refused(cleaner, api, clocked, back):
    plan = cleaner.plan(OLD)
    put_right = cleaner_of(clocked.after(seconds=-back.total_seconds()), api)
    with pytest.raises(errors.PlanRefused, match=r"and it is .*: `janitor cleanup plan --policy old` makes"):
        applied(put_right, plan)


def test_a_use_since_the_plan_keeps_its_finetune_even_if_the_clock_was_set_back(cleaner, ledger, clocked):
    plan = cleaner.plan(OLD)
    touch(clocked.after(seconds=-20), "default", ["a"])
    clocked.after(minutes=1)
    assert [one.kept for one in applied(cleaner, plan)] == ["kept: it was used after the plan was made", None]


@pytest.mark.parametrize(
    "now",
    [[], [replace(OLD, protect=("a",))], [replace(OLD, name="other"), replace(OLD, grace=timedelta(0))]],
)
def test_a_plan_whose_policy_was_changed_or_removed_since_is_refused(cleaner, ledger, now):
    # Given a plan, when its policy is no longer there as it was, then the plan is refused.
    plan = cleaner.plan(OLD)
    with pytest.raises(errors.PlanRefused, match="policy old is not in the policies file as it was"):
        applied(cleaner, plan, policies=now)
    assert ledger.redis.keys(ledger.keys.deletion("*")) == []
    # With the policy as it was, others beside it, or if nobody can tell, it is applied.
    assert len(applied(cleaner, get_plan(ledger, plan.id), policies=[replace(OLD, name="other"), OLD])) == 2
    assert len(applied(cleaner, plan)) == 2


def test_a_plan_of_before_policies_were_noted_is_refused(cleaner, ledger):
    plan = cleaner.plan(OLD)
    key = ledger.keys.plan(plan.id)
    summary = json.loads(ledger.redis.hget(key, "summary"))
    del summary["policy_digest"]
    ledger.redis.hset(key, "summary", json.dumps(summary))
    with pytest.raises(errors.PlanRefused, match="as it was when"):
        applied(cleaner, get_plan(ledger, plan.id), policies=[OLD])


def test_a_plan_of_nothing_is_applied_and_does_nothing(cleaner):
    assert applied(cleaner, cleaner.plan(replace(OLD, match=("zzz",)))) == []


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


def test_a_retry_says_that_it_keeps_what_a_cleanup_would_keep(cleaner, ledger, clocked, redis_url):
    # Given a cleanup's two deletions that failed, and one of their finetunes protected since,
    applied(cleaner, cleaner.plan(replace(OLD, grace=timedelta(0))))
    ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
    for claimed in claim_all(ledger):
        finish(ledger, claimed, State.FAILED)
    protect(ledger, "default", ["a"])
    # when a person retries them, then it is told as what it is.
    done = janitor_here({"REDIS_URL": redis_url, "COLUMNS": "200"}, "retry", "--state", "failed")
    assert ("is protected" in done.stderr, "this deletes" in done.stderr) == (False, False)
    assert "what a cleanup asked for (2) is kept if it was used or protected since\n" in done.stderr
    assert "kept: it is protected" in done.stdout


def test_a_cancel_of_a_plan_finds_its_deletions_though_the_clock_was_set_back(cleaner, ledger, clocked, redis_url):
    cleaner.plan(OLD)
    clocked.after(hours=1)
    plan = cleaner.plan(OLD)
    clocked.after(minutes=-2)
    assert len(applied(cleaner, plan)) == 2
    done = janitor_here({"REDIS_URL": redis_url}, "cancel", "--plan", plan.id)
    assert "the plan is withdrawn; 2 of its 2 deletions have not ended\n" in done.stderr


def test_a_plan_whose_apply_dies_at_once_is_not_told_as_not_applied(cleaner, ledger, monkeypatch):
    plan, accept = cleaner.plan(OLD), ledger.accept

    def accept_and_die(*given, **more):
        accept(*given, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(ledger, "accept", accept_and_die)
    with pytest.raises(KeyboardInterrupt):
        applied(cleaner, plan)
    assert get_plan(ledger, plan.id).applied_at


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
