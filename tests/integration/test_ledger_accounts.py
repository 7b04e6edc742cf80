"""The ledger on a real Redis: stops of accounts, maintenance, verification, lists."""

import json
from datetime import timedelta

import pytest

from tasks.ledger.queries import Filter, ended, get, list_deletions, stopped_accounts
from tasks.ledger.statistics import statistics
from tasks.ledger.types import Act
from tasks.records import State, from_ms
from tests.conftest import NOW, PERMITS, accept, asking, carry_out_one, claim, claim_all, finish, mark, states

HOUR = timedelta(hours=1)
ATTEMPT = json.dumps({"at": 1, "sent": True, "http_status": 500})
DAYS_400 = timedelta(days=400)


class TestAccountStops:
    def test_a_cool_down_ends_by_itself(self, ledger, clocked):
        accept(ledger, asking())
        ledger.account("default", "cool", reason="HTTP 429", ms=5_000, step_ms=1_000, most_ms=60_000)
        assert stopped_accounts(ledger)["default"].cooling == "HTTP 429"
        assert claim(clocked.after(seconds=4)) is None
        assert claim(clocked.after(seconds=2))

    def test_cool_downs_without_a_time_double_while_they_follow_each_other(self, ledger, clocked):
        def lengths():
            for _ in range(5):
                length = ledger.account("default", "cool", reason="402", ms=None, step_ms=30_000, most_ms=300_000)
                clocked.after(milliseconds=length + 1_000)
                yield length

        assert list(lengths()) == [30_000, 60_000, 120_000, 240_000, 300_000]

    def test_one_that_asks_for_nothing_names_no_time(self, ledger):
        assert ledger.account("default", "cool", reason="429", ms=0, step_ms=1_000, most_ms=60_000) == 1_000

    @pytest.mark.parametrize("ms", [3_000, None])
    def test_a_shorter_one_does_not_end_a_longer_one(self, ledger, clocked, ms):
        ledger.account("default", "cool", reason="429", ms=600_000, step_ms=1_000, most_ms=60_000)
        accept(clocked.after(seconds=1), asking())
        assert ledger.account("default", "cool", reason="429", ms=ms, step_ms=1_000, most_ms=60_000) == 599_000
        assert ledger.claim("default", "w:1").why == "cooling"
        assert claim(clocked.after(seconds=500)) is None

    @pytest.mark.parametrize("back", [timedelta(minutes=10), timedelta(days=1)])
    def test_one_never_lasts_longer_than_it_was_given_for(self, ledger, clocked, back):
        ledger.account("default", "cool", reason="429", ms=5_000, step_ms=1_000, most_ms=60_000)
        accept(ledger, asking())
        clocked.after(seconds=-back.total_seconds())
        assert claim(ledger), "if Redis's clock is set back"

    def test_after_a_clock_step_the_next_one_counts_from_now(self, ledger, clocked):
        ledger.account("default", "cool", reason="429", ms=5_000, step_ms=1_000, most_ms=60_000)
        accept(clocked.after(hours=-1), asking())
        assert ledger.account("default", "cool", reason="429", ms=7_000, step_ms=1_000, most_ms=60_000) == 7_000
        assert ledger.claim("default", "w:1").why == "cooling"
        assert claim(clocked.after(seconds=8))

    def test_a_parked_account_is_probed_by_one_at_a_time(self, ledger, clocked):
        assert ledger.account("default", "probe", probe_ms=30_000) == 0, "it is not parked"
        ledger.account("default", "park", reason="HTTP 403", probe_ms=30_000)
        assert ledger.account("default", "probe", probe_ms=30_000) == 0
        clocked.after(seconds=31)
        assert [ledger.account("default", "probe", probe_ms=30_000) for _ in range(2)] == [1, 0]

    @pytest.mark.parametrize("start", ["unpark", "resume"])
    def test_a_parked_account_starts_again(self, ledger, clocked, start):
        accept(ledger, asking())
        ledger.account("default", "park", reason="HTTP 403", probe_ms=30_000)
        clocked.after(hours=1).account("default", start)
        assert claim(ledger).started_at == clocked.at_ms

    @pytest.mark.parametrize("name", ["default", "*"])
    def test_a_deadline_counts_from_when_the_account_was_started_again(self, ledger, clocked, name):
        accept(ledger, asking(id="r1"))
        ledger.account(name, "pause", reason="test")
        clocked.after(days=8).account(name, "resume")
        assert get(ledger, "r1").deadline == clocked.now + timedelta(days=7)
        assert claim(ledger).started_at == clocked.at_ms

    def test_a_resume_of_what_ran_moves_no_deadline(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        clocked.after(days=1).account("default", "resume")
        assert get(ledger, "r1").deadline == NOW + timedelta(days=7)

    def test_an_alarm_pauses_even_if_the_lease_is_lost(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        held = claim(ledger)
        clocked.after(seconds=31).maintain("default", PERMITS)
        assert finish(ledger, held, State.REVIEW, pause="the API deleted another one") == "late"
        assert (states(ledger, "r1"), claim(ledger)) == ([State.REVIEW], None)

    def test_what_waits_to_settle_a_cancel_is_woken_while_paused_too(self, ledger, clocked):
        accept(ledger, asking(id="r1"))
        held = claim(ledger)
        mark(ledger, held)
        ledger.cancel(["r1"])
        ledger.account("default", "pause")
        finish(ledger, held, "back", attempt=1, delay=timedelta(seconds=20), found={"unclear_at": clocked.at_ms})
        assert clocked.after(minutes=1).maintain("default", PERMITS).wake
        # And again, if that observation asks for another one.
        again = claim(ledger)
        assert again.kind == "resolve"
        finish(ledger, again, "back", delay=timedelta(seconds=20))
        assert not clocked.after(seconds=10).maintain("default", PERMITS).wake
        assert clocked.after(seconds=11).maintain("default", PERMITS).wake
        assert claim(ledger).kind == "resolve"

    def test_a_cool_down_of_before_a_clock_step_is_not_shown(self, ledger, clocked):
        ledger.account("default", "cool", reason="429", ms=60_000, step_ms=1_000, most_ms=60_000)
        clocked.after(hours=-10)
        assert stopped_accounts(ledger) == {}
        assert [one.cool_down_seconds for one in statistics(ledger).accounts.values()] == [0]


class TestHousekeep:
    def test_old_records_go_with_every_trace_of_them(self, ledger, clocked):
        accept(
            ledger, asking("a", id="r1", source="name", callbacks={"link": []}), asking("b", id="r2", delay=HOUR)
        )
        carry_out_one(ledger, lines=(ATTEMPT,))
        ledger.cancel(["r2"])
        assert ledger.housekeep([], DAYS_400)[1] == 0
        assert clocked.after(days=91).housekeep([], DAYS_400)[1] == 2
        kinds = {key.removeprefix("janitor:2:").split(":")[0] for key in ledger.redis.scan_iter()}
        assert kinds - {"memo"} == {"accounts", "account", "seq", "stats", "workers", "maintained"}

    def test_unfinished_ones_stay_however_old(self, ledger, clocked):
        accept(ledger, asking(id="r1", delay=timedelta(days=300)))
        clocked.after(days=200).housekeep([], DAYS_400)
        assert states(ledger, "r1") == [State.SCHEDULED]

    def test_it_does_a_bounded_part_each_time(self, ledger, clocked):
        accept(ledger, *(asking(f"ft-{n}", id=f"r{n}") for n in range(30)))
        ledger.cancel([f"r{n}" for n in range(30)])
        clocked.after(days=91)
        assert [ledger.housekeep([], DAYS_400, most=20)[1] for _ in range(3)] == [20, 10, 0]

    def test_a_review_stays_until_a_person_has_looked_at_it(self, ledger, clocked):
        accept(ledger, asking("a", id="open"), asking("b", id="resolved"))
        for claimed in claim_all(ledger):
            finish(ledger, claimed, State.REVIEW)
        ledger.resolve("resolved", "deleted", "asked the API", Act("ana", "command"))
        assert clocked.after(days=91).housekeep([], DAYS_400)[1] == 1
        assert states(ledger, "open", "resolved") == [State.REVIEW, None]
        ledger.resolve("open", "deleted", "asked the API", Act("ana", "command"))
        assert clocked.after(days=2).housekeep([], DAYS_400)[1] == 1

    def test_results_are_handed_out_once_a_minute_until_they_are_written(self, ledger, clocked):
        accept(ledger, asking("a", id="r1", source="name"), asking("b", id="r2", source="http"))
        ledger.cancel(["r1", "r2"])
        due = [ledger.housekeep([], DAYS_400)[0], clocked.after(seconds=6).housekeep([], DAYS_400)[0]]
        assert due == [[], ["r1"]], "the process that finished it has five seconds to write it"
        assert ledger.housekeep([], DAYS_400)[0] == []
        assert clocked.after(seconds=61).housekeep([], DAYS_400)[0] == ["r1"]
        ledger.result_written("r1")
        assert clocked.after(seconds=61).housekeep([], DAYS_400)[0] == []

    def test_processes_that_are_silent_count_as_gone(self, ledger, clocked):
        ledger.housekeep(["worker/9"], timedelta(minutes=1))
        assert ledger.redis.zscore(ledger.keys.workers, "worker/9")
        clocked.after(minutes=2).housekeep([], timedelta(minutes=1))
        assert ledger.redis.zscore(ledger.keys.workers, "worker/9") is None


class TestVerify:
    @pytest.fixture
    def deleted(self, ledger):
        accept(ledger, asking(id="r1", source="name"))
        carry_out_one(ledger)
        ledger.result_written("r1")
        return {"id": "r1", "finished_at": int(ledger.redis.hget(ledger.keys.deletion("r1"), "finished_at"))}

    def _verify(self, ledger, **finding):
        return ledger.verify("default", [finding], "it is listed again, with the same identity")

    def test_every_deleted_record_is_to_be_verified(self, ledger, deleted):
        assert ledger.redis.zrange(ledger.keys.verify("default"), 0, -1) == ["r1"]

    def test_a_finetune_that_the_list_lacks_is_verified(self, ledger, deleted):
        assert self._verify(ledger, **deleted, word="gone") == []
        assert get(ledger, "r1").verified_at == NOW
        assert ledger.redis.zcard(ledger.keys.verify("default")) == 0

    def test_still_there_is_for_a_person_and_takes_nothing_back(self, ledger, clocked, deleted):
        assert self._verify(clocked.after(hours=1), **deleted, word="still_there") == ["r1"]
        deletion = get(ledger, "r1")
        assert (deletion.state, deletion.message) == ("review", "it is listed again, with the same identity")
        assert clocked.after(minutes=2).housekeep([], DAYS_400)[0] == [], "the producer's result stays"

    def test_the_end_leaves_it_unverified(self, ledger, deleted):
        self._verify(ledger, **deleted, word="end")
        assert (get(ledger, "r1").verified_at, states(ledger, "r1")) == (None, [State.DELETED])
        assert ledger.redis.zcard(ledger.keys.verify("default")) == 0

    def test_again_comes_at_its_time(self, ledger, clocked, deleted):
        self._verify(ledger, **deleted, word="again", at=clocked.at_ms + 600_000, hits=1)
        assert ledger.redis.zscore(ledger.keys.verify("default"), "r1") == clocked.at_ms + 600_000

    def test_a_record_that_has_changed_meanwhile_is_left_alone(self, ledger, deleted):
        assert self._verify(ledger, id="r1", finished_at=1, word="still_there") == []
        assert states(ledger, "r1") == [State.DELETED]


class TestQueries:
    @pytest.fixture
    def many(self, ledger, clocked):
        for n in range(30):
            account = "default" if n % 3 else "other"
            accept(clocked.after(seconds=1), asking(f"ft-{n % 10}", id=f"d{n:02}", account=account))
            if n % 2:
                ledger.cancel([f"d{n:02}"])
        return ledger

    @pytest.mark.parametrize(
        ("where", "expected"),
        [
            (Filter(states=(State.CANCELLED,)), lambda n: n % 2 == 1),
            (Filter(account="other", states=(State.CANCELLED,)), lambda n: n % 2 == 1 and n % 3 == 0),
            (Filter(accounts=("other",)), lambda n: n % 3 == 0),
            (Filter(finetune_id="ft-3"), lambda n: n % 10 == 3),
            (Filter(finetune_id="ft-3", account="other"), lambda n: n % 10 == 3 and n % 3 == 0),
        ],
    )
    def test_filters_newest_first(self, many, where, expected):
        found = [deletion.id for deletion in list_deletions(many, where).deletions]
        assert found == [f"d{n:02}" for n in reversed(range(30)) if expected(n)]

    def test_a_time_window(self, many):
        first, last = get(many, "d11").created_at, get(many, "d21").created_at
        found = list_deletions(many, Filter(states=(State.CANCELLED,), since=first, until=last)).deletions
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

    def test_what_is_ended(self, many):
        assert ended(many, ["d00", "d01", "never"]) == {"d01", "never"}

    def test_the_oldest_due_is_that_of_each_account(self, many):
        for name, oldest in (("default", "d02"), ("other", "d00")):
            waited = (from_ms(many.now_ms()) - get(many, oldest).due_at).total_seconds()
            assert statistics(many).accounts[name].oldest_due_seconds == waited
