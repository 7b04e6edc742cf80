"""Holds: nothing deletes a finetune that is held, no matter who asks and when the hold comes."""

from datetime import UTC, datetime, timedelta

import pytest

from tasks.cleanup import inventory
from tasks.errors import InvalidRequest
from tasks.ledger.audit import Wanted, read
from tasks.ledger.holds import hold, holds, release
from tasks.ledger.queries import get
from tasks.ledger.types import Act
from tasks.waiting import explained
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
    assert held(ledger, UUID) == ((["r1"], []) if state == "cancelled" else ([], ["r1"]))
    # then its deletion ends at once, or is withdrawn as soon as that can be told, and the other one goes on.
    record = get(ledger, "r1")
    assert (record.state, record.cancelled_by, record.cancel_reason) == (state, "ana@host", MESSAGE.format(UUID))
    if state == "cancelled":
        assert record.message == MESSAGE.format(UUID)
    if word:
        assert mark(ledger, claimed, 2) == word
    assert get(ledger, "r2").state == "queued"


def test_all_of_many_deletions_are_withdrawn_and_stay_so(ledger):
    # Given many deletions that wait, when their finetune is held and released,
    accept(ledger, *(asking("a", id=f"r{n:03}", delay=timedelta(hours=1)) for n in range(60)))
    assert sorted(held(ledger).withdrawn) == [f"r{n:03}" for n in range(60)]
    release(ledger, "default", "a", ANA)
    # then none of them goes on.
    assert {get(ledger, f"r{n:03}").state for n in range(60)} == {"cancelled"}


def test_a_deletion_that_waits_says_that_its_finetune_is_held(ledger):
    # Given a hold, when somebody asks for a deletion at a later time,
    held(ledger, UUID)
    accept(ledger, asking(UUID.upper(), id="r1", delay=timedelta(hours=1)), asking("b", id="r2"))
    # then the record says what will come of it.
    found = explained(ledger, [get(ledger, "r1"), get(ledger, "r2")])
    assert (
        found[0].waiting_for
        == "the finetune is held by ana@host: a lawsuit; it ends cancelled if its time comes first"
    )
    assert "held" not in found[1].waiting_for


WEAKER = [
    # what holds it, in hours (None: for good), what is asked for, whether that is refused
    (None, 1, True),
    (2, 1, True),
    (2, 2, False),
    (2, 3, False),
    (2, None, False),
    (None, None, False),
]


@pytest.mark.parametrize(("first", "second", "refused"), WEAKER)
def test_only_a_release_ends_a_hold_sooner(ledger, clocked, first, second, refused):
    # Given a hold, when another person holds the finetune, for longer or not,
    times = [None if hours is None else clocked.now + timedelta(hours=hours) for hours in (first, second)]
    held(ledger, until=times[0])
    bo = Act("bo", "http", "his case")
    if refused:
        with pytest.raises(InvalidRequest, match=r"a is held by ana@host: a lawsuit, .*`janitor release a` first"):
            hold(ledger, "default", "a", times[1], bo)
    else:
        hold(ledger, "default", "a", times[1], bo)
    # then the later end counts.
    (one,) = holds(ledger, "default")
    assert (one.by, one.until) == (("ana@host", times[0]) if refused else ("bo", times[1]))


def test_a_hold_whose_time_has_passed_is_as_if_there_was_none(ledger, clocked):
    # Given one, when somebody releases it, or holds the finetune for less long,
    held(ledger, until=clocked.now + timedelta(hours=2))
    later = clocked.after(hours=2)
    assert not release(later, "default", "a", ANA)
    # then nothing was released, which is in no log, and the new one counts.
    hold(later, "default", "a", clocked.now + timedelta(minutes=1), Act("bo", "http", "his case"))
    assert [one.by for one in holds(later, "default")] == ["bo"]
    assert [one.act for _, one in read(ledger, Wanted()) if one] == ["hold", "hold"]


def test_protection_is_not_shortened_either(ledger, clocked):
    # Given finetunes that are protected for good and for two hours, when they are protected for one hour,
    day = timedelta(hours=24)
    inventory.protect(ledger, "default", ["good"])
    inventory.protect(ledger, "default", ["day"], clocked.now + day)
    inventory.protect(ledger, "default", ["good", "day", "hour"], clocked.now + timedelta(hours=1))
    # then the later end counts.
    assert inventory.protected_among(clocked.after(hours=2), "default", ["good", "day", "hour"]) == ["good", "day"]
    assert inventory.protected_among(clocked.after(hours=24), "default", ["good", "day"]) == ["good"]


@pytest.mark.parametrize("keep", [
    lambda ledger, until: hold(ledger, "default", "a", until, ANA),
    lambda ledger, until: inventory.protect(ledger, "default", ["a"], until),
], ids=["hold", "protect"])  # fmt: skip
def test_a_time_in_the_past_or_too_far_off_is_refused_and_changes_nothing(ledger, clocked, keep):
    # Given a deletion that waits, when the finetune is held or protected until a time that has passed,
    accept(ledger, asking("a", id="r1", delay=timedelta(hours=1), source="cleanup:p1"))
    with pytest.raises(InvalidRequest, match=r"2026-03-01T12:00:00\.000Z is in the past: give a later time"):
        keep(ledger, clocked.now)
    # or until one that nothing could show again,
    with pytest.raises(InvalidRequest, match="is too far off: give at most ten years, or no time: for good"):
        keep(ledger, datetime.max.replace(tzinfo=UTC))
    # then that is told, and nothing is withdrawn.
    assert (get(ledger, "r1").state, holds(ledger, "default")) == ("scheduled", [])


def test_a_time_ends_a_hold_by_the_clock_of_redis(ledger, clocked):
    held(ledger, until=clocked.now + timedelta(hours=1))
    accept(ledger, asking("a", id="r1"))
    claimed = claim(ledger)
    assert mark(ledger, claimed) == "held"
    assert holds(ledger, "default", ["a", "b"]) == holds(ledger, "default")
    later = clocked.after(hours=1)
    assert (mark(later, claimed), holds(later, "default"), holds(later, "default", ["a"])) == ("go", [], [])


def test_holds_are_listed_by_name(ledger, clocked):
    held(ledger, UUID.upper())
    until = clocked.now + timedelta(days=1)
    hold(ledger, "default", "b", until, Act("bo", "http", "his case"))
    found = [(one.finetune_id, one.by, one.reason, one.until) for one in holds(ledger, "default")]
    assert found == [(UUID, "ana@host", "a lawsuit", None), ("b", "bo", "his case", until)]
    assert holds(ledger, "default", []) == []
    assert [one.finetune_id for one in holds(ledger, "default", [UUID])] == [UUID]


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
    assert str(one) == MESSAGE.format("--account emea a")
