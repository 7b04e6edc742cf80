"""The audit log: each act of a person or a service has its entry, and nothing else has one."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from tasks.cleanup import inventory
from tasks.errors import InvalidRequest, NotInReview, UnknownDeletion
from tasks.ledger.audit import Wanted, prune, read
from tasks.ledger.dead_letters import drop_dead_letters, keep, list_dead_letters, requeue_dead_letters
from tasks.ledger.queries import Filter, get, list_deletions
from tasks.ledger.types import Act
from tasks.records import State, to_ms
from tests.conftest import accept, asking, claim, claim_and_mark, finish

ANA = Act("ana@host", "command", "customer left")

HUGE = '{"at": 1e300, "who": "", "via": "", "act": ""}'


def entries(ledger, **wanted):
    return [one for _, one in read(ledger, Wanted(**wanted)) if one]


def at(clocked, moment):
    """A ledger whose clock shows this moment."""
    clocked.at_ms = to_ms(moment)
    return clocked()


def dead_letter(ledger, queue="deletions"):
    keep(ledger.redis, queue, "it is not JSON", "{")
    return list_dead_letters(ledger)[0].id


def in_review(ledger, id_="r1"):
    accept(ledger, asking(id_, id=id_))
    finish(ledger, claim(ledger), State.REVIEW)
    return id_


ACTS = {
    # act: (what is done, account, ids)
    "cancel": (lambda ledger: ledger.cancel(["r1", "r2", "unknown"], ANA), None, ("r1", "r2")),
    "pause": (lambda ledger: ledger.account("default", "pause", ANA), "default", ()),
    "resume": (lambda ledger: ledger.account("*", "resume", ANA), "*", ()),
    "protect": (lambda ledger: inventory.protect(ledger, "default", ["a", "b"], act=ANA), "default", ("a", "b")),
    "unprotect": (lambda ledger: inventory.unprotect(ledger, "default", ["a"], ANA), "default", ("a",)),
    "retry": (lambda ledger: ledger.accept([asking(id="r3", retry_of="r1")], act=ANA), "default", ("r3",)),
    "apply": (
        lambda ledger: ledger.accept([asking("new", id="r4", source="cleanup:p1")], act=ANA), "default", ("r4",),
    ),
    "token revoke": (lambda ledger: ledger.act("token revoke", ANA, ids=["billing"]), None, ("billing",)),
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
def test_an_act_is_noted_with_who_when_what_and_why(ledger, act):
    # Given two deletions, when somebody acts,
    what, account, ids = ACTS[act]
    accept(ledger, asking("a", id="r1"), asking("b", id="r2"))
    before = ledger.now_ms()
    what(ledger)
    # then one entry says so, on Redis's clock, and asking has made none.
    (entry,) = entries(ledger)
    assert (entry.act, entry.who, entry.via, entry.why) == (act, "ana@host", "command", "customer left")
    assert (entry.account, entry.ids, entry.count) == (account, ids, len(ids))
    assert entry.plan == ("p1" if act == "apply" else None)
    assert before <= entry.at.timestamp() * 1000 <= ledger.now_ms()


def test_reports_of_use_requests_and_what_changes_nothing_are_no_acts(ledger):
    accept(ledger, asking("a", id="r1"))
    ledger.cancel(["r1"], ANA)
    # Given the entry of a cancel, when use is reported and the cancel and the request are repeated,
    inventory.touch(ledger, "default", ["a"])
    ledger.cancel(["r1", "unknown"], ANA)
    ledger.accept([asking("a", id="r1")], act=ANA)
    # then there is no further one.
    assert [one.act for one in entries(ledger)] == ["cancel"]


def test_an_act_about_several_accounts_names_none(ledger):
    accept(ledger, asking("a", id="r1"), asking("b", id="r2", account="other"))
    ledger.accept(
        [asking("a", id="r3", retry_of="r1"), asking("b", id="r4", account="other", retry_of="r2")], act=ANA
    )
    (entry,) = entries(ledger)
    assert (entry.act, entry.account, entry.ids) == ("retry", None, ("r3", "r4"))


def test_a_cancel_that_is_sent_twice_is_noted_once(ledger):
    accept(ledger, asking("a", id="r1"))
    for _ in range(2):
        assert ledger.cancel(["r1"], ANA, nonce="n")[0] == ["cancelled"]
    assert len(entries(ledger)) == 1


def test_an_act_of_nobody_in_particular_can_be_read(ledger):
    accept(ledger, asking(id="r1"))
    ledger.cancel(["r1"], Act(None, "name"))
    assert [(one.act, one.who, one.ids) for one in entries(ledger)] == [("cancel", None, ("r1",))]


@pytest.mark.parametrize("is_late", [False, True])
def test_an_alarm_is_noted_once_as_the_janitors(ledger, clocked, is_late):
    # Given a worker whose answer names another finetune, when its finish is sent twice, in time or not,
    accept(ledger, asking("a", id="r1"))
    claimed = claim(ledger)
    if is_late:
        assert clocked.after(seconds=31).maintain("default", 8).reclaimed == 1
    for _ in range(2):
        finish(ledger, claimed, State.REVIEW, pause="it deleted 'b'")
    # then the pause is noted, with its reason.
    (entry,) = entries(ledger)
    assert (entry.act, entry.who, entry.via, entry.account) == ("pause", "janitor", "janitor", "default")
    assert (entry.ids, entry.why) == (("r1",), "it deleted 'b'")


def test_of_many_ids_twenty_are_named_and_all_counted(ledger):
    ids = [f"r{n:03}" for n in range(600)]
    accept(ledger, *(asking(id_, id=id_) for id_ in ids))
    ledger.cancel(ids, ANA)
    assert [(len(one.ids), one.count) for one in entries(ledger)] == [(20, 500), (20, 100)]


def test_dead_letters_are_noted_as_they_are_sent_again_or_dropped(ledger):
    again, dropped = dead_letter(ledger), dead_letter(ledger)
    assert requeue_dead_letters(ledger, {again, "unknown"}, ["deletions"], ANA) == {again}
    assert drop_dead_letters(ledger, {again, dropped}, ANA) == {dropped}
    assert ledger.redis.lrange("deletions", 0, -1) == ["{"]
    assert list_dead_letters(ledger) == []
    assert [(one.act, one.ids) for one in entries(ledger)] == [("requeue", (again,)), ("drop", (dropped,))]


@pytest.mark.parametrize(
    "text", ["{", "7", "null", "[]", '{"headers": []}', '{"headers": {"janitor_seen": 7}}', "[" * 9000]
)
def test_a_dead_letter_without_headers_is_sent_again_as_it_is(ledger, text):
    keep(ledger.redis, "deletions", "not a message", text)
    requeue_dead_letters(ledger, {list_dead_letters(ledger)[0].id}, ["deletions"], ANA)
    assert ledger.redis.lrange("deletions", 0, -1) == [text]


@pytest.mark.parametrize(
    "message",
    ["\U0001f600" * 10_000, b"\x00" * 20_000, {"a": "\ud800\u4e2d" * 9000}, '"' * 20_000, b"\xff" * 20_000],
    ids=["four bytes", "control characters", "halves", "quotes", "no text"],
)  # fmt: skip
def test_a_dead_letter_takes_little_room_whatever_it_holds_and_is_sent_again_whole_or_not(ledger, message):
    keep(ledger.redis, "deletions", "too long", message)
    (entry,) = ledger.redis.lrange(ledger.keys.dead_letters, 0, -1)
    assert 10_000 <= len(entry.encode()) <= 21_000
    (letter,) = list_dead_letters(ledger)
    with pytest.raises(InvalidRequest, match="its text was cut"):
        requeue_dead_letters(ledger, {letter.id}, ["deletions"], ANA)


def test_a_dead_letter_that_is_sent_again_says_when_it_was_here_first(ledger):
    # Given a message that was refused twice
    keep(ledger.redis, "deletions", "once", '{"headers": {"id": "1"}, "body": ""}')
    (first,) = list_dead_letters(ledger)
    requeue_dead_letters(ledger, {first.id}, ["deletions"], ANA)
    keep(ledger.redis, "deletions", "twice", ledger.redis.rpop("deletions"))
    # When it is sent again
    requeue_dead_letters(ledger, {list_dead_letters(ledger)[0].id}, ["deletions"], ANA)
    # Then the first time counts.
    sent = json.loads(ledger.redis.rpop("deletions"))
    assert sent == {"headers": {"id": "1", "janitor_seen": first.at}, "body": ""}


def test_it_is_filtered_and_goes_on_after_a_cursor(ledger, clocked):
    # Given acts in three months of two years,
    start = datetime(2026, 11, 30, 23, 59, 59, tzinfo=UTC)
    times = [start, start + timedelta(seconds=2), datetime(2028, 2, 29, 12, tzinfo=UTC)]
    for n, moment in enumerate(times):
        at(clocked, moment).account("default", "pause", Act(f"p{n}", "http"))
        at(clocked, moment).account("default", "resume", Act(f"r{n}", "http"))
    ledger = at(clocked, times[-1])
    assert {key[-7:] for key in ledger.redis.keys("janitor-audit:*")} == {"2026-11", "2026-12", "2028-02"}
    # when it is read, then filters fit and the order is that of time,
    assert [one.who for one in entries(ledger)] == ["p0", "r0", "p1", "r1", "p2", "r2"]
    assert [one.who for one in entries(ledger, since=times[1], act="pause")] == ["p1", "p2"]
    assert [one.who for one in entries(ledger, until=times[1], act="resume")] == ["r0", "r1"]
    assert [one.act for one in entries(ledger, who="p2")] == ["pause"]
    # and each cursor goes on after its entry.
    for n, (cursor, _) in enumerate(read(ledger, Wanted())):
        assert len(list(read(ledger, Wanted(), cursor))) == 5 - n
    with pytest.raises(InvalidRequest, match="leave it out"):
        list(read(ledger, Wanted(), "elsewhere"))


def test_months_are_dropped_whole_once_they_are_old_enough(clocked):
    # Given an act, when less than three years and then more than that and the rest of its month have passed,
    start = datetime(2026, 11, 15, tzinfo=UTC)
    at(clocked, start).account("default", "pause", ANA)
    assert prune(at(clocked, start + timedelta(days=1095)), ANA) == []
    later = at(clocked, start + timedelta(days=1095 + 16))
    # then its month is dropped, which is noted as well.
    assert prune(later, ANA) == ["2026-11"]
    assert [(one.act, one.ids) for one in entries(later)] == [("prune", ("2026-11",))]


class TestResolving:
    def test_a_person_notes_what_became_of_a_finetune(self, ledger):
        # Given a deletion in review, when a person resolves it,
        ledger.resolve(in_review(ledger), "kept", "seen in the dashboard", ANA)
        # then the record says so and its state stays, and it waits for nobody.
        found = get(ledger, "r1")
        assert (found.state, found.resolved_by) == (State.REVIEW, "ana@host")
        assert found.resolution == "kept: seen in the dashboard"
        assert found.resolved_at is not None
        assert not found.needs_person
        (entry,) = entries(ledger)
        assert (entry.act, entry.ids, entry.account) == ("resolve", ("r1",), "default")

    def test_it_is_refused_a_second_time_and_in_another_state(self, ledger):
        ledger.resolve(in_review(ledger), "kept", "seen", ANA)
        accept(ledger, asking("b", id="r2"))
        for id_, words in (("r1", "resolved before, by ana@host"), ("r2", "r2 is queued")):
            with pytest.raises(NotInReview, match=words):
                ledger.resolve(id_, "deleted", "gone", Act("bob", "http"))
        with pytest.raises(UnknownDeletion):
            ledger.resolve("unknown", "deleted", "gone", ANA)
        assert len(entries(ledger)) == 1

    def test_one_that_comes_back_into_review_needs_a_person_again(self, ledger, clocked):
        # Given a deletion in review that a person resolved, while its first worker is away in a call,
        accept(ledger, asking(id="r1"))
        slow = claim_and_mark(ledger)
        clocked.after(seconds=31).maintain("default", 8)
        finish(ledger, claim(ledger), State.REVIEW)
        ledger.resolve("r1", "kept", "seen", ANA)
        # when that one comes back with a 200, and the finetune is still there an hour later,
        finish(ledger, slow, "deleted", attempt=1)
        ended = {"id": "r1", "finished_at": to_ms(get(ledger, "r1").finished_at), "word": "still_there"}
        assert ledger.verify("default", [ended], "still there") == ["r1"]
        # then it waits for a person once more; the log has the first resolution.
        found = get(ledger, "r1")
        assert (found.state, found.needs_person, found.resolution) == (State.REVIEW, True, None)
        ledger.resolve("r1", "deleted", "gone now", ANA)
        assert [entry.act for entry in entries(ledger)] == ["resolve", "resolve"]

    def test_open_reviews_are_listed_alone(self, ledger):
        for id_ in ("r1", "r2", "r3"):
            in_review(ledger, id_)
        ledger.resolve("r1", "deleted", "gone", ANA)
        ledger.accept([asking("r2", id="again", retry_of="r2")], act=ANA)
        found, _ = list_deletions(ledger, Filter(needs_person=True))
        assert [one.id for one in found] == ["r3"]


@pytest.mark.parametrize(
    "row", ["{", "\x1b[31m", "[]", "null", '{"at": "x"}', '{"at": 1, "ids": 5}', "{}", '"', HUGE]
)
def test_what_is_no_entry_hides_no_other(ledger, row):
    # Given a line of somebody who may add to the log, between two entries, when it is read, then all are there.
    ledger.account("default", "pause", ANA)
    (key,) = ledger.redis.keys("janitor-audit:*")
    ledger.redis.rpush(key, row)
    ledger.account("default", "resume", ANA)
    assert [one.act for one in entries(ledger)] == ["pause", "unreadable", "resume"]


def test_an_entry_of_a_newer_version_is_read(ledger):
    ledger.account("default", "pause", ANA)
    (key,) = ledger.redis.keys("janitor-audit:*")
    entry = json.loads(ledger.redis.lindex(key, 0)) | {"newer": 1}
    ledger.redis.rpush(key, json.dumps(entry))
    assert len(entries(ledger)) == 2
