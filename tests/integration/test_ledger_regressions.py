"""Faults of the ledger that were found once, each under the name of its kind."""

from datetime import timedelta

import pytest

from tasks.errors import LedgerFull, LedgerRefused, LedgerUnavailable, UnknownDeletion, WrongLedger
from tasks.ledger import queries
from tasks.ledger.queries import Filter, get, known_accounts, list_deletions, stopped_accounts
from tasks.ledger.scripts import script_names, script_text
from tasks.ledger.store import Ledger
from tasks.ledger.types import Finish
from tasks.records import State, to_ms
from tests.conftest import (
    NOW,
    PERMITS,
    accept,
    asking,
    carry_out_one,
    claim,
    claim_all,
    finish,
    mark,
    progress,
    states,
)
from worker.redis_url import connect

HOUR = timedelta(hours=1)
DAYS_400 = timedelta(days=400)
FAILED = Finish(result=State.FAILED, message="no")


class TestFullRedis:
    """Under `noeviction`, with no memory left, what was accepted can still be finished."""

    @pytest.fixture
    def work(self, ledger, clocked):
        """Deletions in every place, an old record, and then no memory left."""
        accept(ledger, asking("old", id="old"))
        carry_out_one(ledger)
        clocked.after(days=91)
        names = ("a-ends", "b-waits", "c-unclear", "d-due", "e-due")
        accept(ledger, *(asking(name, id=name, source="name") for name in names))
        accept(ledger, asking("later", id="later", delay=HOUR), asking("a-ends", id="sibling"))
        return ledger

    @pytest.fixture
    def full(self, work):
        work.redis.config_set("maxmemory-policy", "noeviction")
        work.redis.config_set("maxmemory", 1)
        yield work
        work.redis.config_set("maxmemory", 0)

    def test_claim_mark_finish_hand_back_and_renew_go_on(self, full, clocked):
        ends, waits, unclear = (claim(full) for _ in range(3))
        assert full.renew([ends, waits, unclear]) == set()
        assert mark(full, ends, incarnation='{"settings":{"mode":"style"}}') == "go"
        assert finish(full, ends, "deleted", attempt=1, lines=('{"at":1,"sent":true}',)) == "done"
        assert finish(full, waits, "back", delay=HOUR) == "done"
        assert mark(full, unclear) == "go"
        finished, claimed = full.finish_and_claim(unclear, FAILED, progress(unclear, 1), "w", 1)
        assert (finished.word, claimed.claim.id) == ("done", "d-due")
        assert states(full, "a-ends", "b-waits", "c-unclear") == ["deleted", "scheduled", "failed"]

    def test_cancel_pause_and_cool_down_go_on(self, full):
        assert full.cancel(["later", "d-due"])[0] == ["cancelled", "cancelled"]
        full.account("default", "pause", reason="test")
        full.account("default", "cool", reason="429", ms=1_000, step_ms=1_000, most_ms=60_000)
        assert stopped_accounts(full)["default"].paused == "test"
        full.account("default", "resume")

    def test_maintenance_goes_on_and_makes_room(self, full, clocked):
        claim(full)
        clocked.after(seconds=31)
        assert full.maintain("default", PERMITS).reclaimed == 1
        assert full.housekeep(["worker/0"], DAYS_400)[1] == 1
        assert states(full, "old") == [None]

    def test_surveys_verification_and_keeping_go_on(self, full, clocked):
        assert full.permit("default", "survey:0", PERMITS).word == "go"
        assert full.keep("protect", "default", ["a"], clocked.at_ms) == []
        finding = {
            "id": "old",
            "finished_at": to_ms(get(full, "old").finished_at or NOW),
            "word": "gone",
        }
        assert full.verify("default", [finding], "") == []
        assert get(full, "old").verified_at

    def test_reads_go_on(self, full):
        assert len(list_deletions(full, Filter()).deletions) == 8
        assert stopped_accounts(full) == {}

    def test_a_request_is_refused_before_anything_is_written(self, full):
        before = full.redis.dbsize()
        with pytest.raises(LedgerFull, match="give it more memory"):
            accept(full, asking(id="new"))
        assert (full.redis.dbsize(), states(full, "new")) == (before, [None])

    def test_the_script_itself_writes_nothing_of_a_request_that_redis_refuses(self, full, monkeypatch):
        # Given memory that was used up between the check and the script.
        monkeypatch.setattr(full, "check_room", lambda: None)
        before = full.redis.dbsize()
        with pytest.raises(LedgerUnavailable, match="Redis is full"):
            accept(full, asking(id="new"))
        assert full.redis.dbsize() == before

    @pytest.mark.parametrize(("policy", "limit"), [("noeviction", 0), ("allkeys-lru", 1 << 30)])
    def test_without_a_limit_or_with_eviction_there_is_no_threshold(self, ledger, policy, limit):
        ledger.redis.config_set("maxmemory-policy", policy)
        ledger.redis.config_set("maxmemory", limit)
        try:
            assert ledger.free_memory() == (None, 0)
        finally:
            ledger.redis.config_set("maxmemory-policy", "noeviction")
            ledger.redis.config_set("maxmemory", 0)

    @pytest.mark.parametrize(("limit", "least"), [(1 << 30, 16 << 20), (50 << 20, 5 << 20)])
    def test_a_tenth_or_sixteen_mebibytes_stay_free(self, ledger, limit, least):
        ledger.redis.config_set("maxmemory", limit)
        try:
            free, kept = ledger.free_memory()
            assert (kept, 0 < free < limit) == (least, True)
        finally:
            ledger.redis.config_set("maxmemory", 0)


