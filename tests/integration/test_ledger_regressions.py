"""Faults of the scripts that were found once, each with the case that showed it."""

import json
from datetime import timedelta

import pytest

from tasks.errors import LedgerRefused, LedgerUnavailable
from tasks.queries import Filter, get, list_deletions
from tasks.records import State
from tests.conftest import asking, outcome

FOREVER = timedelta(days=400)


def accept(ledger, *requests):
    return ledger.accept(requests)[0]


def claim(ledger, want=100, *, looks_first=False):
    return ledger.claim("default", "worker", want, looks_first=looks_first)[0]


def test_a_cancel_of_a_request_that_joined_after_the_first_cancel_holds_for_it_too(ledger):
    accept(ledger, asking(id="first"))
    (held,) = claim(ledger)
    ledger.cancel(["first"])
    accept(ledger, asking(id="second"))
    assert ledger.cancel(["second"]) == [("requested", "first")]
    ledger.conclude([outcome(held, "queued")])
    assert get(ledger, "second").state is State.CANCELLED
    assert claim(ledger) == []


@pytest.mark.parametrize("state", ["deleted", "superseded"])
def test_a_request_made_for_the_new_incarnation_becomes_a_deletion_of_its_own(ledger, clocked, state):
    accept(ledger, asking(id="old"))
    (held,) = claim(ledger)
    later = clocked.after(seconds=5)
    accept(later, asking(id="new"))
    later.conclude([outcome(held, state, since_ms=held.claimed_at + 1000)])
    assert [get(ledger, id_).state for id_ in ("old", "new")] == [state, State.QUEUED]
    assert get(ledger, "new").id == "new"


def test_a_request_made_after_a_cancel_is_its_own_however_the_first_ends(ledger, clocked):
    accept(ledger, asking(id="old"))
    (held,) = claim(ledger)
    ledger.cancel(["old"])
    later = clocked.after(seconds=5)
    accept(later, asking(id="new"))
    later.conclude([outcome(held, "review")])
    assert [get(ledger, id_).state for id_ in ("old", "new")] == [State.REVIEW, State.QUEUED]


def test_a_look_that_began_before_an_attempt_changes_nothing_of_it(ledger, clocked):
    # Given a look under way, while the deletion is claimed, attempted without a clear answer and handed back.
    accept(ledger, asking(id="r1", delay=timedelta(seconds=2)))
    (look,) = claim(ledger)
    later = clocked.after(seconds=3)
    (held,) = claim(later)
    assert (look.kind, held.kind) == ("look", "delete")
    later.conclude([outcome(held, "queued", unclear_at=held.claimed_at, delay_ms=5000)])
    assert later.conclude([outcome(look, "not_found")])[0] == ["late"]
    assert later.conclude([outcome(look, None)])[0] == ["late"]
    assert later.redis.hget("janitor:d:r1", "unclear_at") == str(held.claimed_at)


def test_a_look_answers_for_nobody_who_joined_since_it_began(ledger):
    accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
    (look,) = claim(ledger)
    accept(ledger, asking(id="r2", delay=timedelta(hours=1)))
    assert ledger.conclude([outcome(look, "not_found")])[0] == ["late"]
    assert get(ledger, "r2").state is State.SCHEDULED


def test_one_claim_never_hands_out_a_look_and_a_delete_of_the_same_deletion(ledger, clocked):
    accept(ledger, *(asking(f"ft-{n}") for n in range(8)))
    claimed = claim(clocked.after(seconds=31))
    assert len({one.id for one in claimed}) == len(claimed) == 8


def test_a_worker_lost_in_its_look_has_sent_nothing(ledger, clocked):
    accept(ledger, asking(id="r1"))
    claim(ledger, looks_first=True)
    clocked.after(seconds=31).dispatch(["w"], alive_for=FOREVER)
    deletion = get(ledger, "r1")
    assert (deletion.state, deletion.attempts) == (State.QUEUED, ())
    assert ledger.redis.hget("janitor:d:r1", "unclear_at") in (None, "")


