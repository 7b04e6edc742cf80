"""Siblings, the unfinished deletions of one finetune: which one runs, and what it is told of the others."""

from datetime import timedelta

import pytest

from tasks.ledger.queries import get
from tasks.records import FINAL, State
from tasks.text import finetune_key
from tests.conftest import NOW, PERMITS, accept, asking, claim, claim_all, claim_and_mark, finish, mark, states

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
UPPER = "3FA85F64-5717-4562-B3FC-2C963F66AFA6"


def behind(ledger, name="my-finetune"):
    """The deletions in the finetune's own list."""
    return ledger.redis.zrange(ledger.keys.siblings("default", name), 0, -1)


class TestOneAtATime:
    def test_only_one_runs_and_the_next_follows(self, ledger):
        accept(ledger, *(asking(id=f"r{n}") for n in range(5)))
        order = []
        for _ in range(5):
            (running,) = claim_all(ledger)
            order.append(running.id)
            finish(ledger, running, State.FAILED)
        assert order == [f"r{n}" for n in range(5)]

    def test_one_that_waits_is_still_queued_and_no_claim_meets_it_again(self, ledger, clocked):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        claim_all(ledger)
        assert (states(ledger, "r2"), behind(ledger)) == ([State.QUEUED], ["r2"])
        assert ledger.redis.zcard(ledger.keys.queue("default", "single")) == 0
        assert not clocked.after(seconds=10).maintain("default", PERMITS).wake, "there is nothing to start"

    def test_a_claim_passes_over_at_most_twenty_in_one_script(self, ledger):
        accept(ledger, asking("a", id="r"), *(asking("a", id=f"s{n:02}") for n in range(45)), asking("z", id="z"))
        assert claim(ledger).id == "r"
        assert (claim(ledger), len(behind(ledger, "a"))) == (None, 20)
        assert (claim(ledger), len(behind(ledger, "a"))) == (None, 40)
        assert claim(ledger).id == "z"

    def test_two_spellings_of_a_uuid_are_one_finetune(self, ledger):
        accept(ledger, asking(UPPER, id="r1"), asking(UPPER.lower(), id="r2"), asking("Name", id="r3"))
        accept(ledger, asking("name", id="r4"))
        assert [one.id for one in claim_all(ledger)] == ["r1", "r3", "r4"]
        assert ledger.redis.smembers(ledger.keys.unfinished("default", finetune_key(UPPER))) == {"r1", "r2"}
        assert get(ledger, "r1").finetune_id == UPPER, "it is deleted as it was asked for"

    def test_the_same_name_in_another_account_is_another_finetune(self, ledger):
        ledger.maintain("other", PERMITS)
        accept(ledger, asking(id="r1"), asking(id="r2", account="other"))
        assert [claim(ledger).id, claim(ledger, "other").id] == ["r1", "r2"]

    def test_a_finetune_is_busy_only_until_the_lease_of_its_deletion_ends(self, ledger, clocked):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        claim(ledger)
        accept(clocked.after(seconds=31), asking(id="r3"))
        assert claim(ledger), "maintenance has not come by yet"
        assert len(claim_all(ledger)) == 0, "and one is enough"

    def test_a_first_observation_is_not_made_beside_a_sibling_that_runs(self, ledger, clocked):
        accept(ledger, asking(id="r1"), asking(id="r2", delay=HOUR))
        running = claim(ledger)
        ledger.renew([running])
        clocked.after(seconds=29)
        ledger.renew([running])
        assert claim(clocked.after(seconds=2)) is None


