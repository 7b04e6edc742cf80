"""The ledger on a real Redis: marks, outcomes, late outcomes, lost workers, cancels."""

import json
from dataclasses import replace
from datetime import timedelta

import pytest
import redis

from tasks.ledger.queries import get, stopped_accounts
from tasks.ledger.scripts import script_text
from tasks.ledger.types import Act, Finish
from tasks.records import FINAL, TRANSITIONS, UNFINISHED, Evidence, State
from tests.conftest import (
    LATER,
    NOW,
    PERMITS,
    accept,
    asking,
    carry_out_one,
    claim,
    claim_all,
    claim_and_mark,
    finish,
    mark,
    progress,
    states,
)  # fmt: skip

HOUR = timedelta(hours=1)
ATTEMPT, OTHER_ATTEMPT, THIRD_ATTEMPT = (
    json.dumps({"at": at, "sent": True, "http_status": 500}) for at in (1, 2, 3)
)
FAILED = Finish(result=State.FAILED, message="no")


class TestMark:
    def test_go_renews_the_lease_and_keeps_what_was_observed(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        found = {"incarnation": '{"settings":{"mode":"style"}}', "vantage": "host key", "observed_at": 1_000}
        assert mark(clocked.after(seconds=20), claimed, **found) == "go"
        clocked.after(seconds=20).maintain("default", PERMITS)
        deletion = get(ledger, "r1")
        assert deletion.state is State.RUNNING
        assert (deletion.incarnation, deletion.vantage) == ({"settings": {"mode": "style"}}, "host key")

    @pytest.mark.parametrize(
        ("action", "word"), [("pause", "paused"), ("park", "parked"), ("cool", "cooling"), ("resume", "go")]
    )
    def test_a_stopped_account_says_so(self, ledger, action, word):
        accept(ledger, asking())
        claimed = claim(ledger)
        ledger.account("default", action, reason="test", ms=5_000, most_ms=60_000, probe_ms=5_000)
        verdict = ledger.mark(claimed, progress(claimed), 1, LATER)
        assert verdict.word == word
        assert verdict.wait == (timedelta(seconds=5) if word == "cooling" else timedelta(0))

    def test_a_withdrawn_one_is_lost_or_says_so(self, ledger, clocked):
        accept(ledger, asking("a", id="nothing sent"), asking("b", id="unclear"))
        nothing_sent, unclear = claim_all(ledger)
        assert mark(ledger, unclear, unclear_at=clocked.at_ms) == "go"
        assert ledger.cancel(["nothing sent", "unclear"])[0] == ["cancelled", "requested"]
        assert (mark(ledger, nothing_sent), mark(ledger, unclear, 2)) == ("lost", "cancelled")

    def test_an_observation_that_is_too_old_by_redis_clock_notes_nothing(self, ledger, clocked):
        # Given a worker whose own clock stood still for three seconds,
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        noted = ledger.redis.hgetall(ledger.keys.deletion("r1"))
        found = progress(claimed, 0, {"incarnation": '{"settings":{"mode":"style"}}'}, lines=(ATTEMPT,))
        # when it marks, then nothing is kept of what it observed, and no call is noted.
        verdict = clocked.after(seconds=3).mark(claimed, found, 1, NOW + timedelta(seconds=2))
        assert (verdict.word, verdict.now) == ("stale", clocked.at_ms)
        assert ledger.redis.hgetall(ledger.keys.deletion("r1")) == noted

    def test_an_earlier_holder_is_fenced_off(self, ledger, clocked):
        accept(ledger, asking())
        stale = claim(ledger)
        clocked.after(seconds=31).maintain("default", PERMITS)
        assert claim(ledger).token != stale.token
        assert mark(ledger, stale) == "lost"

    def test_sent_twice_it_keeps_its_number(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        sent = progress(claimed, lines=(ATTEMPT,))
        before = ledger.redis.get(ledger.keys.sequence)
        assert [ledger.mark(claimed, sent, 1, LATER).word for _ in range(2)] == ["go", "go"]
        assert int(ledger.redis.get(ledger.keys.sequence)) == int(before) + 1
        assert len(get(ledger, "r1").attempts) == 1, "nor is an earlier attempt noted twice"

    def test_a_second_attempt_of_the_claim_has_its_own_number(self, ledger):
        accept(ledger, asking())
        claimed = claim(ledger)
        before = int(ledger.redis.get(ledger.keys.sequence))
        assert (mark(ledger, claimed, 1), mark(ledger, claimed, 2)) == ("go", "go")
        assert int(ledger.redis.get(ledger.keys.sequence)) == before + 2


class TestFinish:
    @pytest.mark.parametrize("state", sorted(FINAL))
    def test_a_final_state_with_all_that_is_known(self, ledger, state):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        mark(ledger, claimed)
        words = {"status": "ok", "timestamp": "2026-03-01T12:00:00Z"}
        assert finish(ledger, claimed, state, attempt=1, lines=(ATTEMPT,), **words) == "done"
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.status, deletion.message) == (state, "ok", "as the test says")
        assert (deletion.timestamp, deletion.finished_at, deletion.next_try_at) == (words["timestamp"], NOW, None)
        assert [attempt.http_status for attempt in deletion.attempts] == [500]

    @pytest.mark.parametrize("state", sorted(FINAL))
    def test_nothing_is_left_of_it_but_its_record(self, ledger, clocked, state):
        accept(ledger, asking(id="r1", delay=HOUR))
        clocked.after(hours=1)
        carry_out_one(ledger, state)
        kinds = {key.removeprefix("janitor:2:").split(":")[0] for key in ledger.redis.scan_iter()}
        left = kinds - {"d", "ix", "names", "finished", "verify", "accounts", "account", "seq", "stats", "workers"}
        assert left <= {"maintained", "memo"}, "the memo of a claim expires"

    def test_the_same_outcome_sent_twice_changes_nothing(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        assert finish(ledger, claimed, State.FAILED, lines=(ATTEMPT,)) == "done"
        before = get(ledger, "r1")
        assert finish(clocked.after(seconds=5), claimed, State.FAILED, lines=(ATTEMPT,)) == "done"
        assert get(ledger, "r1") == before

    def test_handed_back_twice_it_waits_once(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        finish(ledger, claimed, "back", delay=HOUR)
        before = get(ledger, "r1")
        finish(clocked.after(seconds=5), claimed, "back", delay=HOUR)
        assert get(ledger, "r1") == before

    def test_handed_back_it_waits_in_the_ledger_and_its_due_time_stays(self, ledger, clocked):
        accept(ledger, asking(id="r1", incarnation="{}"))
        finish(ledger, claim(ledger), "back", delay=timedelta(minutes=1))
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.due_at) == (State.SCHEDULED, NOW)
        assert deletion.next_try_at == NOW + timedelta(minutes=1)
        assert claim(clocked.after(seconds=59)) is None
        again = claim(clocked.after(seconds=1))
        assert (again.id, again.backoffs) == ("r1", 1)

    def test_handed_back_without_a_delay_it_is_next_and_nothing_is_counted(self, ledger):
        accept(ledger, asking(id="r1"))
        finish(ledger, claim(ledger), "back", counted=False)
        assert states(ledger, "r1") == [State.QUEUED]
        assert claim(ledger).backoffs == 0

    def test_a_last_attempt_leaves_only_an_observation(self, ledger, clocked):
        accept(ledger, asking())
        finish(ledger, claim(ledger), "back", delay=timedelta(seconds=30), last_try=True)
        again = claim(clocked.after(seconds=31))
        assert (again.kind, again.last_try) == ("resolve", True)

    def test_a_count_of_404s_is_kept(self, ledger):
        accept(ledger, asking())
        finish(ledger, claim(ledger), "back", not_founds=2)
        assert claim(ledger).not_founds == 2

    def test_an_alarm_pauses_the_account_in_the_same_step(self, ledger):
        accept(ledger, asking("a", id="r1"), asking("b"))
        finish(ledger, claim(ledger), State.REVIEW, pause="the API deleted another one")
        assert claim(ledger) is None
        assert stopped_accounts(ledger)["default"].paused == "the API deleted another one"

    def test_it_and_the_next_claim_take_one_round_trip(self, ledger):
        accept(ledger, asking("a", id="r1"), asking("b", id="r2"))
        first = claim(ledger)
        finished, claimed = ledger.finish(first, FAILED, progress(first), "worker-1:next")
        assert (finished.word, claimed.claim.id, claimed.claim.account) == ("done", "r2", "default")

    def test_results_are_due_for_requests_by_name_only(self, ledger):
        accept(ledger, asking("a", source="name"), asking("b", source="http"))
        for name, due in (("a", True), ("b", False)):
            claimed = claim(ledger)
            assert claimed.finetune_id == name
            assert ledger.finish(claimed, FAILED, progress(claimed))[0].due is due

    def test_one_without_a_record_is_gone(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        ledger.redis.delete(ledger.keys.deletion("r1"))
        assert finish(ledger, claimed, State.FAILED) == "gone"


class TestLateFinish:
    @pytest.fixture
    def slow(self, ledger, clocked):
        """The claim of a worker that comes back after its lease."""
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        mark(ledger, claimed)
        clocked.after(seconds=31).maintain("default", PERMITS)
        return claimed

    @pytest.mark.parametrize("first", sorted(FINAL - {State.DELETED, State.SUPERSEDED}))
    def test_a_200_to_our_own_attempt_turns_any_other_end_into_deleted(self, ledger, slow, first):
        finish(ledger, claim(ledger), first)
        finished_at = get(ledger, "r1").finished_at
        assert finish(ledger, slow, "deleted", attempt=1, status="Deleted", lines=(ATTEMPT,)) == "late"
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.evidence, deletion.status) == ("deleted", "response", "Deleted")
        assert deletion.finished_at == finished_at

    def test_what_a_person_found_out_before_is_not_beside_it(self, ledger, slow):
        finish(ledger, claim(ledger), State.REVIEW)
        ledger.resolve("r1", "kept", "seen in the dashboard", Act("ann", "command"))
        finish(ledger, slow, "deleted", attempt=1)
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.resolution, deletion.resolved_by) == ("deleted", None, None)

    def test_a_200_ends_what_waits_or_runs_again(self, ledger, slow):
        again = claim(ledger)
        finish(ledger, slow, "deleted", attempt=1)
        assert states(ledger, "r1") == [State.DELETED]
        assert finish(ledger, again, "back", delay=HOUR) == "late"
        assert states(ledger, "r1") == [State.DELETED]

    def test_a_200_after_the_name_has_passed_to_another_needs_a_person(self, ledger, slow):
        finish(ledger, claim(ledger), State.SUPERSEDED)
        finish(ledger, slow, "deleted", attempt=1)
        deletion = get(ledger, "r1")
        assert deletion.state is State.REVIEW
        assert "probably deleted" in str(deletion.message)

    def test_one_without_siblings_leaves_nothing_behind(self, ledger, slow):
        finish(ledger, claim(ledger), State.REVIEW)
        finish(ledger, slow, "deleted", attempt=1)
        assert not list(ledger.redis.scan_iter("janitor:2:f:*"))

    @pytest.mark.parametrize("late", [State.FAILED, State.NOT_FOUND, State.REVIEW, "back"])
    def test_any_other_late_outcome_changes_nothing_but_its_attempts_are_noted_once(self, ledger, slow, late):
        finish(ledger, claim(ledger), State.FAILED, message="first")
        for _ in range(2):
            assert finish(ledger, slow, late, lines=(ATTEMPT,)) == "late"
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.message) == (State.FAILED, "first")
        assert [attempt.error for attempt in deletion.attempts] == ["WorkerLost", None]

    def test_an_attempt_is_noted_once_however_often_it_is_told(self, ledger, clocked):
        # Given an outcome whose answer was lost, and another worker that has gone on since,
        accept(ledger, asking(id="r1"))
        first = claim_and_mark(ledger)
        finish(ledger, first, "back", attempt=1, lines=(ATTEMPT,))
        finish(ledger, claim_and_mark(ledger), "back", attempt=1, lines=(OTHER_ATTEMPT,))
        # when the first one is written again, then it adds nothing;
        assert finish(ledger, first, "back", attempt=1, lines=(ATTEMPT,)) == "late"
        # nor does a finish that tells what a mark has told, whose answer was lost.
        claimed = claim_and_mark(ledger)
        ledger.mark(claimed, progress(claimed, 1, lines=(THIRD_ATTEMPT,)), 2, LATER)
        finish(ledger, claimed, "back", attempt=1, lines=(THIRD_ATTEMPT,))
        assert len(get(ledger, "r1").attempts) == 3

    def test_an_observation_is_counted_once_though_the_answer_to_the_mark_was_lost(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed, seen = claim(ledger), {"observation:present": 1}
        ledger.mark(claimed, progress(claimed, counts=seen), 1, LATER)
        ledger.finish(claimed, Finish("back"), progress(claimed, counts=seen))
        assert ledger.redis.hget(ledger.keys.stats("default"), "observation:present") == "1"

    def test_deleted_by_a_late_observation_is_no_fact(self, ledger, slow):
        finish(ledger, claim(ledger), State.FAILED)
        finish(ledger, slow, "deleted", evidence=Evidence.READ_BACK)
        assert states(ledger, "r1") == [State.FAILED]

    def test_an_alarm_counts_from_anybody(self, ledger, slow):
        finish(ledger, slow, State.REVIEW, pause="the API deleted another one")
        assert states(ledger, "r1") == [State.REVIEW]
        assert stopped_accounts(ledger)["default"].paused == "the API deleted another one"

    def test_an_alarm_that_comes_twice_ends_no_resumption(self, ledger, slow):
        alarm = {"pause": "the API deleted another one"}
        finish(ledger, slow, State.REVIEW, **alarm)
        ledger.account("default", "resume")
        finish(ledger, slow, State.REVIEW, **alarm)
        assert stopped_accounts(ledger) == {}

    def test_its_result_is_due_again(self, ledger, clocked):
        accept(ledger, asking(source="name"))
        claimed = claim(ledger)
        mark(ledger, claimed)
        clocked.after(seconds=31).maintain("default", PERMITS)
        finish(ledger, claim(ledger), State.FAILED)
        ledger.result_written(claimed.id)
        late = replace(FAILED, result=State.DELETED, evidence=Evidence.RESPONSE)
        assert ledger.finish(claimed, late, progress(claimed, 1))[0].due


class TestReclaim:
    def test_what_a_dead_worker_held_is_taken_back_and_its_attempt_is_unclear(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        marked_at = clocked.at_ms
        claim_and_mark(ledger)
        assert clocked.after(seconds=29).maintain("default", PERMITS).reclaimed == 0
        assert clocked.after(seconds=2).maintain("default", PERMITS).reclaimed == 1
        deletion = get(ledger, "r1")
        assert (deletion.state, [attempt.error for attempt in deletion.attempts]) == (State.QUEUED, ["WorkerLost"])
        assert claim(ledger).unclear_at == marked_at

    def test_a_worker_lost_before_its_mark_has_sent_nothing(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claim(ledger)
        clocked.after(seconds=31).maintain("default", PERMITS)
        assert (get(ledger, "r1").attempts, claim(ledger).unclear_at) == ((), 0)

    def test_a_worker_lost_while_it_settles_a_cancel_has_sent_nothing_more(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        finish(
            ledger,
            claim_and_mark(ledger),
            "back",
            attempt=1,
            found={"unclear_at": clocked.at_ms},
            lines=(ATTEMPT,),
        )
        ledger.cancel(["r1"])
        assert claim(ledger).kind == "resolve"
        clocked.after(seconds=31).maintain("default", PERMITS)
        assert len(get(ledger, "r1").attempts) == 1
        assert claim(ledger).kind == "resolve"

    def test_a_renewed_lease_is_left_alone(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        assert clocked.after(seconds=20).renew([claimed]) == set()
        clocked.after(seconds=20).maintain("default", PERMITS)
        assert states(ledger, "r1") == [State.RUNNING]

    def test_a_record_that_cannot_be_read_keeps_no_other_lease_from_being_renewed(self, ledger):
        accept(ledger, asking("a", id="r1"), asking("b", id="r2"))
        claims = claim_all(ledger)
        ledger.redis.delete(ledger.keys.deletion("r1"))
        ledger.redis.set(ledger.keys.deletion("r1"), "by hand")
        assert ledger.renew(claims) == {"r1"}

    def test_only_the_holder_renews(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        stale = claim(ledger)
        clocked.after(seconds=31).maintain("default", PERMITS)
        claim(ledger)
        assert clocked.after(seconds=20).renew([stale]) == {"r1"}
        assert clocked.after(seconds=11).maintain("default", PERMITS).reclaimed == 1

    def test_five_workers_lost_in_an_attempt_are_enough(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        for crashes in range(1, 6):
            claim_and_mark(ledger)
            clocked.after(seconds=31).maintain("default", PERMITS)
            assert states(ledger, "r1") == [State.QUEUED if crashes < 5 else State.REVIEW]
        assert len(get(ledger, "r1").attempts) == 5

    def test_workers_lost_before_their_attempts_are_not_counted(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        for _ in range(6):
            claim(ledger)
            clocked.after(seconds=31).maintain("default", PERMITS)
        assert states(ledger, "r1") == [State.QUEUED]

    def test_a_lease_seen_unrenewed_on_the_own_clock_has_ended_whatever_redis_says(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claim(ledger)
        clocked.after(minutes=-10)
        (seen,) = ledger.maintain("default", PERMITS).leases
        assert ledger.maintain("default", PERMITS, stale=[seen]).reclaimed == 1
        assert states(ledger, "r1") == [State.QUEUED]

    def test_one_that_was_renewed_since_has_not(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        (seen,) = ledger.maintain("default", PERMITS).leases
        clocked.after(seconds=1).renew([claimed])
        assert ledger.maintain("default", PERMITS, stale=[seen]).reclaimed == 0

    def test_a_permit_seen_unchanged_on_the_own_clock_has_ended_too(self, ledger, clocked):
        ledger.permit("default", "survey:0", PERMITS)
        clocked.after(minutes=-10)
        (seen,) = ledger.maintain("default", PERMITS).leases
        ledger.maintain("default", PERMITS, stale=[seen])
        assert ledger.maintain("default", PERMITS).leases == ()


class TestCancel:
    @pytest.mark.parametrize("delay", [None, timedelta(days=30)])
    def test_it_is_immediate_while_nothing_was_sent(self, ledger, delay):
        accept(ledger, asking(id="r1", delay=delay))
        assert ledger.cancel(["r1"], Act("ops", "command", "mistake"))[0] == ["cancelled"]
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.cancelled_by, deletion.cancel_reason) == ("cancelled", "ops", "mistake")
        assert claim(ledger) is None

    def test_it_is_immediate_while_a_runner_only_observes(self, ledger):
        accept(ledger, asking(id="r1"))
        claim(ledger)
        assert ledger.cancel(["r1"])[0] == ["cancelled"]

    def test_once_a_call_may_be_under_way_it_is_a_request(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed = claim_and_mark(ledger)
        assert ledger.cancel(["r1"])[0] == ["requested"]
        assert (get(ledger, "r1").state, get(ledger, "r1").cancel_requested_at) == (State.RUNNING, NOW)
        finish(ledger, claimed, "deleted", attempt=1)
        assert states(ledger, "r1") == [State.DELETED], "what has happened is on record"

    def test_handed_back_with_nothing_unclear_it_is_cancelled(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed = claim_and_mark(ledger)
        ledger.cancel(["r1"])
        finish(ledger, claimed, "back", attempt=1)
        assert states(ledger, "r1") == [State.CANCELLED]

    def test_with_an_unclear_attempt_an_observation_decides(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        finish(ledger, claim_and_mark(ledger), "back", attempt=1, delay=HOUR, found={"unclear_at": clocked.at_ms})
        assert ledger.cancel(["r1"])[0] == ["requested"]
        assert claim(ledger).kind == "resolve"

    def test_one_that_comes_while_the_call_is_out_waits_a_minute_at_most(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim_and_mark(ledger)
        ledger.cancel(["r1"])
        finish(ledger, claimed, "back", attempt=1, delay=HOUR, found={"unclear_at": clocked.at_ms})
        assert get(ledger, "r1").next_try_at == NOW + timedelta(minutes=1)

    def test_the_worker_that_held_it_is_lost_and_nothing_is_unclear(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim(ledger)
        clocked.after(seconds=31).maintain("default", PERMITS)
        assert ledger.cancel([claimed.id])[0] == ["cancelled"]

    def test_unknown_and_ended_ones_are_told_apart(self, ledger):
        accept(ledger, asking("a", id="r1"), asking("b", id="r2"))
        ledger.cancel(["r1"])
        assert ledger.cancel(["r1", "r0", "r2"])[0] == ["final", "unknown", "cancelled"]

    def test_the_same_cancel_again_says_the_same(self, ledger):
        accept(ledger, asking(id="r1"))
        assert [ledger.cancel(["r1"], nonce="n")[0] for _ in range(2)] == [["cancelled"], ["cancelled"]]

    def test_the_results_it_owes_are_told(self, ledger):
        accept(ledger, asking("a", id="r1", source="name"), asking("b", id="r2"))
        assert ledger.cancel(["r1", "r2"])[1] == ["r1"]


class TestTransitions:
    @pytest.mark.parametrize("start", list(State))
    @pytest.mark.parametrize("end", list(State))
    def test_the_scripts_hold_the_table(self, ledger, start, end):
        record = {
            "finetune_id": "x", "name": "x", "account": "default", "state": start, "lane": "single",
            "running_lane": "single", "created_at": 1, "due_at": 1,
        }  # fmt: skip
        ledger.redis.hset(ledger.keys.deletion("x"), mapping=record)
        shared = script_text("housekeep").partition("-- needs:")[0]
        script = ledger.client.register_script(f"{shared}move(read('x'), input.to, 1, {{}})")
        if end in TRANSITIONS[start] or (start == end and start in UNFINISHED):
            script(args=[json.dumps({"to": end})])
            assert ledger.redis.hget(ledger.keys.deletion("x"), "state") == end
        else:
            with pytest.raises(redis.ResponseError, match="cannot go from"):
                script(args=[json.dumps({"to": end})])
