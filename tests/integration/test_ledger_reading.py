"""Reading the ledger: lists that move while they are read, and records that cannot be read."""

from datetime import timedelta

import pytest

from tasks.errors import UnknownDeletion
from tasks.ledger import queries
from tasks.ledger.queries import Filter, get, list_deletions
from tasks.ledger.types import Finish
from tasks.records import State
from tests.conftest import (
    PERMITS,
    accept,
    asking,
    carry_out_one,
    claim,
    claim_all,
    finish,
    states,
)

HOUR = timedelta(hours=1)
DAYS_400 = timedelta(days=400)
FAILED = Finish(result=State.FAILED, message="no")


class TestUnreadableRecord:
    """A record that was evicted or deleted by hand affects no other deletion."""

    @pytest.mark.parametrize("how", ["missing", "another type", "without its fields"])
    @pytest.mark.parametrize("place", ["queued", "scheduled", "running", "first", "sibling", "final"])
    def test_a_lost_record_stops_no_other_deletion(self, ledger, clocked, place, how):
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

    def test_a_damaged_index_hides_no_other(self, ledger):
        accept(ledger, asking(id="fine"))
        ledger.redis.set(ledger.keys.index("default", State.FAILED), "x")
        assert [one.id for one in list_deletions(ledger, Filter()).deletions] == ["fine"]
