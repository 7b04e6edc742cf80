"""Cleanups in the ledger: use and protection withdraw a cleanup's request, and nobody else's."""

from datetime import timedelta

import pytest

from tasks.errors import InvalidRequest
from tasks.inventory import load, protect, protected_among, touch, unprotect
from tasks.queries import get
from tasks.records import State, from_ms
from tests.conftest import asking, outcome

PLAN = "cleanup:7a9f3a52-0f7e-4e0b-8f0c-3f4b8c1f5a01"
HOUR = timedelta(hours=1)


def cleaning(ledger, id_="c1", **fields):
    """A cleanup's request, dated like its plan."""
    usual = {
        "id": id_,
        "source": PLAN,
        "bulk": True,
        "fingerprint": "v1:timestamp=aaa",
        "delay": HOUR,
        "requested_at": from_ms(ledger.now_ms()) - timedelta(minutes=5),
    }
    return asking(**{**usual, **fields})


def accept(ledger, *requests):
    return ledger.accept(requests)[0]


USED = "kept: it was used after the plan was made"
KEEPING = {
    "touch": (lambda ledger: touch(ledger, "default", ["my-finetune"]), USED),
    "protect": (lambda ledger: protect(ledger, "default", ["my-finetune"]), "kept: it is protected"),
    "protect until": (
        lambda ledger: protect(ledger, "default", ["my-finetune"], from_ms(ledger.now_ms()) + HOUR),
        "kept: it is protected",
    ),
}


@pytest.mark.parametrize("how", KEEPING)
class TestKept:
    def test_a_waiting_cleanup_is_withdrawn_at_once(self, ledger, how):
        keep, why = KEEPING[how]
        accept(ledger, cleaning(ledger))
        assert keep(ledger) == ["c1"]
        deletion = get(ledger, "c1")
        assert (deletion.state, deletion.message) == (State.CANCELLED, why)
        assert deletion.requests[0].withdrawn_at is not None

    def test_what_was_kept_before_it_is_accepted_is_withdrawn_as_it_is(self, ledger, how):
        keep, why = KEEPING[how]
        assert keep(ledger) == []
        accept(ledger, cleaning(ledger))
        assert (get(ledger, "c1").state, get(ledger, "c1").message) == (State.CANCELLED, why)
        (again,) = accept(ledger, cleaning(ledger))
        assert (again.created, again.known) == (False, True), "what was withdrawn stays so"

    def test_a_request_of_somebody_else_goes_on_at_its_own_time(self, ledger, how):
        accept(ledger, cleaning(ledger))
        accept(ledger, asking(id="r1", delay=3 * HOUR))
        assert KEEPING[how][0](ledger) == ["c1"]
        deletion = get(ledger, "r1")
        assert (deletion.id, deletion.state) == ("c1", State.SCHEDULED)
        assert deletion.due_at == deletion.requests[1].due_at
        assert [request.withdrawn_at is not None for request in deletion.requests] == [True, False]
        assert KEEPING[how][0](ledger) == [], "it is withdrawn once"

    def test_a_call_under_way_is_not_called_back_but_followed_by_a_look(self, ledger, clocked, how):
        accept(ledger, cleaning(ledger, delay=None))
        (claimed,), _ = ledger.claim("default", "w", 10, looks_first=True)
        ledger.check([claimed], mark=True)
        assert KEEPING[how][0](ledger) == ["c1"]
        assert get(ledger, "c1").state is State.RUNNING
        assert get(ledger, "c1").cancel_requested_at is not None
        ledger.conclude([outcome(claimed, "deleted", evidence="response")])
        assert get(ledger, "c1").state is State.DELETED, "what has happened is on record"

    def test_one_that_a_worker_holds_but_has_not_called_is_lost_to_it(self, ledger, how):
        accept(ledger, cleaning(ledger, delay=None))
        (claimed,), _ = ledger.claim("default", "w", 10, looks_first=True)
        KEEPING[how][0](ledger)
        assert get(ledger, "c1").state is State.CANCELLED
        assert ledger.check([claimed])[0].word == "lost"


@pytest.mark.parametrize("key", ["used", "protected"])
def test_the_claim_checks_again(ledger, clocked, key):
    # Given one that is kept, though nothing withdrew it, as where a backup was restored.
    accept(ledger, cleaning(ledger))
    ledger.redis.hset(f"janitor:{key}:default", "my-finetune", ledger.now_ms() + 86_400_000)
    late = clocked.after(hours=2)
    assert late.claim("default", "w", 10)[0] == []
    assert get(late, "c1").state is State.CANCELLED


