"""Holds: nothing deletes a finetune that is held, no matter who asks and when the hold comes."""

from datetime import timedelta

import pytest

from tasks.errors import InvalidRequest
from tasks.ledger.audit import Wanted, read
from tasks.ledger.holds import hold, holds, release
from tasks.ledger.queries import get
from tasks.ledger.types import Act
from tests.conftest import accept, asking, carry_out_one, claim, claim_and_mark, finish, mark

ANA = Act("ana@host", "command", "a lawsuit")
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
MESSAGE = "held since 2026-03-01 12:00 UTC by ana@host: a lawsuit; `janitor release {}`, then ask again"


def held(ledger, name="a", until=None):
    return hold(ledger, "default", name, until, ANA)


def end(ledger, id_):
    record = get(ledger, id_)
    return record.state, record.message


@pytest.mark.parametrize("asked", [{}, {"source": "cleanup:p1"}, {"source": "http"}])
def test_the_mark_stops_what_is_asked_for_while_it_is_held(ledger, asked):
    # Given a hold, when anybody asks for a deletion,
    held(ledger)
    accept(ledger, asking("a", id="r1", **asked))
    # then a worker is told so before its call; a cleanup's deletion is not even begun.
    if asked.get("source") == "cleanup:p1":
        assert end(ledger, "r1") == ("cancelled", "kept: it is held")
        return
    claimed = claim(ledger)
    assert mark(ledger, claimed) == "held"
    assert finish(ledger, claimed, "cancelled", message="held") == "done"
    # Once it is released, the next one is carried out.
    assert release(ledger, "default", "a", ANA)
    accept(ledger, asking("a", id="r2"))
    carry_out_one(ledger)
    assert end(ledger, "r2")[0] == "deleted"


def queued(ledger, clocked):
    return None


def running(ledger, clocked):
    return claim(ledger)


def marked(ledger, clocked):
    return claim_and_mark(ledger)


def unclear(ledger, clocked):
    carry_out_one(ledger, "back", found={"unclear_at": clocked.at_ms})


WHEN = [
    # when the hold comes, the state after it, what a worker that had it hears at its next mark
    (queued, "cancelled", None),
    (running, "cancelled", "lost"),
    (marked, "running", "cancelled"),  # its call may be under way
    (unclear, "queued", None),  # only an observation can tell
]


@pytest.mark.parametrize(("when", "state", "word"), WHEN, ids=lambda value: getattr(value, "__name__", None))
def test_a_hold_withdraws_what_is_unfinished(ledger, clocked, when, state, word):
    # Given a deletion of the finetune, under another spelling, and one of another finetune,
    accept(ledger, asking(UUID.upper(), id="r1"))
    claimed = when(ledger, clocked)
    accept(ledger, asking("b", id="r2"))
    # when the finetune is held,
    assert held(ledger, UUID) == ["r1"]
    # then its deletion ends at once, or is withdrawn as soon as that can be told, and the other one goes on.
    record = get(ledger, "r1")
    assert (record.state, record.cancelled_by, record.cancel_reason) == (state, "ana@host", MESSAGE.format(UUID))
    if state == "cancelled":
        assert record.message == MESSAGE.format(UUID)
    if word:
        assert mark(ledger, claimed, 2) == word
    assert get(ledger, "r2").state == "queued"


def test_of_many_deletions_twenty_are_withdrawn_and_the_mark_stops_the_others(ledger):
    accept(ledger, *(asking("a", id=f"r{n:02}") for n in range(25)))
    assert len(held(ledger)) == 20
    assert mark(ledger, claim(ledger)) == "held"


def test_a_time_ends_a_hold_by_the_clock_of_redis(ledger, clocked):
    held(ledger, until=clocked.now + timedelta(hours=1))
    accept(ledger, asking("a", id="r1"))
    claimed = claim(ledger)
    assert mark(ledger, claimed) == "held"
    assert holds(ledger, "default", ["a", "b"]) == holds(ledger, "default")
    later = clocked.after(hours=1)
    assert (mark(later, claimed), holds(later, "default"), holds(later, "default", ["a"])) == ("go", [], [])


def test_holds_are_listed_by_name_and_the_last_one_counts(ledger, clocked):
    held(ledger, UUID.upper())
    held(ledger, "b")
    until = clocked.now + timedelta(days=1)
    later = clocked.after(minutes=1)
    hold(later, "default", "b", until, Act("bo", "http", "his case"))
    found = [(one.finetune_id, one.by, one.reason, one.until) for one in holds(later, "default")]
    assert found == [(UUID, "ana@host", "a lawsuit", None), ("b", "bo", "his case", until)]
    assert holds(later, "default", []) == []
    assert [one.finetune_id for one in holds(later, "default", [UUID])] == [UUID]


def test_both_acts_are_in_the_audit_log(ledger):
    held(ledger)
    assert [release(ledger, "default", "a", ANA) for _ in range(2)] == [True, False]
    entries = [one for _, one in read(ledger, Wanted()) if one]
    assert [(one.act, one.who, one.ids, one.why) for one in entries] == [
        ("hold", "ana@host", ("a",), "a lawsuit"),
        ("release", "ana@host", ("a",), "a lawsuit"),
    ]


@pytest.mark.parametrize(
    ("account", "name", "why", "words"),
    [
        ("default", "a", None, "a hold needs a reason"),
        ("default", "a b", "x", "has a space"),
        ("nobody", "a", "x", "'nobody' is not known"),
    ],
)
def test_a_mistake_is_told_and_holds_nothing(ledger, account, name, why, words):
    with pytest.raises(InvalidRequest, match=words):
        hold(ledger, account, name, None, Act("ana", "command", why))
    assert holds(ledger, "default") == []


def test_the_message_names_the_account(ledger):
    ledger.maintain("emea", 8)
    hold(ledger, "emea", "a", None, ANA)
    (one,) = holds(ledger, "emea")
    assert str(one) == MESSAGE.format("a --account emea")
