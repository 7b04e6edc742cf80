"""What every script keeps: bounded work, no starvation, no effect of a repetition, no forged names."""

from datetime import timedelta

import pytest

from tasks.ledger.scripts import script_names, script_text
from tasks.ledger.types import Finish
from tasks.records import State
from tests.conftest import (
    PERMITS,
    accept,
    asking,
    claim,
    claim_all,
    finish,
    mark,
)

HOUR = timedelta(hours=1)
DAYS_400 = timedelta(days=400)
FAILED = Finish(result=State.FAILED, message="no")


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
        assert ledger.claim("default", "w:1").why == "full"

    def test_callbacks_run_once_and_only_for_our_own_message(self, ledger):
        accept(ledger, asking(id="r1", source="name", callbacks={"link": ["theirs"]}))
        nonce, _ = ledger.new_callbacks_nonce("r1")
        assert ledger.new_callbacks_nonce("r1")[0] is None, "one message is on its way"
        assert not ledger.take_callbacks_nonce("r1", "forged")
        assert not ledger.take_callbacks_nonce("r2", nonce)
        assert [ledger.take_callbacks_nonce("r1", nonce) for _ in range(2)] == [True, False]
        assert ledger.callbacks("r1") == {"link": ["theirs"]}
        ledger.result_written("r1", callbacks_ran=True)
        assert ledger.callbacks("r1") is None


REPEATED = {
    "accept": lambda ledger, claimed: accept(ledger, asking("new", id="n1", digest="d"))[1:],
    "mark": lambda ledger, claimed: mark(ledger, claimed, 2, unclear_at=5),
    "claim": lambda ledger, claimed: ledger.claim("default", "w:1"),
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
