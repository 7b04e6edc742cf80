"""The ledger on a real Redis: how requests come in, and which deletion a runner gets next."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tasks.errors import LedgerRefused, LedgerUnavailable
from tasks.ledger.queries import Filter, get, list_deletions
from tasks.ledger.store import Ledger
from tasks.ledger.types import Finish
from tasks.records import State
from tests.conftest import (
    NOW,
    PERMITS,
    accept,
    asking,
    carry_out_one,
    claim,
    claim_all,
    claim_and_mark,
    finish,
    register,
    states,
)  # fmt: skip

HOUR = timedelta(hours=1)
FAILED = Finish(result=State.FAILED, message="no")


def cleaning(finetune_id, **fields):
    """A cleanup's request, whose plan was made just now."""
    return asking(finetune_id, **{"source": "cleanup:plan", "bulk": True, "incarnation": "{}", **fields})


class TestAccept:
    def test_a_request_becomes_a_queued_deletion_under_its_own_id(self, ledger):
        assert accept(ledger, asking(id="r1", reason="trial over", requested_by="billing")) == ["accepted"]
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.reason, deletion.requested_by) == (State.QUEUED, "trial over", "billing")
        assert deletion.created_at == deletion.asked_at == deletion.due_at == NOW

    def test_two_requests_for_one_finetune_are_two_deletions(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2", delay=HOUR))
        assert states(ledger, "r1", "r2") == [State.QUEUED, State.SCHEDULED]
        assert get(ledger, "r2").due_at == NOW + HOUR

    def test_the_same_request_again_changes_nothing(self, ledger, clocked):
        request = asking(id="r1", digest="d1")
        accept(ledger, request)
        before = get(ledger, "r1")
        assert accept(clocked.after(seconds=5), request) == ["known"]
        assert get(ledger, "r1") == before
        assert len(claim_all(ledger)) == 1

    def test_the_same_id_with_other_arguments_is_a_conflict_and_changes_nothing(self, ledger):
        accept(ledger, asking("a", id="r1", digest="d1"))
        before = get(ledger, "r1")
        assert accept(ledger, asking("b", id="r1", digest="d2")) == ["conflict"]
        assert get(ledger, "r1") == before
        assert accept(ledger, asking("a", id="r2", digest="d"), asking("b", id="r2", digest="e"))[1] == "conflict"

    def test_a_final_deletion_still_answers_for_its_id(self, ledger):
        accept(ledger, asking(id="r1", digest="d1"))
        carry_out_one(ledger)
        assert accept(ledger, asking(id="r1", digest="d1"), asking(id="r1", digest="d2")) == ["known", "conflict"]
        assert claim(ledger) is None

    @pytest.mark.parametrize(
        ("fields", "due_at", "asked_at"),
        [
            ({"due_at": NOW + HOUR}, NOW + HOUR, NOW),
            ({"due_at": NOW - HOUR}, NOW, NOW),
            ({"requested_at": NOW - HOUR}, NOW, NOW - HOUR),
            ({"requested_at": NOW + HOUR}, NOW, NOW),
        ],
        ids=["later", "time in the past", "dated back", "dated ahead"],
    )
    def test_times_are_bounded_by_now(self, ledger, fields, due_at, asked_at):
        accept(ledger, asking(id="r1", **fields))
        assert (get(ledger, "r1").due_at, get(ledger, "r1").asked_at) == (due_at, asked_at)

    def test_many_requests_are_written_in_parts(self, ledger):
        assert accept(ledger, *(asking(f"ft-{i}", bulk=True) for i in range(1_100))) == ["accepted"] * 1_100
        assert len(list_deletions(ledger, Filter(), limit=2_000).deletions) == 1_100

    def test_accounts_keep_their_own_queues(self, ledger):
        register(ledger, "other")
        accept(ledger, asking(id="r1"), asking(id="r2", account="other"))
        assert [one.id for one in claim_all(ledger, "other")] == ["r2"]


class TestRetry:
    @pytest.fixture
    def old(self, ledger, clocked):
        """A deletion with an unclear attempt that a person has to look at."""
        accept(ledger, asking(id="old", requested_at=NOW - HOUR, reason="trial over"))
        found = {"incarnation": '{"settings":{"mode":"style"}}', "vantage": "host key", "observed_at": 5}
        carry_out_one(ledger, State.REVIEW, found={**found, "unclear_at": clocked.at_ms})
        return get(ledger, "old")

    def test_it_takes_over_what_the_old_one_knew(self, ledger, old, clocked):
        unclear_at = clocked.at_ms
        accept(clocked.after(hours=1), asking(id="new", retry_of="old", delay=timedelta(0)))
        new, claimed = get(ledger, "new"), claim(ledger)
        assert (new.retry_of, get(ledger, "old").retried_by) == ("old", "new")
        assert (new.asked_at, new.incarnation, new.vantage) == (old.asked_at, old.incarnation, old.vantage)
        assert (claimed.unclear_at, claimed.observed_at) == (unclear_at, 5)

    def test_its_unsettled_attempt_holds_the_finetune_again(self, ledger, old):
        accept(ledger, asking(id="other"), asking(id="new", retry_of="old", delay=timedelta(minutes=1)))
        assert claim(ledger) is None, "the due one waits for the attempt of the other"

    def test_the_old_one_keeps_its_state(self, ledger, old):
        accept(ledger, asking(id="new", retry_of="old"))
        assert states(ledger, "old", "new") == [State.REVIEW, State.QUEUED]

    def test_one_whose_old_deletion_is_pruned_deletes_nothing(self, ledger):
        # Nobody knows any more which finetune was meant.
        accept(ledger, asking(id="new", retry_of="long-gone"))
        assert (claim(ledger), states(ledger, "new")) == (None, [State.CANCELLED])
        assert get(ledger, "new").message == "withdrawn: the record that it retries is no longer kept"


class TestWakeups:
    def test_one_for_the_first_request_none_while_it_is_on_its_way(self, ledger):
        assert ledger.accept([asking("a")])[1] == ["default"]
        assert ledger.accept([asking("b")])[1] == []

    def test_maintenance_replaces_a_lost_one(self, ledger, clocked):
        ledger.accept([asking()])
        assert not clocked.after(seconds=4).maintain("default", PERMITS).wake
        assert clocked.after(seconds=2).maintain("default", PERMITS).wake

    def test_a_begun_one_is_no_longer_on_its_way(self, ledger):
        ledger.accept([asking("a"), asking("b")])
        assert ledger.claim("default", "w:1", begun=True).more, "one more, as more is due"
        assert ledger.accept([asking("c")])[1] == [], "that one is on its way now"

    @pytest.mark.parametrize("stop", ["pause", "park", "cool"])
    def test_none_while_nothing_may_start(self, ledger, stop):
        ledger.account("default", stop, reason="test", ms=60_000, most_ms=60_000, probe_ms=1_000)
        assert ledger.accept([asking()])[1] == []

    def test_none_while_no_permit_is_free(self, ledger, clocked):
        accept(ledger, *(asking(f"ft-{n}") for n in range(PERMITS + 1)))
        claim_all(ledger)
        assert not clocked.after(seconds=10).maintain("default", PERMITS).wake

    def test_the_caller_may_go_on_as_a_runner_itself(self, ledger):
        assert ledger.accept([asking("a")], wake=False)[1] == []
        assert ledger.accept([asking("b")])[1] == ["default"]

    def test_a_claim_asks_for_no_more_than_there_is(self, ledger):
        accept(ledger, asking("a"))
        assert not ledger.claim("default", "w:1", begun=True).more


class TestClaim:
    def test_each_deletion_goes_to_one_of_many_runners(self, ledger, redis_url):
        register(ledger, permits=1000)
        accept(ledger, *(asking(f"ft-{i}") for i in range(100)))

        def take(n):
            with redis.Redis.from_url(redis_url, decode_responses=True) as client:
                theirs = Ledger(client, now_ms=ledger.now_ms)
                return [theirs.claim("default", f"worker-{n}:{call}").claim for call in range(20)]

        with ThreadPoolExecutor(8) as pool:
            taken = [one.id for claims in pool.map(take, range(8)) for one in claims if one]
        assert len(taken) == len(set(taken)) == 100

    def test_it_says_why_there_is_none(self, ledger):
        assert ledger.claim("default", "w:1").why == "idle"
        accept(ledger, *(asking(f"ft-{n}") for n in range(PERMITS + 1)))
        claim_all(ledger)
        assert ledger.claim("default", "w:2").why == "full"

    def test_asked_again_for_the_same_call_it_gives_the_same_answer(self, ledger):
        accept(ledger, asking("a"), asking("b"))
        first = ledger.claim("default", "w:7")
        assert ledger.claim("default", "w:7") == first
        assert ledger.claim("default", "w:8").claim.id != first.claim.id

    def test_the_token_is_the_claims_own(self, ledger):
        accept(ledger, asking())
        assert ledger.claim("default", "process:3:7").claim.token == "process:3:7"

    def test_what_is_scheduled_waits_for_its_time(self, ledger, clocked):
        accept(ledger, asking(delay=HOUR, incarnation="{}"))
        assert claim(clocked.after(minutes=59)) is None
        assert claim(clocked.after(minutes=1)).kind == "delete"

    def test_what_may_only_be_observed_goes_first(self, ledger, clocked):
        accept(ledger, asking("a", id="a"), *(asking(f"ft-{n}") for n in range(3)))
        finish(ledger, claim_and_mark(ledger), "back", delay=HOUR, attempt=1, found={"unclear_at": clocked.at_ms})
        ledger.cancel(["a"])
        assert [(one.id, one.kind) for one in claim_all(ledger, most=1)] == [("a", "resolve")]

    @pytest.mark.parametrize("stop", ["pause", "park", "cool"])
    def test_nothing_starts_while_the_account_is_stopped_and_nothing_is_rewritten(self, ledger, stop):
        accept(ledger, asking(id="r1"))
        before = get(ledger, "r1")
        ledger.account("default", stop, reason="test", ms=60_000, most_ms=60_000, probe_ms=60_000)
        assert ledger.claim("default", "w:1").why == {"pause": "paused", "park": "parked", "cool": "cooling"}[stop]
        assert get(ledger, "r1") == before

    def test_a_pause_of_everything_stops_every_account(self, ledger):
        accept(ledger, asking())
        ledger.account("*", "pause", reason="test")
        assert claim(ledger) is None
        ledger.account("*", "resume")
        assert claim(ledger)

    def test_only_observations_are_made_while_paused(self, ledger, clocked):
        accept(ledger, asking("a", id="a"), asking("b", id="b"))
        finish(ledger, claim_and_mark(ledger), "back", attempt=1, delay=HOUR, found={"unclear_at": clocked.at_ms})
        ledger.cancel(["a"])
        ledger.account("default", "pause", reason="test")
        clocked.after(seconds=31)
        assert [(one.id, one.kind) for one in claim_all(ledger)] == [("a", "resolve"), ("b", "observe")]


class TestLanes:
    def test_the_lane_with_the_fewest_running_is_next(self, ledger, clocked):
        accept(
            ledger, *(asking(f"single-{n}") for n in range(9)), *(asking(f"bulk-{n}", bulk=True) for n in range(9))
        )
        assert [one.lane for one in claim_all(ledger)].count("bulk") == PERMITS / 2

    def test_with_one_permit_the_lanes_take_turns(self, ledger, clocked):
        register(ledger, permits=1)
        for n in range(6):
            accept(ledger, asking(f"s-{n}"), asking(f"b-{n}", bulk=True), cleaning(f"c-{n}"))
        ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())
        lanes = [carry_out_one(ledger).lane for _ in range(6)]
        assert lanes == lanes[:3] * 2
        assert set(lanes) == {"single", "bulk", "cleanup"}

    @pytest.mark.parametrize("busy", ["single", "bulk"])
    def test_no_lane_waits_for_ever_behind_another(self, ledger, busy):
        register(ledger, permits=1)
        accept(ledger, asking("waits", bulk=busy == "single"))
        for n in range(3):
            accept(ledger, asking(f"ft-{n}", bulk=busy == "bulk"))
            if carry_out_one(ledger).finetune_id == "waits":
                return
        pytest.fail("the other lane was never served")

    def test_first_observations_have_at_most_half_of_the_permits(self, ledger, clocked):
        accept(ledger, *(asking(f"later-{n}", delay=HOUR) for n in range(20)))
        clocked.after(seconds=31)
        assert [one.kind for one in claim_all(ledger)] == ["observe"] * (PERMITS // 2)
        accept(ledger, *(asking(f"now-{n}") for n in range(20)))
        assert [one.kind for one in claim_all(ledger)] == ["delete"] * (PERMITS // 2)

    def test_with_one_permit_first_observations_may_have_it(self, ledger, clocked):
        register(ledger, permits=1)
        accept(ledger, asking(delay=HOUR))
        clocked.after(seconds=31)
        assert [one.kind for one in claim_all(ledger)] == ["observe"]


class TestFirstObservation:
    def test_what_is_not_claimed_for_thirty_seconds_is_observed_oldest_request_first(self, ledger, clocked):
        accept(ledger, asking("a", id="older", delay=2 * HOUR))
        accept(clocked.after(seconds=1), asking("b", id="newer", delay=HOUR))
        assert claim(clocked.after(seconds=28)) is None
        clocked.after(seconds=5)
        assert [(one.kind, one.id) for one in claim_all(ledger)] == [("observe", "older"), ("observe", "newer")]

    def test_what_is_due_and_cannot_start_is_observed_too(self, ledger, clocked):
        accept(ledger, asking())
        ledger.account("default", "pause", reason="test")
        assert claim(ledger) is None
        assert claim(clocked.after(seconds=31)).kind == "observe"

    def test_what_a_plan_has_observed_is_not_observed_first(self, ledger, clocked):
        accept(ledger, asking(delay=HOUR, incarnation="{}"))
        assert claim(clocked.after(seconds=31)) is None

    @pytest.mark.parametrize(("delay", "state"), [(HOUR, State.SCHEDULED), (None, State.QUEUED)])
    def test_the_finding_is_kept_and_it_waits_as_before(self, ledger, clocked, delay, state):
        accept(ledger, asking(id="r1", delay=delay))
        ledger.account("default", "pause", reason="test")
        observing = claim(clocked.after(seconds=31))
        found = {"incarnation": '{"settings":{"mode":"style"}}', "observed_at": 1_000, "vantage": "host key"}
        due_at = get(ledger, "r1").due_at
        assert finish(ledger, observing, "observed", found=found) == "done"
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.incarnation) == (state, {"settings": {"mode": "style"}})
        assert (deletion.due_at, deletion.vantage) == (due_at, "host key")
        assert claim(clocked.after(seconds=31)) is None, "once is enough"

    def test_one_that_failed_comes_again(self, ledger, clocked):
        accept(ledger, asking(delay=HOUR))
        finish(ledger, claim(clocked.after(seconds=31)), "observed", delay=timedelta(seconds=30))
        assert claim(clocked.after(seconds=29)) is None
        assert claim(clocked.after(seconds=2)).kind == "observe"

    @pytest.mark.parametrize("end", ["lost", "handed back"])
    def test_one_that_was_not_made_comes_again(self, ledger, clocked, end):
        accept(ledger, asking(id="r1", delay=HOUR))
        observing = claim(clocked.after(seconds=31))
        if end == "lost":
            clocked.after(seconds=31).maintain("default", PERMITS)
        else:
            finish(ledger, observing, "back", counted=False)
        assert states(ledger, "r1") == [State.SCHEDULED]
        assert claim(clocked.after(seconds=31)).kind == "observe"

    def test_while_the_finetune_is_busy_it_is_put_off_for_half_a_minute(self, ledger, clocked):
        accept(ledger, asking(id="runs"), asking(id="waits", delay=HOUR))
        running = claim(ledger)
        clocked.after(seconds=31)
        ledger.renew([running])
        assert claim(ledger) is None
        finish(ledger, running, State.FAILED)
        assert claim(clocked.after(seconds=29)) is None
        assert claim(clocked.after(seconds=2)).id == "waits"

    def test_many_of_one_busy_finetune_keep_no_other_waiting(self, ledger, clocked):
        # Given 200 requests for a finetune that is held by an unclear attempt, which are all to be observed first,
        accept(ledger, *(asking(id=f"r{n}") for n in range(200)))
        finish(ledger, claim_and_mark(ledger), "back", attempt=1, delay=HOUR, found={"unclear_at": clocked.at_ms})
        accept(clocked.after(seconds=31), asking("another", id="free"))
        # when a runner asks, as often as it is told that there is more, then the other finetune is claimed.
        claims = []
        for n in range(20):
            claimed = ledger.claim("default", f"w:{n}")
            claims += [claimed.claim.id] if claimed.claim else []
            assert claims or claimed.more
        assert "free" in claims

    def test_gone_at_the_first_observation_ends_it(self, ledger, clocked):
        accept(ledger, asking(id="r1", delay=HOUR))
        finish(ledger, claim(clocked.after(seconds=31)), State.NOT_FOUND)
        assert states(ledger, "r1") == [State.NOT_FOUND]

    def test_a_retry_that_waits_keeps_its_time(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        finish(ledger, claim(ledger), "back", delay=HOUR)
        next_try_at = get(ledger, "r1").next_try_at
        observing = claim(clocked.after(seconds=31))
        assert (observing.kind, finish(ledger, observing, "observed")) == ("observe", "done")
        assert (get(ledger, "r1").next_try_at, states(ledger, "r1")) == (next_try_at, [State.SCHEDULED])

    def test_a_cancel_meanwhile_ends_it(self, ledger, clocked):
        accept(ledger, asking(id="r1", delay=HOUR))
        observing = claim(clocked.after(seconds=31))
        assert ledger.cancel(["r1"])[0] == ["cancelled"]
        assert finish(ledger, observing, "observed") == "late"
        assert states(ledger, "r1") == [State.CANCELLED]


class TestPermits:
    def test_a_running_deletion_is_a_permit_whatever_it_does(self, ledger):
        accept(ledger, *(asking(f"ft-{i}") for i in range(PERMITS + 2)))
        held = claim_all(ledger)
        assert len(held) == PERMITS
        finish(ledger, held[0], State.FAILED)
        assert len(claim_all(ledger)) == 1

    def test_other_calls_have_half_of_them(self, ledger):
        words = [ledger.permit("default", f"survey:{n}", PERMITS).word for n in range(5)]
        assert words == ["go"] * 4 + ["full"]
        assert ledger.permit("default", "survey:0", PERMITS).word == "go", "a holder keeps its own"
        ledger.release("default", "survey:0")
        assert ledger.permit("default", "survey:9", PERMITS).word == "go"
        accept(ledger, *(asking(f"ft-{i}") for i in range(PERMITS)))
        assert len(claim_all(ledger)) == PERMITS - 4

    def test_running_deletions_leave_them_none(self, ledger):
        accept(ledger, *(asking(f"ft-{i}") for i in range(PERMITS)))
        claim_all(ledger)
        assert ledger.permit("default", "survey:0", PERMITS).word == "full"

    def test_a_permit_of_a_killed_process_expires_when_its_call_must_have_ended(self, ledger, clocked):
        register(ledger, permits=1)
        assert ledger.permit("default", "survey:0", 1).word == "go", "one of one"
        accept(ledger, asking())
        assert claim(clocked.after(seconds=19)) is None
        assert claim(clocked.after(seconds=2))

    @pytest.mark.parametrize(
        ("stop", "word", "probe"),
        [("pause", "go", "go"), ("park", "parked", "go"), ("cool", "cooling", "cooling")],
    )
    def test_a_cool_down_and_a_park_stop_permits(self, ledger, stop, word, probe):
        ledger.account("default", stop, reason="test", ms=5_000, most_ms=60_000, probe_ms=5_000)
        assert ledger.permit("default", "a", PERMITS).word == word
        assert ledger.permit("default", "a", PERMITS, probe=True).word == probe


def test_redis_away_is_one_line(tmp_path):
    gone = redis.Redis(unix_socket_path=str(tmp_path / "none.sock"), retry=Retry(NoBackoff(), 0))
    with gone as client, pytest.raises(LedgerUnavailable, match="Redis cannot be reached"):
        Ledger(client).accept([asking()])


@pytest.mark.parametrize("key", ["unfinished", "names", "index", "queue", "first", "stats"])
def test_what_redis_refused_half_way_is_accepted_when_it_comes_again(ledger, key):
    # Given a key that somebody else wrote, so that a request is refused in the middle of its script,
    keys, arguments = ledger.keys, {"unfinished": ["a"], "index": ["queued"], "queue": ["single"]}
    name = getattr(keys, key)("default", *arguments.get(key, []))
    ledger.redis.set(name, "written by hand")
    with pytest.raises(LedgerRefused):
        ledger.accept([asking("a", id="d1")])
    # when that is corrected, and the same request comes again,
    ledger.redis.delete(name)
    (answer,), _ = ledger.accept([asking("a", id="d1")])
    # then it is accepted and carried out, once.
    assert answer.answer == "accepted"
    assert finish(ledger, claim(ledger)) == "done"
    (answer,), _ = ledger.accept([asking("a", id="d1")])
    assert (answer.answer, claim(ledger)) == ("known", None)