class TestServerTrouble:
    @pytest.fixture
    def swapping(self, ledger, redis_url, monkeypatch):
        """A ledger as workers connect to it. Its Redis has become a replica, until somebody connects again."""
        with connect(redis_url) as client:
            pool = client.connection_pool
            disconnect = pool.disconnect

            def connect_again(**options):
                disconnect(**options)
                ledger.redis.replicaof("NO", "ONE")

            theirs = Ledger(client, now_ms=ledger.now_ms)
            accept(theirs, asking("a", id="r1"), asking("b", id="r2"))
            monkeypatch.setattr(pool, "disconnect", connect_again)
            ledger.redis.replicaof("127.0.0.1", "1")
            yield theirs
        ledger.redis.replicaof("NO", "ONE")

    def test_master_and_replica_that_swap_roles_are_followed(self, swapping):
        assert accept(swapping, asking(id="r3")) == ["accepted"]

    def test_also_between_a_finish_and_the_next_claim(self, swapping, ledger):
        claimed = claim(swapping)
        ledger.redis.replicaof("127.0.0.1", "1")
        finished, following = swapping.finish_and_claim(claimed, FAILED, progress(claimed), "w", 1)
        assert (finished.word, following.claim.id) == ("done", "r2")

    def test_and_by_plain_commands(self, swapping):
        assert swapping.new_callbacks_nonce("r1")[0]

    def test_a_server_that_has_forgotten_the_scripts_gets_them_again(self, ledger):
        accept(ledger, asking(id="r1"))
        ledger.redis.script_flush()
        claimed = claim(ledger)
        ledger.redis.script_flush()
        finished, _ = ledger.finish_and_claim(claimed, FAILED, progress(claimed), "w", 1)
        assert finished.word == "done"

    def test_a_passing_refusal_is_not_taken_for_a_lasting_one(self, ledger):
        ledger.redis.config_set("min-replicas-to-write", 1)
        try:
            with pytest.raises(LedgerUnavailable) as raised:
                accept(ledger, asking())
        finally:
            ledger.redis.config_set("min-replicas-to-write", 0)
        assert not isinstance(raised.value, LedgerRefused)

    def test_a_key_of_another_type_is_a_lasting_refusal(self, ledger):
        ledger.redis.lpush(ledger.keys.paused, "a message")
        with pytest.raises(LedgerRefused):
            ledger.claim("default", "w", 1)

    def test_accounts_are_known_again_after_a_flush(self, ledger):
        ledger.redis.flushall()
        ledger.maintain("other", 2)
        assert known_accounts(ledger) == {"default", "other"}
        accept(ledger, *(asking(f"ft-{n}", account="other") for n in range(3)))
        assert len(claim_all(ledger, "other")) == 2


class TestSchema:
    def test_the_first_process_writes_it(self, ledger):
        ledger.check_schema()
        ledger.check_schema()
        assert ledger.redis.get(ledger.keys.schema) == "1"

    def test_a_ledger_of_the_first_edition_is_refused_in_one_line(self, ledger):
        ledger.redis.sadd("janitor:accounts", "default")
        with pytest.raises(WrongLedger, match=r"finetune-janitor 0\.1") as raised:
            ledger.check_schema()
        assert len(str(raised.value).splitlines()) == 1
        assert ledger.redis.get(ledger.keys.schema) is None

    def test_one_beside_ours_is_no_obstacle(self, ledger):
        ledger.check_schema()
        ledger.redis.sadd("janitor:accounts", "default")
        ledger.check_schema()

    def test_a_newer_schema_is_refused(self, ledger):
        ledger.redis.set(ledger.keys.schema, 2)
        with pytest.raises(WrongLedger, match="schema 2"):
            ledger.check_schema()

    def test_every_key_is_under_the_prefix(self, ledger, clocked):
        accept(ledger, asking("a", source="name", callbacks={"link": []}), asking("a"), asking("b", delay=HOUR))
        carry_out_one(ledger)
        ledger.check_schema()
        assert all(key.startswith("janitor:2:") for key in ledger.redis.scan_iter())