def test_a_worker_lost_while_it_resolves_a_cancel_has_sent_nothing_more(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    ledger.conclude([outcome(held, "queued", unclear_at=held.claimed_at, attempts='{"at":1,"sent":true}')])
    ledger.cancel(["r1"])
    (resolving,) = claim(ledger)
    assert resolving.cancel_requested_at
    clocked.after(seconds=31).dispatch(["w"], alive_for=FOREVER)
    assert len(get(ledger, "r1").attempts) == 1


def test_looks_leave_half_of_the_permits_to_single_requests(ledger):
    accept(ledger, *(asking(f"later-{n}", delay=timedelta(hours=1), bulk=True) for n in range(50)))
    accept(ledger, *(asking(f"now-{n}") for n in range(10)))
    kinds = [one.kind for one in claim(ledger)]
    assert (kinds.count("delete"), kinds.count("look")) == (4, 4)


def test_a_leftover_request_keeps_the_fingerprint_it_is_guarded_by(ledger, clocked):
    accept(ledger, asking(id="old"))
    (held,) = claim(ledger)
    later = clocked.after(seconds=5)
    accept(later, asking(id="guarded", fingerprint="v1:mode=1", bulk=True))
    later.conclude([outcome(held, "superseded", since_ms=held.claimed_at)])
    (own,) = claim(later)
    assert (own.id, own.fingerprint, own.lane) == ("guarded", "v1:mode=1", "bulk")


def test_a_guarded_request_does_not_hasten_the_deletion_of_another_incarnation(ledger):
    accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
    before = get(ledger, "r1").due_at
    accept(ledger, asking(fingerprint="v1:mode=1"))
    assert get(ledger, "r1").due_at == before


def test_an_outcome_that_alarms_pauses_the_account_in_the_same_step(ledger):
    accept(ledger, asking(id="r1"), asking("other"))
    held = claim(ledger, 1)
    ledger.conclude([outcome(held[0], "review", pause="the API deleted another one")])
    assert claim(ledger) == []
    assert ledger.redis.hgetall("janitor:paused") == {"default": "the API deleted another one"}


def test_what_waits_to_settle_a_cancel_is_woken_while_paused_too(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    ledger.cancel(["r1"])
    ledger.account("default", "pause")
    ledger.conclude([outcome(held, "queued", unclear_at=held.claimed_at, delay_ms=20_000)])
    later = clocked.after(seconds=60)
    assert later.dispatch(["worker/0"], alive_for=FOREVER).wakeups
    assert [one.id for one in claim(later)] == ["r1"]


def test_a_wait_with_nothing_unclear_leaves_nothing_unclear(ledger):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    assert ledger.wait(held, '{"at":1,"sent":false}', 0)
    assert ledger.cancel(["r1"]) == [("cancelled", "r1")]


def test_what_is_sent_again_because_the_answer_was_lost_is_not_noted_twice(ledger):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    for _ in range(2):
        ledger.wait(held, '{"at":1,"sent":true}', 5)
    assert len(get(ledger, "r1").attempts) == 1


def test_two_requests_of_one_id_in_one_call_are_one_request(ledger):
    answers = accept(ledger, asking("a", id="r1"), asking("b", id="r1"))
    assert [(answer.created, answer.known) for answer in answers] == [(True, False), (False, True)]
    assert get(ledger, "r1").finetune_id == "a"


def test_a_cool_down_of_nothing_is_one_that_names_no_time(ledger):
    assert ledger.account("default", "cool", reason="429", ms=0, step_ms=1000, most_ms=60_000) == 1000


def test_dispatch_makes_accounts_known_again_after_a_flush(ledger):
    ledger.redis.flushall()
    ledger.dispatch(["worker/0"], alive_for=FOREVER, accounts={"default": 8})
    accept(ledger, *(asking(f"ft-{n}") for n in range(8)))
    assert len(claim(ledger)) == 8


def test_callbacks_run_once_at_a_time(ledger):
    assert [ledger.take_callbacks("r1"), ledger.take_callbacks("r1")] == [True, False]


def test_an_alarm_pauses_and_ends_it_whoever_holds_it_by_now(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    later = clocked.after(seconds=31)
    later.dispatch(["w"], alive_for=FOREVER)
    later.conclude([outcome(held, "review", pause="the API deleted another one")])
    assert get(ledger, "r1").state is State.REVIEW
    assert ledger.redis.hget("janitor:paused", "default") == "the API deleted another one"


@pytest.mark.parametrize("lost", [False, True])
def test_who_joins_while_it_runs_is_looked_at_when_it_is_handed_back(ledger, clocked, lost):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger, looks_first=True)
    accept(ledger, asking(id="r2"))
    if lost:
        later = clocked.after(seconds=31)
        later.dispatch(["w"], alive_for=FOREVER)
    else:
        ledger.conclude([outcome(held, "queued", delay_ms=3_000_000)])
    assert ledger.redis.zscore("janitor:looks:default", "r1")


def test_a_check_before_a_look_marks_nothing_as_sent(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger, looks_first=True)
    ledger.check([held], mark=False)
    clocked.after(seconds=31).dispatch(["w"], alive_for=FOREVER)
    assert get(ledger, "r1").attempts == ()


def test_what_waited_or_was_looked_at_is_looked_at_again_and_so_not_marked(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    ledger.conclude([outcome(held, "queued", delay_ms=1000)])
    (again,) = claim(clocked.after(seconds=5))
    assert (held.calling > 0, again.calling) == (True, 0)


def test_the_same_cancel_again_withdraws_nobody_who_came_after_it(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    ledger.cancel(["r1"], nonce="message-1")
    later = clocked.after(seconds=5)
    accept(later, asking(id="r2"))
    assert later.cancel(["r1"], nonce="message-1") == [("requested", "r1")]
    later.conclude([outcome(held, "queued")])
    assert [get(ledger, id_).state for id_ in ("r1", "r2")] == [State.CANCELLED, State.QUEUED]


def test_a_look_is_not_begun_twice_while_it_may_take_three_calls(ledger, clocked):
    accept(ledger, asking(id="r1", delay=timedelta(hours=1)))
    claim(ledger)
    assert claim(clocked.after(seconds=59)) == []
    assert [one.kind for one in claim(clocked.after(seconds=2))] == ["look"]


def test_an_accept_sent_again_tells_a_joined_request_what_it_was_told(ledger):
    accept(ledger, asking(id="r1"))
    accept(ledger, asking(id="r2"))
    nonce = ledger.redis.hget("janitor:d:r1", "nonce")
    request = {"id": "r2", "finetune_id": "my-finetune", "account": "default", "source": "name"}
    again = json.loads(ledger._run("accept", requests=[request], nonce=nonce, **ledger._lives()))
    assert again[0] == [["r1", 0, 1]]


def test_a_passing_refusal_is_not_taken_for_a_lasting_one(ledger, redis_client):
    redis_client.config_set("min-replicas-to-write", 1)
    try:
        with pytest.raises(LedgerUnavailable) as raised:
            accept(ledger, asking())
    finally:
        redis_client.config_set("min-replicas-to-write", 0)
    assert not isinstance(raised.value, LedgerRefused)


def test_a_list_leaves_nothing_out_that_moves_while_it_is_read(ledger):
    accept(ledger, *(asking(f"ft-{n}", id=f"r{n:03}", bulk=True) for n in range(450)))
    pages = list_deletions(ledger, Filter(), limit=200)
    seen = [deletion.id for deletion in pages.deletions]
    ledger.cancel(seen[:50])
    rest = list_deletions(ledger, Filter(), limit=1000, cursor=pages.cursor)
    assert {deletion.id for deletion in rest.deletions} == {f"r{n:03}" for n in range(450)} - set(seen)


def test_a_list_leaves_nothing_out_that_moves_between_its_two_looks(ledger, monkeypatch):
    # Given deletions of one moment, claimed while the list is read.
    accept(ledger, *(asking(f"ft-{n}", id=f"r{n}") for n in range(5)))
    look_again = ledger.redis.zrevrangebyscore

    def meanwhile(*given, **options):
        claim(ledger)
        return look_again(*given, **options)

    monkeypatch.setattr(ledger.redis, "zrevrangebyscore", meanwhile)
    assert len(list_deletions(ledger, Filter()).deletions) == 5


def test_a_permit_lasts_for_the_three_calls_of_a_look_that_a_thread_goes_on_to(ledger, clocked):
    accept(ledger, asking(id="r1"))
    (held,) = claim(ledger)
    ledger.conclude([outcome(held, "deleted", evidence="response", goes_on="look")])
    later = clocked.after(seconds=55)
    accept(later, *(asking(f"ft-{n}") for n in range(8)))
    assert len(claim(later)) == 7
