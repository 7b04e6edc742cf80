"""The ledger's scripts on a real Redis: every change of state, and what each one must refuse."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger, _whole
from tasks.queries import Filter, get, get_many, list_deletions
from tasks.records import TRANSITIONS, Evidence, State
from tests.conftest import asking, outcome

ATTEMPT = '{"at":1,"sent":true,"http_status":200}'


def accept(ledger, *requests):
    return ledger.accept(requests)[0]


def claim(ledger, want=100, owner="worker-1", account="default"):
    return ledger.claim(account, owner, want)[0]


def claim_one(ledger):
    (claimed,) = claim(ledger, 1)
    return claimed


def states(ledger, *ids):
    return [deletion.state if deletion else None for deletion in get_many(ledger, ids)]


class TestAccept:
    def test_a_request_becomes_a_queued_deletion_under_its_own_id(self, ledger):
        (accepted,) = accept(ledger, asking(id="r1", reason="trial over", requested_by="billing"))
        deletion = get(ledger, "r1")
        assert (accepted.deletion_id, accepted.created, accepted.known) == ("r1", True, False)
        assert deletion.state is State.QUEUED
        assert (deletion.requests[0].reason, deletion.requests[0].requested_by) == ("trial over", "billing")

    def test_the_same_id_again_changes_nothing(self, ledger):
        accept(ledger, asking(id="r1"))
        (again,) = accept(ledger, asking(id="r1"))
        assert (again.deletion_id, again.created, again.known) == ("r1", False, True)
        assert len(get(ledger, "r1").requests) == 1

    def test_a_second_request_joins_the_unfinished_deletion(self, ledger):
        accept(ledger, asking(id="r1"))
        (second,) = accept(ledger, asking(id="r2"))
        assert (second.deletion_id, second.created) == ("r1", False)
        assert [request.id for request in get(ledger, "r2").requests] == ["r1", "r2"]

    def test_a_finished_deletion_is_not_joined(self, ledger):
        accept(ledger, asking(id="r1"))
        ledger.conclude([outcome(claim_one(ledger), "deleted", evidence="response")])
        (second,) = accept(ledger, asking(id="r2"))
        assert (second.deletion_id, second.created) == ("r2", True)

    def test_accounts_keep_their_own_names(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2", account="other"))
        assert get(ledger, "r2").account == "other"
        assert get(ledger, "r1").id == "r1"

    def test_a_joining_request_brings_the_time_forward_never_back(self, ledger):
        accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
        before = get(ledger, "r1").due_at
        accept(ledger, asking(delay=timedelta(hours=2)))
        assert get(ledger, "r1").due_at == before
        accept(ledger, asking())
        assert states(ledger, "r1") == [State.QUEUED]
        assert get(ledger, "r1").due_at < before

    def test_a_time_in_the_past_counts_as_now(self, ledger):
        accept(ledger, asking(id="r1", delay=timedelta(hours=-1)))
        deletion = get(ledger, "r1")
        assert deletion.state is State.QUEUED
        assert deletion.due_at == deletion.created_at

    def test_a_script_that_is_sent_twice_says_the_same_twice(self, ledger):
        request = {"id": "r1", "finetune_id": "x", "account": "default", "source": "http", "missing_ok": False}
        given = {"requests": [request], "nonce": "n", **ledger._lives()}
        first, _ = json.loads(ledger._run("accept", **given))
        second, _ = json.loads(ledger._run("accept", **given))
        assert first == second == [["r1", 1, 0]]

    def test_a_thousand_and_more_go_in_batches(self, ledger):
        accepted = accept(ledger, *(asking(f"ft-{i}", bulk=True) for i in range(2_100)))
        assert sum(answer.created for answer in accepted) == 2_100


class TestWakeups:
    def test_one_for_the_first_request_none_while_it_is_outstanding(self, ledger):
        assert [w.account for w in ledger.accept([asking("a")])[1]] == ["default"]
        assert ledger.accept([asking("b")])[1] == []

    def test_a_lost_one_is_sent_again_after_ten_seconds_then_less_often(self, ledger, clocked):
        ledger.accept([asking()])
        gaps = []
        for _ in range(4):
            seconds = 0
            while not clocked.after(seconds=1).dispatch([], alive_for=timedelta(0)).wakeups:
                seconds += 1
            gaps.append(seconds)
        assert gaps == sorted(gaps)
        assert 8 <= gaps[0] <= 10
        assert gaps[-1] >= 60

    def test_none_while_nothing_may_start(self, ledger):
        ledger.account("default", "pause", reason="test")
        assert ledger.accept([asking()])[1] == []
        ledger.account("default", "resume")
        assert len(ledger.dispatch([], alive_for=timedelta(0)).wakeups) == 1

    def test_no_more_than_the_work_asks_for_nor_than_there_are_processes(self, ledger):
        ledger.dispatch([f"worker/{n}" for n in range(3)], alive_for=timedelta(minutes=1))
        _, wakeups = ledger.accept([asking(f"ft-{i}") for i in range(150)])
        assert len(wakeups) == 2

    def test_begun_ones_are_no_longer_outstanding(self, ledger):
        _, (wakeup,) = ledger.accept([asking("a")])
        ledger.claim("default", "w", 1, begun=wakeup.id)
        assert len(ledger.accept([asking("b")])[1]) == 1


class TestClaim:
    def test_each_deletion_goes_to_one_of_many_claimers(self, ledger, redis_url):
        ledger.account("default", "register", max_concurrent=1000)
        accept(ledger, *(asking(f"ft-{i}") for i in range(200)))

        def take(n):
            with redis.Redis.from_url(redis_url, decode_responses=True) as client:
                return [one.id for one in claim(Ledger(client), 10, owner=f"worker-{n}")]

        with ThreadPoolExecutor(8) as pool:
            taken = [id_ for ids in pool.map(take, range(30)) for id_ in ids]
        assert len(taken) == len(set(taken)) == 200

    def test_never_more_than_there_are_permits(self, ledger):
        accept(ledger, *(asking(f"ft-{i}") for i in range(20)))
        assert len(claim(ledger, 5)) == 5
        assert len(claim(ledger, 100)) == 3
        assert claim(ledger, 100) == []

    def test_a_thread_goes_on_to_what_was_claimed_ahead_under_the_permit_it_has(self, ledger, redis_client):
        # Given more work than permits.
        accept(ledger, *(asking(f"ft-{i}") for i in range(30)))
        # When more is claimed ahead,
        claimed, _ = ledger.claim("default", "w", 8, ahead=12)
        permits = {one.permit for one in claimed if one.permit}
        assert (len(claimed), len(permits)) == (20, 8)
        # then a permit stays taken while its thread goes on,
        first, following = claimed[0], claimed[8]._replace(permit=claimed[0].permit)
        ledger.conclude([outcome(first, "deleted", evidence="response", goes_on=True)])
        assert [verdict.word for verdict in ledger.check([following])] == ["go"]
        assert set(redis_client.zrange("janitor:permits:default", 0, -1)) == permits
        # and is given back with the last.
        ledger.conclude([outcome(following, "deleted", evidence="response")])
        assert set(redis_client.zrange("janitor:permits:default", 0, -1)) == permits - {first.permit}

    def test_nothing_is_claimed_ahead_where_no_thread_will_come_to_it(self, ledger):
        accept(ledger, *(asking(f"ft-{i}") for i in range(30)))
        ledger.claim("default", "w", 8)
        assert ledger.claim("default", "another", 8, ahead=100)[0] == []
        assert len(ledger.claim("default", "w", 0, ahead=5, at_work=8)[0]) == 5

    def test_nothing_is_claimed_ahead_while_fewer_calls_are_to_run(self, ledger):
        accept(ledger, *(asking(f"ft-{i}") for i in range(30)))
        ledger.claim("default", "w", 8)
        ledger.account("default", "register", max_concurrent=4)
        assert ledger.claim("default", "w", 0, ahead=5, at_work=8)[0] == []

    def test_ahead_is_a_fair_share_of_what_waits_for_more_than_the_permits(self, ledger):
        # Given two processes, 8 permits, and 20 that wait.
        ledger.dispatch(["worker/1"], alive_for=timedelta(days=1))
        accept(ledger, *(asking(f"ft-{i}") for i in range(20)))
        # Then one that starts 2 has half of the 10 that the permits' next calls leave.
        assert len(ledger.claim("default", "w", 2, ahead=100)[0]) == 2 + 5
        # And where no more waits than there are permits, whoever is idle first takes it.
        assert len(ledger.claim("default", "w", 5, ahead=100, at_work=2)[0]) == 5

    def test_a_claim_says_that_the_permits_are_taken(self, ledger):
        accept(ledger, *(asking(f"ft-{i}") for i in range(9)))
        assert ledger.claim("default", "w", 4)[1] == ""
        claimed, why = ledger.claim("default", "another", 8)
        assert (len(claimed), why) == (4, "full")

    def test_a_permit_ends_with_its_call(self, ledger, clocked):
        accept(ledger, *(asking(f"ft-{i}") for i in range(9)))
        claim(ledger, 8)
        assert len(claim(clocked.after(seconds=21))) == 1

    def test_the_same_claim_sent_twice_gives_the_same_tokens(self, ledger):
        accept(ledger, asking("a"), asking("b"))
        given = {"account": "default", "owner": "w", "want": 1, "ahead": 0, "at_work": 0, "nonce": "n"}
        given |= ledger._holds()
        assert ledger._run("claim", **given) == ledger._run("claim", **given)
        assert len(claim(ledger)) == 1

    def test_single_requests_go_before_bulk(self, ledger):
        accept(ledger, *(asking(f"bulk-{i}", bulk=True) for i in range(10)))
        accept(ledger, asking("single"))
        assert [one.finetune_id for one in claim(ledger, 2)] == ["single", "bulk-0"]

    def test_a_bulk_deletion_that_a_single_request_joins_goes_first(self, ledger):
        accept(ledger, *(asking(f"bulk-{i}", bulk=True) for i in range(10)))
        accept(ledger, asking("bulk-7"))
        assert claim_one(ledger).finetune_id == "bulk-7"

    def test_what_is_scheduled_waits_for_its_time(self, ledger, clocked):
        accept(ledger, asking(delay=timedelta(days=30), fingerprint="v1:"))
        assert claim(clocked.after(days=29)) == []
        assert [one.kind for one in claim(clocked.after(days=1))] == ["delete"]

    @pytest.mark.parametrize("stop", ["pause", "park", "cool"])
    def test_nothing_starts_while_the_account_is_stopped_and_nothing_is_rewritten(self, ledger, stop):
        accept(ledger, asking(id="r1"))
        before = get(ledger, "r1")
        ledger.account("default", stop, reason="test", ms=60_000, probe_ms=60_000)
        assert claim(ledger) == []
        assert get(ledger, "r1") == before

    def test_a_pause_of_everything_stops_every_account(self, ledger):
        accept(ledger, asking())
        ledger.account("*", "pause", reason="test")
        assert claim(ledger) == []

    def test_a_parked_account_is_probed_by_one_at_a_time(self, ledger, clocked):
        accept(ledger, asking())
        ledger.account("default", "park", reason="HTTP 403", probe_ms=30_000)
        later = clocked.after(seconds=31)
        assert [one.kind for one in claim(later)] == ["probe"]
        assert claim(later) == []

    def test_a_cool_down_ends_by_itself(self, ledger, clocked):
        accept(ledger, asking())
        ledger.account("default", "cool", reason="HTTP 429", ms=5_000)
        assert claim(ledger) == []
        assert len(claim(clocked.after(seconds=6))) == 1

    def test_cool_downs_without_a_time_double_while_they_follow_each_other(self, ledger, clocked):
        def lengths():
            for _ in range(5):
                length = clocked().account("default", "cool", reason="402", step_ms=30_000, most_ms=300_000)
                clocked.after(milliseconds=length + 1_000)
                yield length

        assert list(lengths()) == [30_000, 60_000, 120_000, 240_000, 300_000]


class TestFirstLook:
    def test_what_waits_is_looked_at_at_once_what_is_due_by_its_delete(self, ledger, clocked):
        accept(ledger, asking("waits", id="waits", delay=timedelta(hours=1)), asking("due"))
        assert [(one.kind, one.finetune_id) for one in claim(ledger)] == [("delete", "due"), ("look", "waits")]

    def test_what_is_due_and_cannot_start_is_looked_at_within_the_minute(self, ledger, clocked):
        accept(ledger, asking())
        ledger.account("default", "pause", reason="test")
        assert claim(ledger) == []
        assert [one.kind for one in claim(clocked.after(seconds=31))] == ["look"]

    def test_a_finding_is_kept_and_the_state_with_it(self, ledger):
        accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
        ledger.conclude([outcome(claim_one(ledger), None, fingerprint="v1:mode=1", looked_at=1_000)])
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.fingerprint) == (State.SCHEDULED, "v1:mode=1")
        assert claim(ledger) == []

    def test_an_unclear_look_comes_again(self, ledger, clocked):
        accept(ledger, asking(delay=timedelta(hours=1)))
        ledger.conclude([outcome(claim_one(ledger), None, delay_ms=30_000)])
        assert claim(ledger) == []
        assert [one.kind for one in claim(clocked.after(seconds=31))] == ["look"]

    def test_a_lost_look_comes_again_when_its_lease_is_over(self, ledger, clocked):
        accept(ledger, asking(delay=timedelta(hours=1)))
        claim_one(ledger)
        assert [one.kind for one in claim(clocked.after(seconds=61))] == ["look"]

    def test_a_look_concludes_only_what_still_is_as_it_was_seen(self, ledger):
        accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
        seen = claim_one(ledger)
        ledger.conclude([outcome(seen, None, fingerprint="v1:mode=1")])
        assert ledger.conclude([outcome(seen, "not_found")])[0] == ["late"]
        assert states(ledger, "r1") == [State.SCHEDULED]

    def test_gone_at_the_first_look_ends_it(self, ledger):
        accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
        ledger.conclude([outcome(claim_one(ledger), "not_found")])
        assert states(ledger, "r1") == [State.NOT_FOUND]


class TestConclude:
    @pytest.mark.parametrize("state", [state for state in State if state.is_final])
    def test_a_final_state_with_all_that_is_known(self, ledger, state):
        accept(ledger, asking(id="r1"))
        words, _ = ledger.conclude([outcome(claim_one(ledger), state, status="ok", attempts=ATTEMPT)])
        deletion = get(ledger, "r1")
        assert words == ["done"]
        assert (deletion.state, deletion.status, deletion.message) == (state, "ok", "as the test says")
        assert deletion.finished_at is not None
        assert deletion.timestamp is not None
        assert len(deletion.attempts) == 1

    def test_the_permit_and_the_name_are_free_again(self, ledger, redis_client):
        accept(ledger, asking())
        ledger.conclude([outcome(claim_one(ledger), "failed")])
        assert redis_client.zcard("janitor:permits:default") == 0
        assert redis_client.hlen("janitor:open:default") == 0

    def test_the_same_outcome_sent_twice_changes_nothing(self, ledger):
        accept(ledger, asking(id="r1"))
        same = [outcome(claim_one(ledger), "failed", attempts=ATTEMPT)]
        ledger.conclude(same)
        before = get(ledger, "r1")
        assert ledger.conclude(same)[0] == ["done"]
        assert get(ledger, "r1") == before

    @pytest.mark.parametrize("first", ["not_found", "failed", "review", "superseded", "cancelled"])
    def test_a_late_200_of_ours_turns_any_other_into_deleted(self, ledger, clocked, first):
        accept(ledger, asking(id="r1"))
        slow = claim_one(ledger)
        clocked.after(seconds=31).dispatch([], alive_for=timedelta(0))
        quick = claim_one(clocked())
        clocked().conclude([outcome(quick, first)])
        late = outcome(slow, "deleted", evidence=Evidence.RESPONSE, status="Deleted", attempts=ATTEMPT)
        assert clocked().conclude([late])[0] == ["done"]
        assert states(ledger, "r1") == [State.DELETED]

    @pytest.mark.parametrize("late", ["failed", "not_found", "review", "queued"])
    def test_any_other_late_answer_is_noted_and_changes_nothing(self, ledger, clocked, late):
        accept(ledger, asking(id="r1"))
        slow = claim_one(ledger)
        clocked.after(seconds=31).dispatch([], alive_for=timedelta(0))
        clocked().conclude([outcome(claim_one(clocked()), "deleted", evidence="response")])
        before = get(ledger, "r1")
        assert clocked().conclude([outcome(slow, late, attempts=ATTEMPT)])[0] == ["late"]
        after = get(ledger, "r1")
        assert (after.state, after.message, after.finished_at) == (
            before.state,
            before.message,
            before.finished_at,
        )
        assert len(after.attempts) == len(before.attempts) + 1

    def test_handed_back_it_waits_in_the_ledger(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        ledger.conclude([outcome(claim_one(ledger), "queued", delay_ms=60_000)])
        assert states(ledger, "r1") == [State.SCHEDULED]
        (again,) = claim(clocked.after(seconds=61))
        assert (again.id, again.token, again.backoffs) == ("r1", 2, 1)

    def test_handed_back_without_a_delay_it_is_next(self, ledger):
        accept(ledger, asking(id="r1"))
        ledger.conclude([outcome(claim_one(ledger), "queued")])
        assert states(ledger, "r1") == [State.QUEUED]
        assert claim_one(ledger).backoffs == 0

    def test_requests_after_the_look_become_a_deletion_of_their_own(self, ledger, clocked):
        accept(ledger, asking(id="r1", source="name"))
        looked_at = ledger.now_ms()
        accept(clocked.after(seconds=1), asking(id="r2", source="name"), asking(id="r3"))
        _, owed = clocked().conclude([outcome(claim_one(clocked()), "superseded", since_ms=looked_at)])
        assert states(ledger, "r1", "r2") == [State.SUPERSEDED, State.QUEUED]
        assert get(ledger, "r3").id == "r2"
        assert [request.id for request in get(ledger, "r1").requests] == ["r1"]
        assert owed == ["r1"]


class TestCheck:
    def test_go_renews_the_lease_and_the_permit(self, ledger, clocked, redis_client):
        accept(ledger, asking())
        claimed = claim_one(ledger)
        later = clocked.after(seconds=15)
        assert later.check([claimed])[0].word == "go"
        assert redis_client.zscore("janitor:leases:default", claimed.id) >= later.now_ms() + 29_000
        assert redis_client.zscore("janitor:permits:default", claimed.permit) >= later.now_ms() + 19_000

    @pytest.mark.parametrize(
        ("action", "word"), [("pause", "paused"), ("park", "parked"), ("cool", "cooling"), ("resume", "go")]
    )
    def test_a_stopped_account_says_so(self, ledger, action, word):
        accept(ledger, asking())
        claimed = claim_one(ledger)
        ledger.account("default", action, reason="test", ms=5_000, probe_ms=5_000)
        assert ledger.check([claimed])[0].word == word

    def test_a_cancelled_one_says_so(self, ledger):
        accept(ledger, asking())
        claimed = claim_one(ledger)
        ledger.cancel([claimed.id])
        assert ledger.check([claimed])[0].word == "cancelled"

    def test_a_stale_token_is_lost(self, ledger, clocked):
        accept(ledger, asking())
        stale = claim_one(ledger)
        clocked.after(seconds=31).dispatch([], alive_for=timedelta(0))
        claim_one(clocked())
        assert clocked().check([stale])[0].word == "lost"
        assert clocked().renew([stale]) == {stale.id}

    def test_after_a_wait_a_permit_must_be_free(self, ledger):
        ledger.account("default", "register", max_concurrent=1)
        accept(ledger, asking("a"), asking("b"))
        waits = claim_one(ledger)
        assert ledger.wait(waits, ATTEMPT, 0)
        claim_one(ledger)
        assert ledger.check([waits])[0].word == "full"


class TestRescue:
    def test_what_a_dead_worker_held_is_taken_back_and_its_attempt_is_unclear(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claim_one(ledger)
        clocked.after(seconds=29).dispatch([], alive_for=timedelta(0))
        assert states(ledger, "r1") == [State.RUNNING]
        clocked.after(seconds=2).dispatch([], alive_for=timedelta(0))
        deletion = get(ledger, "r1")
        assert deletion.state is State.QUEUED
        assert deletion.attempts[0].error == "WorkerLost"
        assert claim_one(clocked()).unclear_at > 0

    def test_a_worker_lost_in_a_wait_left_no_unclear_attempt(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        ledger.wait(claim_one(ledger), ATTEMPT, 0)
        clocked.after(seconds=31).dispatch([], alive_for=timedelta(0))
        assert [attempt.error for attempt in get(ledger, "r1").attempts] == [None]
        assert claim_one(clocked()).unclear_at == 0

    def test_renewed_leases_are_left_alone(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim_one(ledger)
        clocked.after(seconds=20).renew([claimed])
        clocked.after(seconds=20).dispatch([], alive_for=timedelta(0))
        assert states(ledger, "r1") == [State.RUNNING]

    def test_five_lost_workers_are_enough(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        for _ in range(5):
            clocked().check([claim_one(clocked())])
            clocked.after(seconds=31).dispatch([], alive_for=timedelta(0))
        assert states(ledger, "r1") == [State.REVIEW]
        assert len(get(ledger, "r1").attempts) == 5


class TestCancel:
    @pytest.mark.parametrize("delay", [None, timedelta(days=30)])
    def test_immediate_while_nothing_was_sent(self, ledger, delay):
        accept(ledger, asking(id="r1", delay=delay))
        assert ledger.cancel(["r1"]) == [("cancelled", "r1")]
        assert states(ledger, "r1") == [State.CANCELLED]

    def test_by_any_of_its_requests(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        assert ledger.cancel(["r2"]) == [("cancelled", "r1")]

    def test_while_running_it_is_only_asked_for(self, ledger):
        accept(ledger, asking(id="r1"))
        claim_one(ledger)
        assert ledger.cancel(["r1"]) == [("requested", "r1")]
        assert get(ledger, "r1").cancel_requested_at is not None

    def test_handed_back_without_an_unclear_attempt_it_is_cancelled(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed = claim_one(ledger)
        ledger.cancel(["r1"])
        ledger.conclude([outcome(claimed, "queued")])
        assert states(ledger, "r1") == [State.CANCELLED]

    def test_with_an_unclear_attempt_a_look_decides_also_while_paused(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claim_one(ledger)
        clocked.after(seconds=31).dispatch([], alive_for=timedelta(0))
        clocked().account("default", "pause", reason="test")
        assert clocked().cancel(["r1"]) == [("requested", "r1")]
        assert claim_one(clocked()).cancel_requested_at > 0

    def test_unknown_and_ended_ones_are_told_apart(self, ledger):
        accept(ledger, asking(id="r1"))
        ledger.cancel(["r1"])
        assert ledger.cancel(["r1", "r0"]) == [("final", "r1"), ("unknown", "r0")]

    def test_a_request_after_the_cancel_becomes_a_deletion_of_its_own(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        claimed = claim_one(ledger)
        ledger.cancel(["r1"])
        accept(clocked.after(seconds=1), asking(id="r2"))
        clocked().conclude([outcome(claimed, "queued")])
        assert states(ledger, "r1", "r2") == [State.CANCELLED, State.QUEUED]


class TestTransitions:
    @pytest.mark.parametrize("start", [State.SCHEDULED, State.QUEUED, State.RUNNING, State.DELETED, State.FAILED])
    @pytest.mark.parametrize("end", list(State))
    def test_the_scripts_hold_the_table(self, ledger, redis_client, start, end):
        fields = {
            "finetune_id": "x",
            "account": "default",
            "lane": "single",
            "created_at": 1,
            "token": 0,
            "due_at": 1,
        }
        redis_client.hset("janitor:d:x", mapping={**fields, "state": start})
        script = redis_client.register_script(_whole("move(read('x'), input.to, 1)"))

        def move():
            script(keys=["janitor:"], args=[f'{{"to": "{end.value}"}}'])

        if end in TRANSITIONS[start]:
            move()
            assert redis_client.hget("janitor:d:x", "state") == end
        else:
            with pytest.raises(redis.ResponseError, match="no way from"):
                move()


class TestPrune:
    def test_old_records_go_with_every_trace_of_them(self, ledger, clocked, redis_client):
        accept(ledger, asking(id="r1", source="name", callbacks={"link": []}), asking(id="r2"))
        ledger.conclude([outcome(claim_one(ledger), "failed")])
        ledger.answered(["r1"])
        clocked.after(days=89).dispatch([], alive_for=timedelta(0))
        assert states(ledger, "r1") == [State.FAILED]
        assert clocked.after(days=2).dispatch([], alive_for=timedelta(0)).pruned == 1
        left = {key for key in redis_client.scan_iter() if "claim:" not in key}
        assert left <= {
            "janitor:accounts",
            "janitor:account:default",
            "janitor:workers",
            "janitor:dispatched",
            "janitor:stats:default",
            "janitor:wakeups:default",
        }

    def test_unfinished_ones_stay_however_old(self, ledger, clocked):
        accept(ledger, asking(id="r1", delay=timedelta(days=300)))
        clocked.after(days=200).dispatch([], alive_for=timedelta(0))
        assert states(ledger, "r1") == [State.SCHEDULED]


class TestOutbox:
    def test_owed_to_by_name_requests_only_and_handed_out_once(self, ledger, clocked):
        accept(ledger, asking("a", id="r1", source="name"), asking("b", id="r2", source="http"))
        ledger.cancel(["r1", "r2"])
        assert ledger.dispatch([], alive_for=timedelta(0)).owed == ["r1"]
        assert ledger.dispatch([], alive_for=timedelta(0)).owed == []
        assert clocked.after(seconds=61).dispatch([], alive_for=timedelta(0)).owed == ["r1"]
        ledger.answered(["r1"])
        assert clocked.after(seconds=61).dispatch([], alive_for=timedelta(0)).owed == []


class TestQueries:
    @pytest.fixture
    def many(self, ledger, clocked):
        for n in range(30):
            accept(
                clocked.after(seconds=1),
                asking(f"ft-{n % 10}", id=f"d{n:02}", account="default" if n % 3 else "other"),
            )
            if n % 2:
                clocked().cancel([f"d{n:02}"])
        return clocked()

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (Filter(states=(State.CANCELLED,)), lambda n: n % 2 == 1),
            (Filter(account="other", states=(State.CANCELLED,)), lambda n: n % 2 == 1 and n % 3 == 0),
            (Filter(finetune_id="ft-3"), lambda n: n % 10 == 3),
            (Filter(finetune_id="ft-3", account="other"), lambda n: n % 10 == 3 and n % 3 == 0),
        ],
    )
    def test_filters_newest_first(self, many, where, expected):
        found = [deletion.id for deletion in list_deletions(many, where).deletions]
        assert found == [f"d{n:02}" for n in reversed(range(30)) if expected(n)]

    def test_a_time_window(self, many):
        tenth, twentieth = get(many, "d11").created_at, get(many, "d21").created_at
        found = list_deletions(many, Filter(states=(State.CANCELLED,), since=tenth, until=twentieth)).deletions
        assert [deletion.id for deletion in found] == ["d21", "d19", "d17", "d15", "d13", "d11"]

    def test_pages_cover_everything_once_even_what_came_in_one_batch(self, ledger):
        accept(ledger, *(asking(f"ft-{n}") for n in range(470)))
        seen, cursor = [], None
        while True:
            deletions, cursor = list_deletions(ledger, Filter(), limit=100, cursor=cursor)
            seen += [deletion.id for deletion in deletions]
            if cursor is None:
                break
        assert len(seen) == len(set(seen)) == 470


def test_redis_away_is_one_line(tmp_path):
    gone = redis.Redis(unix_socket_path=str(tmp_path / "none.sock"), retry=Retry(NoBackoff(), 0))
    with gone as client, pytest.raises(LedgerUnavailable, match="Redis cannot be reached"):
        Ledger(client).accept([asking()])