class TestPutBack:
    @pytest.mark.parametrize(
        "leave",
        [
            lambda ledger, clocked, running: finish(ledger, running, State.FAILED),
            lambda ledger, clocked, running: finish(ledger, running, "back", delay=HOUR),
            lambda ledger, clocked, running: ledger.cancel([running.id]),
            lambda ledger, clocked, running: clocked.after(seconds=31).maintain("default", PERMITS),
        ],
        ids=["finished", "handed back", "cancelled", "worker lost"],
    )
    def test_whatever_takes_it_out_of_running_puts_the_next_back(self, ledger, clocked, leave):
        accept(ledger, asking(id="r1", incarnation="{}"), asking(id="r2", incarnation="{}"))
        running = claim(ledger)
        assert claim(ledger) is None
        leave(ledger, clocked, running)
        assert behind(ledger) == []
        assert "r2" in [one.id for one in claim_all(ledger)] or states(ledger, "r1") == [State.RUNNING]

    def test_the_earliest_due_time_is_next(self, ledger, clocked):
        accept(ledger, asking(id="runs"))
        running = claim(ledger)
        accept(ledger, asking(id="a-later", delay=timedelta(seconds=2), incarnation="{}"))
        accept(ledger, asking(id="b-sooner", delay=timedelta(seconds=1), incarnation="{}"))
        clocked.after(seconds=3)
        assert (claim(ledger), behind(ledger)) == (None, ["b-sooner", "a-later"])
        finish(ledger, running, State.FAILED)
        assert [claim(ledger).id, claim(ledger)] == ["b-sooner", None]

    def test_a_due_sibling_runs_before_one_that_waits_to_retry(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        finish(ledger, claim(ledger), "back", delay=MINUTE)
        assert claim(ledger).id == "r2"

    def test_maintenance_repairs_a_list_that_nothing_would_put_back(self, ledger):
        # Given the deletion that ran, with its record and its lease lost.
        accept(ledger, asking(id="r1"), asking(id="r2"))
        claim_all(ledger)
        ledger.redis.delete(ledger.keys.deletion("r1"), ledger.keys.leases("default", "single"))
        assert claim(ledger) is None
        ledger.maintain("default", PERMITS)
        assert claim(ledger).id == "r2"

    def test_it_looks_at_twenty_lists_a_round_and_at_each_in_turn(self, ledger, clocked):
        accept(ledger, *(asking(f"ft-{n}", id=f"{kind}-{n:02}") for n in range(30) for kind in ("a", "b")))
        ledger.maintain("default", 100)
        assert (len(claim_all(ledger)), claim(ledger)) == (30, None)
        for n in range(30):
            ledger.redis.delete(ledger.keys.deletion(f"a-{n:02}"))
        ledger.redis.delete(ledger.keys.leases("default", "single"))
        for repaired in (20, 10):
            clocked.after(seconds=1)
            ledger.maintain("default", 100)
            assert len(claim_all(ledger)) == repaired

    def test_one_without_a_record_is_passed_over(self, ledger):
        accept(ledger, *(asking(id=f"r{n}") for n in range(3)))
        running = claim(ledger)
        assert claim(ledger) is None
        ledger.redis.delete(ledger.keys.deletion("r1"))
        finish(ledger, running, State.FAILED)
        assert claim(ledger).id == "r2"


class TestUnsettledAttempt:
    @pytest.fixture
    def holder(self, ledger, clocked):
        """A deletion whose attempt may have been applied; it tries again in an hour."""
        accept(ledger, asking(id="holder", incarnation="{}"))
        claimed = claim_and_mark(ledger)
        finish(ledger, claimed, "back", attempt=1, delay=HOUR, found={"unclear_at": clocked.at_ms})
        return claimed

    def test_siblings_wait_for_the_deletion_that_made_it(self, ledger, clocked, holder):
        accept(ledger, asking(id="r2", incarnation="{}"))
        assert claim(ledger) is None
        assert claim(clocked.after(minutes=1)).id == "holder"

    def test_it_waits_at_most_a_minute_while_one_is_due(self, ledger, clocked, holder):
        accept(ledger, asking(id="r2", incarnation="{}"))
        claim(ledger)
        assert get(ledger, "holder").next_try_at <= clocked.now + MINUTE
        again = claim(clocked.after(minutes=1))
        finish(ledger, again, "back", delay=HOUR)
        assert get(ledger, "holder").next_try_at <= clocked.now + MINUTE

    def test_with_nobody_waiting_it_backs_off_as_it_likes(self, ledger, holder):
        assert get(ledger, "holder").next_try_at == NOW + HOUR

    @pytest.mark.parametrize("state", sorted(FINAL))
    def test_its_end_lets_the_next_go(self, ledger, clocked, holder, state):
        accept(ledger, asking(id="r2"))
        claim(ledger)
        finish(ledger, claim(clocked.after(minutes=1)), state)
        assert claim(ledger).id == "r2"

    def test_an_observation_that_settles_it_lets_the_next_go(self, ledger, clocked, holder):
        accept(ledger, asking(id="r2", incarnation="{}"))
        claim(ledger)
        finish(ledger, claim(clocked.after(minutes=1)), "back", delay=HOUR, found={"unclear_at": 0})
        assert claim(ledger).id == "r2"

    @pytest.mark.parametrize("how", ["final", "missing"])
    def test_a_hold_without_an_unfinished_record_is_ignored(self, ledger, holder, how):
        accept(ledger, asking(id="r2"))
        key = ledger.keys.deletion("holder")
        if how == "missing":
            ledger.redis.delete(key)
        else:
            ledger.redis.hset(key, "state", "failed")
        assert claim(ledger).id == "r2"

    def test_an_attempt_of_a_lost_worker_holds_it_too(self, ledger, clocked):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        claim_and_mark(ledger)
        clocked.after(seconds=31)
        assert claim(ledger).id == "r1", "which is taken back first"
        assert claim(ledger) is None

    def test_the_holder_itself_is_not_held_up(self, ledger, clocked, holder):
        assert claim(clocked.after(hours=1)).id == "holder"


class TestTries:
    """What a claim is told of the attempts of its siblings."""

    def tries(self, ledger):
        claimed = claim(ledger)
        return claimed, [(one.by, one.result, one.has_deleted) for one in claimed.tries]

    def test_a_deletion_by_a_sibling_is_told_with_what_it_deleted(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        claimed = claim_and_mark(ledger)
        found = {"incarnation": '{"settings":{"mode":"style"}}', "vantage": "host key", "born_after": 7}
        finish(ledger, claimed, "deleted", attempt=1, found=found)
        second, tries = self.tries(ledger)
        (told,) = second.tries
        assert tries == [("r1", "deleted", True)]
        assert (told.incarnation, told.vantage, told.born_after) == tuple(found.values())
        assert second.accepted < told.mark < told.finish

    def test_one_accepted_while_the_call_was_out_stands_between_its_numbers(self, ledger):
        accept(ledger, asking(id="r1"))
        claimed = claim_and_mark(ledger)
        accept(ledger, asking(id="r2"))
        finish(ledger, claimed, "deleted", attempt=1)
        second, _ = self.tries(ledger)
        assert second.tries[0].mark < second.accepted < second.tries[0].finish

    @pytest.mark.parametrize("steps_back", [0, 3600])
    def test_the_counter_orders_them_and_no_clock(self, ledger, clocked, steps_back):
        accept(ledger, asking(id="r1", requested_at=NOW - HOUR))
        claimed = claim_and_mark(ledger)
        accept(clocked.after(seconds=-steps_back), asking(id="r2", requested_at=NOW - 2 * HOUR))
        finish(ledger, claimed, "deleted", attempt=1)
        second, _ = self.tries(ledger)
        assert second.tries[0].mark < second.accepted < second.tries[0].finish

    def test_an_unclear_one_is_told_with_how_it_ended(self, ledger, clocked):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        finish(ledger, claim_and_mark(ledger), State.REVIEW, attempt=1, found={"unclear_at": clocked.at_ms})
        assert self.tries(ledger)[1] == [("r1", "unclear", False)]

    def test_one_that_was_not_applied_is_not_told(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        finish(ledger, claim_and_mark(ledger), State.FAILED, attempt=1)
        assert self.tries(ledger)[1] == []

    def test_nor_one_that_a_sibling_made_for_it(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2"), asking(id="r3"))
        finish(ledger, claim_and_mark(ledger), "deleted", attempt=1)
        finish(ledger, claim(ledger), "deleted", evidence="sibling", deleted_by="r1")
        assert self.tries(ledger)[1] == [("r1", "deleted", True)]
        assert (get(ledger, "r2").evidence, get(ledger, "r2").deleted_by) == ("sibling", "r1")

    def test_without_its_mark_it_tells_siblings_nothing(self, ledger):
        # Given a failover that has rolled the mark back.
        accept(ledger, asking(id="r1"), asking(id="r2"))
        claimed = claim(ledger)
        assert finish(ledger, claimed, "deleted", attempt=1) == "done"
        assert states(ledger, "r1") == [State.DELETED]
        assert self.tries(ledger)[1] == []

    @pytest.mark.parametrize("after", ["a mark that is refused", "a mark without its call"])
    def test_the_attempt_that_was_made_counts(self, ledger, clocked, after):
        # Given an attempt that may have been applied, a sibling asked for then, and no further call.
        accept(ledger, asking(id="r1"))
        claimed = claim_and_mark(ledger)
        accept(ledger, asking(id="r2"))
        if after == "a mark that is refused":
            ledger.account("default", "pause", reason="test")
        word = mark(ledger, claimed, 2, made=1, unclear_at=clocked.at_ms)
        assert word == ("paused" if after == "a mark that is refused" else "go")
        finish(ledger, claimed, State.REVIEW, attempt=1, found={"unclear_at": clocked.at_ms})
        ledger.account("default", "resume")
        second, tries = self.tries(ledger)
        assert tries == [("r1", "unclear", False)]
        assert second.tries[0].mark < second.accepted

    def test_the_last_ten_are_kept(self, ledger, clocked):
        accept(ledger, *(asking(id=f"r{n:02}") for n in range(13)))
        for _ in range(12):
            finish(ledger, claim_and_mark(ledger), State.REVIEW, attempt=1, found={"unclear_at": clocked.at_ms})
        assert [by for by, _, _ in self.tries(ledger)[1]] == [f"r{n:02}" for n in range(2, 12)]

    def test_they_are_forgotten_with_the_last_unfinished_deletion(self, ledger):
        accept(ledger, asking(id="r1"))
        finish(ledger, claim_and_mark(ledger), "deleted", attempt=1)
        accept(ledger, asking(id="r2"))
        assert self.tries(ledger)[1] == []

    def test_a_late_confirmation_is_told_too(self, ledger, clocked):
        accept(ledger, asking(id="r1"), asking(id="r2"))
        slow = claim_and_mark(ledger)
        clocked.after(seconds=31).maintain("default", PERMITS)
        finish(ledger, slow, "deleted", attempt=1)
        assert self.tries(ledger)[1] == [("r1", "deleted", True)]

    def test_what_a_sibling_deleted_is_told_after_its_record_is_pruned(self, ledger, clocked):
        # Given one that waits for longer than records are kept, and a sibling that was deleted long ago.
        accept(ledger, asking(id="r2"), asking(id="r1", delay=timedelta(days=120)))
        finish(ledger, claim_and_mark(ledger), "deleted", attempt=1)
        clocked.after(days=91).housekeep([], HOUR)
        assert states(ledger, "r2") == [None]
        # When the first is claimed, then it is told all the same.
        clocked.after(days=30)
        assert self.tries(ledger)[1] == [("r2", "deleted", True)]

    def test_what_was_not_deleted_after_all_is_told_no_longer(self, ledger, clocked):
        # Given one that waits, and a sibling whose deletion turned out to be a false statement.
        accept(ledger, asking(id="r2"), asking(id="r1", delay=HOUR))
        finish(ledger, claim_and_mark(ledger), "deleted", attempt=1)
        end = {"id": "r2", "finished_at": clocked.at_ms, "word": "still_there"}
        assert ledger.verify("default", [end], "it is still there") == ["r2"]
        # When the first is claimed, then it has to see for itself.
        clocked.after(hours=1)
        assert self.tries(ledger)[1] == []

    def test_an_end_changes_no_sibling(self, ledger):
        accept(ledger, *(asking(id=f"r{n}") for n in range(3)))
        finish(ledger, claim_and_mark(ledger), "deleted", attempt=1)
        assert states(ledger, "r1", "r2") == [State.QUEUED, State.QUEUED]

    def test_a_deletion_is_not_told_of_its_own_attempts(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        finish(ledger, claim_and_mark(ledger), "back", attempt=1, found={"unclear_at": clocked.at_ms})
        assert self.tries(ledger)[1] == []


class TestCancelOfOne:
    @pytest.mark.parametrize("which", ["first", "second", "third"])
    def test_it_withdraws_one_and_no_other(self, ledger, which):
        accept(ledger, *(asking(id=id_) for id_ in ("first", "second", "third")))
        claim_all(ledger)
        assert ledger.cancel([which])[0] == ["cancelled"]
        others = {"first", "second", "third"} - {which}
        assert State.CANCELLED not in states(ledger, *others)

    def test_the_next_sibling_runs_after_one_was_cancelled(self, ledger):
        accept(ledger, asking(id="r1"), asking(id="r2"), asking(id="r3"))
        running = claim(ledger)
        claim(ledger)
        ledger.cancel(["r2"])
        finish(ledger, running, State.FAILED)
        assert claim(ledger).id == "r3"

    def test_one_dated_before_a_cancel_is_not_withdrawn_by_it(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        ledger.cancel(["r1"])
        accept(clocked.after(seconds=5), asking(id="r2", requested_at=clocked.now - HOUR))
        assert states(ledger, "r1", "r2") == [State.CANCELLED, State.QUEUED]


class TestCleanup:
    """A cleanup's deletion beside others of its finetune."""

    def cleaning(self, clocked, id_, **fields):
        usual = {
            "source": "cleanup:plan",
            "incarnation": "{}",
            "delay": HOUR,
            "requested_at": clocked.now - MINUTE,
        }
        return asking(**{"id": id_, **usual, **fields})

    @pytest.fixture
    def clear(self, ledger, clocked):
        """No report of use waits in the broker."""
        return lambda: ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())

    def test_it_runs_after_its_grace(self, ledger, clocked, clear):
        accept(ledger, self.cleaning(clocked, "c1"))
        clocked.after(hours=1)
        clear()
        assert (claim(ledger).id, claim(ledger)) == ("c1", None)

    def test_a_finetune_has_at_most_one(self, ledger, clocked):
        accept(ledger, self.cleaning(clocked, "c1"), self.cleaning(clocked, "c2"))
        assert states(ledger, "c1", "c2") == [State.SCHEDULED, State.CANCELLED]
        assert get(ledger, "c2").message == "kept: another deletion of it is unfinished"

    def test_it_leaves_alone_what_somebody_wants_deleted(self, ledger, clocked):
        accept(ledger, asking(id="r1", delay=HOUR), self.cleaning(clocked, "c1"))
        assert states(ledger, "r1", "c1") == [State.SCHEDULED, State.CANCELLED]

    def test_a_record_that_is_lost_keeps_nothing(self, ledger, clocked):
        accept(ledger, asking(id="r1", delay=HOUR))
        ledger.redis.delete(ledger.keys.deletion("r1"))
        accept(ledger, self.cleaning(clocked, "c1"))
        assert states(ledger, "c1") == [State.SCHEDULED]

    @pytest.mark.parametrize("action", ["touch", "protect"])
    def test_use_and_protection_withdraw_it_and_nothing_else(self, ledger, clocked, action):
        accept(ledger, self.cleaning(clocked, "c1"), asking(id="r1", delay=HOUR))
        assert ledger.keep(action, "default", ["my-finetune"], clocked.at_ms + 10**9) == (["c1"], [])
        assert states(ledger, "c1", "r1") == [State.CANCELLED, State.SCHEDULED]
        assert str(get(ledger, "c1").message).startswith("kept: ")
        assert ledger.keep(action, "default", ["my-finetune"], clocked.at_ms + 10**9) == ([], [])

    @pytest.mark.parametrize("action", ["touch", "protect"])
    def test_they_withdraw_it_under_another_spelling_too(self, ledger, clocked, action):
        accept(ledger, self.cleaning(clocked, "c1", finetune_id=UPPER))
        assert ledger.keep(action, "default", [UPPER.lower()], clocked.at_ms + 10**9) == (["c1"], [])

    def test_what_is_protected_is_not_accepted_for_a_cleanup(self, ledger, clocked):
        ledger.keep("protect", "default", ["my-finetune"], clocked.at_ms + 10**9)
        accept(ledger, self.cleaning(clocked, "c1"))
        assert get(ledger, "c1").message == "kept: it is protected"
        ledger.keep("unprotect", "default", ["my-finetune"])
        accept(ledger, self.cleaning(clocked, "c2"))
        assert states(ledger, "c2") == [State.SCHEDULED]

    @pytest.mark.parametrize(("used_ago", "kept"), [(0, True), (60, True), (120, False)])
    def test_use_counts_from_when_the_plan_was_made(self, ledger, clocked, used_ago, kept):
        ledger.keep("touch", "default", ["my-finetune"])
        clocked.after(seconds=used_ago)
        accept(ledger, self.cleaning(clocked, "c1"))
        assert states(ledger, "c1") == [State.CANCELLED if kept else State.SCHEDULED]

    def test_the_claim_checks_again(self, ledger, clocked, clear):
        # Given one that is in use, though nothing withdrew it, as after a restored backup.
        accept(ledger, self.cleaning(clocked, "c1"))
        ledger.redis.hset(ledger.keys.used("default"), "my-finetune", clocked.at_ms)
        clocked.after(hours=1)
        clear()
        assert claim(ledger) is None
        assert states(ledger, "c1") == [State.CANCELLED]

    def test_a_call_that_is_out_is_followed_by_an_observation(self, ledger, clocked, clear):
        accept(ledger, self.cleaning(clocked, "c1", delay=None))
        clear()
        claimed = claim_and_mark(ledger)
        assert ledger.keep("touch", "default", ["my-finetune"]) == ([], ["c1"])
        assert (get(ledger, "c1").state, get(ledger, "c1").cancel_requested_at) == (State.RUNNING, clocked.now)
        finish(ledger, claimed, "deleted", attempt=1)
        assert states(ledger, "c1") == [State.DELETED]

    def test_it_waits_while_a_report_of_use_may_be_waiting(self, ledger, clocked, clear):
        accept(ledger, self.cleaning(clocked, "c1"), asking("other", id="r1"))
        clear()
        clocked.after(hours=1)
        assert [one.id for one in claim_all(ledger)] == ["r1"], "it became due after the broker was last clear"
        assert not clocked.after(seconds=10).maintain("default", PERMITS).wake
        clear()
        assert [one.id for one in claim_all(ledger)] == ["c1"]

    def test_behind_one_that_cannot_run_none_starts_that_was_due_later(self, ledger, clocked, clear):
        accept(ledger, self.cleaning(clocked, "c1", delay=None), asking(id="r1"))
        running = claim(ledger)
        clear()
        accept(clocked.after(seconds=5), self.cleaning(clocked, "c2", finetune_id="other", delay=None))
        assert (running.id, claim(ledger)) == ("r1", None)

    def test_a_report_that_waited_comes_before_it(self, ledger, clocked, clear):
        accept(ledger, self.cleaning(clocked, "c1"))
        clocked.after(hours=2)
        ledger.keep("touch", "default", ["my-finetune"])
        clear()
        assert (claim(ledger), states(ledger, "c1")) == (None, [State.CANCELLED])

    def test_many_that_wait_for_reports_stand_in_nobodys_way(self, ledger, clocked):
        due = [self.cleaning(clocked, f"c{n}", finetune_id=f"c-{n}", delay=None) for n in range(30)]
        accept(ledger, *due, *(asking(f"b-{n}", bulk=True) for n in range(3)))
        assert [one.lane for one in claim_all(ledger)] == ["bulk"] * 3

    def test_reports_of_use_that_wait_hold_up_nobody_elses_deletion(self, ledger, clocked, clear):
        # Given a cleanup's attempt that may have been applied, and one that somebody else asks for.
        accept(ledger, self.cleaning(clocked, "c1", delay=None))
        clear()
        finish(ledger, claim_and_mark(ledger), "back", attempt=1, found={"unclear_at": clocked.at_ms})
        accept(ledger, asking(id="r1", incarnation="{}"))
        # When reports of use wait from then on, so that no cleanup may start
        clocked.after(minutes=1)
        # Then an observation of the cleanup's settles its attempt, and the other one may run.
        settling = claim(ledger)
        assert (settling.id, settling.kind) == ("c1", "observe")
        finish(ledger, settling, "observed", found={"unclear_at": 0})
        assert (claim(ledger).id, claim(ledger)) == ("r1", None)

    def test_so_it_is_if_what_a_retry_continues_is_unclear(self, ledger, clocked, clear):
        accept(ledger, self.cleaning(clocked, "c1", delay=None))
        clear()
        finish(ledger, claim_and_mark(ledger), State.REVIEW, attempt=1, found={"unclear_at": clocked.at_ms})
        accept(ledger, asking(id="c2", retry_of="c1"), asking(id="r1", incarnation="{}"))
        clocked.after(minutes=1)
        assert [(one.id, one.kind) for one in claim_all(ledger)] == [("c2", "observe")]