class TestUnreadableRecord:
    """A record that was evicted or deleted by hand affects no other deletion."""

    @pytest.mark.parametrize("how", ["missing", "another type", "without its fields"])
    @pytest.mark.parametrize("place", ["queued", "scheduled", "running", "first", "sibling", "final"])
    def test_the_others_go_on(self, ledger, clocked, place, how):
        # Given one in each place, and the one in `place` lost.
        accept(ledger, asking("a", id="final"))
        carry_out_one(ledger)
        accept(ledger, asking("a", id="running"), asking("a", id="sibling"))
        claim_all(ledger)
        accept(ledger, asking("b", id="queued"), asking("c", id="scheduled", delay=timedelta(seconds=60)))
        accept(ledger, asking("d", id="first", delay=HOUR))
        key = ledger.keys.deletion(place)
        ledger.redis.delete(key)
        if how != "missing":
            ledger.redis.set(key, "x") if how == "another type" else ledger.redis.hset(key, "state", "queued")
        # When everything is let run, then all the others end.
        for _ in range(8):
            ledger.maintain("default", PERMITS)
            while claimed := claim(ledger):
                finish(ledger, claimed, "observed" if claimed.kind == "observe" else State.FAILED)
            clocked.after(minutes=10)
        names = {"final", "running", "sibling", "queued", "scheduled", "first"} - {place}
        assert set(states(ledger, *names)) <= {"deleted", "failed"}
        assert ledger.housekeep(["worker/0"], DAYS_400) == ([], 0)
        assert clocked.after(days=91).housekeep(["worker/0"], DAYS_400)[1] >= 5

    def test_a_list_leaves_it_out(self, ledger):
        accept(ledger, asking("a", id="r1"), asking("b", id="r2"))
        ledger.redis.delete(ledger.keys.deletion("r1"))
        assert [deletion.id for deletion in list_deletions(ledger, Filter()).deletions] == ["r2"]

    def test_a_state_of_another_version_is_shown_and_ends_no_list(self, ledger):
        accept(ledger, asking("a", id="r1"), asking("b", id="r2"))
        ledger.redis.hset(
            ledger.keys.deletion("r1"), mapping={"state": "paused", "evidence": "rumour", "new": "1"}
        )
        found = {deletion.id: deletion for deletion in list_deletions(ledger, Filter()).deletions}
        assert (found["r1"].state, found["r1"].evidence, found["r1"].is_final) == ("paused", "rumour", True)
        assert found["r1"].to_json()["state"] == "paused"
        assert [one.id for one in claim_all(ledger)] == ["r2"]
        assert ledger.cancel(["r1"])[0] == ["final"]


BOUNDED = {
    "accept": lambda ledger, first, clocked: accept(ledger, asking()),
    "claim": lambda ledger, first, clocked: claim(ledger),
    "mark": lambda ledger, first, clocked: mark(ledger, first, 2),
    "superseded": lambda ledger, first, clocked: finish(ledger, first, State.SUPERSEDED, attempt=1),
    "deleted": lambda ledger, first, clocked: finish(ledger, first, "deleted", attempt=1),
    "handed back": lambda ledger, first, clocked: finish(ledger, first, "back", delay=HOUR, attempt=1),
    "cancel": lambda ledger, first, clocked: ledger.cancel(["r0050"]),
    "reclaim": lambda ledger, first, clocked: clocked.after(seconds=31).maintain("default", PERMITS),
    "touch": lambda ledger, first, clocked: ledger.keep("touch", "default", ["my-finetune"]),
    "housekeep": lambda ledger, first, clocked: ledger.housekeep([], DAYS_400),
}