def test_reports_of_use_that_wait_come_before_a_cleanup(ledger, clocked):
    # Given workers that were away for longer than the grace, while services went on reporting use.
    accept(ledger, cleaning(ledger), asking("asked-for"))
    ledger.redis.lpush("touches", "a message")
    late = clocked.after(hours=2)
    assert [one.finetune_id for one in late.claim("default", "w", 10)[0]] == ["asked-for"]
    touch(late, "default", ["my-finetune"])
    ledger.redis.delete("touches")
    assert late.claim("default", "w", 10)[0] == []
    assert get(late, "c1").state is State.CANCELLED
    accept(late, cleaning(late, "c2", requested_at=from_ms(late.now_ms() + 1), delay=None))
    assert [one.id for one in clocked.after(seconds=1).claim("default", "w", 10)[0]] == ["c2"]


def test_protection_ends_by_itself_or_by_request(ledger, clocked):
    protect(ledger, "default", ["a", "b"], from_ms(ledger.now_ms()) + HOUR)
    protect(ledger, "default", ["c"])
    assert protected_among(ledger, "default", ["a", "b", "c", "d"]) == ["a", "b", "c"]
    later = clocked.after(hours=2)
    assert protected_among(later, "default", ["a", "b", "c", "d"]) == ["c"]
    accept(later, cleaning(later, finetune_id="a"))
    assert get(later, "c1").state is State.SCHEDULED
    unprotect(later, "default", ["c"])
    assert protected_among(later, "default", ["c"]) == []


def test_protecting_leaves_what_people_ask_for_alone(ledger):
    protect(ledger, "default", ["my-finetune"])
    accept(ledger, asking(id="r1"))
    touch(ledger, "default", ["my-finetune"])
    assert get(ledger, "r1").state is State.QUEUED


def test_use_before_the_plan_is_no_reason(ledger, clocked):
    touch(ledger, "default", ["my-finetune"])
    later = clocked.after(hours=1)
    accept(later, cleaning(later))
    assert get(later, "c1").state is State.SCHEDULED


def test_use_is_reported_since_the_first_after_a_day_without(ledger, clocked):
    assert load(ledger, "default").use_since is None
    start = from_ms(ledger.now_ms())
    for _ in range(4):
        touch(clocked(), "default", ["a"])
        clocked.after(hours=20)
    found = load(clocked(), "default")
    assert found.use_since
    assert abs(found.use_since - start) < timedelta(minutes=1)
    silent = load(clocked.after(hours=20), "default")
    assert (silent.use_since, silent.use_last) == (None, found.use_last)
    touch(clocked(), "default", ["b"])
    again = load(clocked(), "default")
    assert again.use_since == again.use_last != found.use_last


@pytest.mark.parametrize("ids", [["fine", ""], ["a b"], [7]])
def test_a_bad_id_changes_nothing(ledger, ids):
    with pytest.raises(InvalidRequest):
        touch(ledger, "default", ids)
    with pytest.raises(InvalidRequest, match="'nobody' is not known: give one of default"):
        protect(ledger, "nobody", ["fine"])
    assert load(ledger, "default").used == {}


def test_the_name_of_another_finetune_is_left_alone(ledger):
    # Given a survey after the plan that saw another incarnation.
    ledger.redis.hset("janitor:inventory:default", "my-finetune", '{"fingerprint": "v1:timestamp=bbb"}')
    accept(ledger, cleaning(ledger))
    deletion = get(ledger, "c1")
    assert (deletion.state, deletion.message) == (
        State.CANCELLED,
        "kept: the name belongs to another finetune now",
    )


def test_surveys_have_half_of_the_permits_and_wait_for_the_rest(ledger, clocked):
    words = [ledger.permit("default", f"survey:one:{n}", 8).word for n in range(5)]
    assert words == ["go"] * 4 + ["full"]
    assert ledger.permit("default", "survey:one:0", 8).word == "go", "a holder keeps its own"
    ledger.release("default", "survey:one:0")
    assert ledger.permit("default", "survey:two:0", 8).word == "go"
    ledger.account("default", "park", reason="403", probe_ms=30_000)
    assert ledger.permit("default", "survey:two:0", 8).word == "parked"
    # One whose survey was killed frees its permit when its call must have ended.
    ledger.account("default", "unpark")
    later = clocked.after(seconds=21)
    assert [later.permit("default", f"survey:three:{n}", 8).word for n in range(4)] == ["go"] * 4


def test_a_paused_account_may_be_looked_at(ledger):
    ledger.account("default", "pause", reason="test")
    assert ledger.permit("default", "survey:one:0", 8).word == "go"