class TestBoundedWork:
    """No script does work that grows with siblings, requests or records."""

    def commands(self, ledger, script):
        """How many commands Redis carries out for it."""
        for name in script_names():
            ledger.redis.script_load(script_text(name))
        ledger.redis.config_resetstat()
        script()
        stats = ledger.redis.info("commandstats")
        return sum(one["calls"] for name, one in stats.items() if "config" not in name and "info" not in name)

    def crowd(self, ledger, count):
        """A finetune with one deletion that runs and many that wait behind it."""
        ledger.redis.flushdb()
        ledger.maintain("default", PERMITS)
        accept(ledger, *(asking(id=f"r{n:04}", incarnation="{}") for n in range(count)))
        first = claim(ledger)
        assert mark(ledger, first) == "go"
        for _ in range(count // 20 + 1):
            claim(ledger)
        return first

    @pytest.mark.parametrize("name", BOUNDED)
    def test_it_is_the_same_for_a_hundred_siblings_and_for_a_thousand(self, ledger, clocked, name):
        counts = []
        for siblings in (100, 1000):
            first = self.crowd(ledger, siblings)
            counts.append(self.commands(ledger, lambda first=first: BOUNDED[name](ledger, first, clocked)))
        assert counts[0] == counts[1] < 400

    def test_a_claim_behind_many_that_cannot_run_is_as_cheap(self, ledger, clocked):
        counts = []
        for waiting in (100, 1000):
            self.crowd(ledger, 2)
            accept(ledger, *(asking(f"ft-{n}", delay=HOUR, incarnation="{}") for n in range(waiting)))
            clocked.after(hours=1)
            counts.append(self.commands(ledger, lambda: claim(ledger)))
        assert counts[0] == counts[1] < 700

    def test_one_that_can_run_behind_many_that_cannot_is_reached(self, ledger):
        accept(ledger, *(asking("a", id=f"a{n:03}") for n in range(100)), asking("z", id="z"))
        claims = [claim(ledger) for _ in range(100 // 20 + 2)]
        assert "z" in [one.id for one in claims if one]


class TestStarvation:
    def test_what_cannot_run_is_passed_over(self, ledger, clocked):
        # Given ten due cleanups, with a report of use that may be waiting, in front of bulk deletions.
        due = [asking(f"c-{n}", id=f"c{n}", source="cleanup:plan", bulk=True, incarnation="{}") for n in range(10)]
        accept(ledger, *due)
        accept(clocked.after(seconds=1), *(asking(f"b-{n}", bulk=True) for n in range(200)))
        assert [one.lane for one in claim_all(ledger)] == ["bulk"] * PERMITS

    def test_an_account_stands_in_no_others_way(self, ledger):
        ledger.maintain("other", 1)
        accept(ledger, *(asking(f"ft-{n}") for n in range(100)), asking(id="r1", account="other"))
        claim_all(ledger)
        assert claim(ledger, "other").id == "r1"


class TestForgery:
    @pytest.mark.parametrize("id_", ["survey:one", "permit", "*", "r1\tr2", "d:r1"])
    def test_an_id_that_looks_like_an_internal_name_is_only_an_id(self, ledger, id_):
        accept(ledger, asking("a", id=id_), *(asking(f"ft-{n}") for n in range(PERMITS)))
        words = [ledger.permit("default", f"survey:{n}", PERMITS).word for n in range(PERMITS // 2)]
        assert words == ["go"] * (PERMITS // 2)
        assert len(claim_all(ledger)) == PERMITS // 2
        ledger.release("default", id_)
        assert ledger.claim("default", "w", 1).why == "full"

    def test_callbacks_run_once_and_only_for_our_own_message(self, ledger):
        accept(ledger, asking(id="r1", source="name", callbacks={"link": ["theirs"]}))
        nonce, _ = ledger.new_callbacks_nonce("r1")
        assert ledger.new_callbacks_nonce("r1")[0] is None, "one message is on its way"
        assert not ledger.take_callbacks_nonce("r1", "forged")
        assert not ledger.take_callbacks_nonce("r2", nonce)
        assert [ledger.take_callbacks_nonce("r1", nonce) for _ in range(2)] == [True, False]
        assert ledger.callbacks("r1") == {"link": ["theirs"]}
        ledger.results_written(["r1"], callbacks_ran=True)
        assert ledger.callbacks("r1") is None


REPEATED = {
    "accept": lambda ledger, claimed: accept(ledger, asking("new", id="n1", digest="d"))[1:],
    "mark": lambda ledger, claimed: mark(ledger, claimed, 2, unclear_at=5),
    "claim": lambda ledger, claimed: ledger.claim("default", "w", 1),
    "deleted": lambda ledger, claimed: finish(ledger, claimed, "deleted", attempt=1, lines=("{}",)),
    "handed back": lambda ledger, claimed: finish(ledger, claimed, "back", delay=HOUR, lines=("{}",)),
    "cancel": lambda ledger, claimed: ledger.cancel([claimed.id, "r2"], nonce="n")[0],
    "renew": lambda ledger, claimed: ledger.renew([claimed]),
    "touch": lambda ledger, claimed: ledger.keep("touch", "default", ["x"]),
    "pause": lambda ledger, claimed: ledger.account("default", "pause", reason="test"),
    "park": lambda ledger, claimed: ledger.account("default", "park", reason="test", probe_ms=5),
    "permit": lambda ledger, claimed: ledger.permit("default", "survey:0", PERMITS),
    "maintain": lambda ledger, claimed: ledger.maintain("default", PERMITS).leases,
}


class TestSentTwice:
    """A script whose answer was lost is sent again: it has the effect and the answer of once."""

    def dump(self, ledger):
        """Everything in Redis but the memos of claims and the statistics of calls."""
        return {key: ledger.redis.dump(key) for key in ledger.redis.scan_iter() if ":memo:" not in key}

    @pytest.mark.parametrize("name", REPEATED)
    def test_it_changes_nothing_the_second_time(self, ledger, name):
        accept(ledger, asking("a", id="r1"), asking("b", id="r2"), asking("a", id="r3"))
        claimed = claim(ledger)
        assert mark(ledger, claimed) == "go"
        once = REPEATED[name](ledger, claimed)
        before = self.dump(ledger)
        assert REPEATED[name](ledger, claimed) == once
        assert self.dump(ledger) == before


class TestLists:
    def test_a_list_leaves_nothing_out_that_moves_while_it_is_read(self, ledger):
        accept(ledger, *(asking(f"ft-{n}", id=f"r{n:03}", bulk=True) for n in range(450)))
        pages = list_deletions(ledger, Filter(), limit=200)
        seen = [deletion.id for deletion in pages.deletions]
        ledger.cancel(seen[:50])
        rest = list_deletions(ledger, Filter(), limit=1000, cursor=pages.cursor)
        assert {deletion.id for deletion in rest.deletions} == {f"r{n:03}" for n in range(450)} - set(seen)

    def test_nor_what_moves_between_its_looks(self, ledger, monkeypatch):
        # Given more deletions of one moment than one look takes in, claimed while the list is read.
        accept(ledger, *(asking(f"ft-{n}", id=f"r{n}") for n in range(5)))
        look = queries.each

        def meanwhile(*given):
            found = look(*given)
            claim_all(ledger)
            return found

        monkeypatch.setattr(queries, "_CHUNK", 2)
        monkeypatch.setattr(queries, "each", meanwhile)
        assert len(list_deletions(ledger, Filter()).deletions) == 5

    @pytest.mark.parametrize("limit", [1, 4, 100])
    def test_pages_that_end_within_a_moment_hold_everything_once_and_in_order(
        self, ledger, clocked, monkeypatch, limit
    ):
        # Given three moments, each with more deletions than one look takes in; the older, the more are cancelled.
        monkeypatch.setattr(queries, "_CHUNK", 2)
        for moment, cancelled in enumerate((7, 3, 0)):
            ids = [f"r{moment}{n}" for n in range(7)]
            accept(ledger, *(asking(f"ft-{id_}", id=id_) for id_ in ids))
            ledger.cancel(ids[:cancelled])
            clocked.after(seconds=1)
        # When it is read page by page, then nothing is missing or there twice.
        seen, cursor = [], None
        while cursor or not seen:
            deletions, cursor = list_deletions(ledger, Filter(), limit=limit, cursor=cursor)
            seen += [deletion.id for deletion in deletions]
        assert seen == [f"r{moment}{n}" for moment in (2, 1, 0) for n in (6, 5, 4, 3, 2, 1, 0)]


class TestOneAccountStop:
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
        assert claim(ledger).kind == "resolve"


class TestDamagedRecords:
    @pytest.mark.parametrize("damage", ["another type", "a field that is no number", "no field at all"])
    def test_one_hides_no_other_and_is_not_called_unknown(self, ledger, damage):
        accept(ledger, asking(id="fine"), asking(id="damaged"))
        key = ledger.keys.deletion("damaged")
        if damage == "a field that is no number":
            ledger.redis.hset(key, "due_at", "junk")
        else:
            ledger.redis.delete(key)
            ledger.redis.set(key, "x") if damage == "another type" else ledger.redis.hset(key, "x", "y")
        assert [one.id for one in list_deletions(ledger, Filter()).deletions] == ["fine"]
        with pytest.raises(UnknownDeletion, match="the record of 'damaged' cannot be read"):
            get(ledger, "damaged")
        assert claim(ledger).id == "fine"
