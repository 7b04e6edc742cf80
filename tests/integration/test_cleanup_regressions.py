"""What a review broke: withdrawn cleanups beside the requests of people, one case each."""

import json
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from tasks.inventory import load, protect, report_use, touch, unprotect
from tasks.queries import get
from tasks.records import State, from_ms
from tests.conftest import asking, outcome
from tests.integration.test_cleanup_ledger import HOUR, accept, cleaning

MONTH = timedelta(days=30)


def due_in(ledger, id_):
    return get(ledger, id_).due_at - from_ms(ledger.now_ms())


def claim(ledger):
    (claimed,), _ = ledger.claim("default", "w", 10, looks_first=True)
    return claimed


def hastened(ledger, **fields):
    """Somebody's deletion in a month, which a cleanup has brought forward to now."""
    accept(ledger, asking(id="r1", delay=MONTH, fingerprint="v1:timestamp=aaa"))
    accept(ledger, cleaning(ledger, delay=None, **fields))


def test_a_claim_that_finds_a_cleanup_spared_gives_the_rest_its_own_time_again(ledger):
    hastened(ledger)
    ledger.redis.hset("janitor:protected:default", "my-finetune", ledger.now_ms() + 86_400_000)
    assert ledger.claim("default", "w", 10)[0] == []
    assert (get(ledger, "r1").state, due_in(ledger, "r1") > 29 * timedelta(days=1)) == (State.SCHEDULED, True)


class TestTheTimeOfWhoeverIsLeft:
    """Brought forward by a cleanup and no longer wanted by it, a deletion is not carried out early."""

    def test_where_a_worker_holds_it_but_has_not_called(self, ledger):
        hastened(ledger)
        claimed = claim(ledger)
        touch(ledger, "default", ["my-finetune"])
        assert ledger.check([claimed])[0].word == "lost"
        ledger.conclude([outcome(claimed, "queued")])
        assert get(ledger, "r1").state is State.SCHEDULED
        assert due_in(ledger, "r1") > 29 * timedelta(days=1)
        assert ledger.redis.zcard("janitor:permits:default") == 0

    def test_where_a_call_under_way_is_handed_back(self, ledger):
        hastened(ledger)
        claimed = claim(ledger)
        ledger.check([claimed], mark=True)
        touch(ledger, "default", ["my-finetune"])
        ledger.conclude([outcome(claimed, "queued", delay_ms=5000)])
        assert due_in(ledger, "r1") > 29 * timedelta(days=1)

    def test_where_the_worker_waits_between_two_calls(self, ledger):
        hastened(ledger)
        claimed = claim(ledger)
        ledger.check([claimed], mark=True)
        touch(ledger, "default", ["my-finetune"])
        ledger.wait(claimed, "", 0)
        assert ledger.check([claimed])[0].word == "lost", "no second call is made before its time"

    def test_where_it_had_been_tried_and_waits_to_be_tried_again(self, ledger):
        hastened(ledger)
        ledger.conclude([outcome(claim(ledger), "queued", delay_ms=5000)])
        touch(ledger, "default", ["my-finetune"])
        assert due_in(ledger, "r1") > 29 * timedelta(days=1)

    def test_where_the_worker_died_in_its_call(self, ledger, clocked):
        hastened(ledger)
        ledger.check([claim(ledger)], mark=True)
        touch(ledger, "default", ["my-finetune"])
        late = clocked.after(seconds=31)
        late.dispatch(["w/0"], alive_for=HOUR)
        assert (get(late, "r1").state, due_in(late, "r1") > 29 * timedelta(days=1)) == (State.SCHEDULED, True)

    def test_a_backoff_longer_than_its_own_time_stands(self, ledger):
        accept(ledger, asking(id="r1", delay=timedelta(seconds=20), fingerprint="v1:timestamp=aaa"))
        accept(ledger, cleaning(ledger, delay=None))
        ledger.conclude([outcome(claim(ledger), "queued", delay_ms=600_000)])
        touch(ledger, "default", ["my-finetune"])
        assert due_in(ledger, "r1") > timedelta(minutes=9)

    def test_a_request_for_another_incarnation_hastens_nothing(self, ledger):
        accept(ledger, asking(id="r1", delay=MONTH, fingerprint="v1:timestamp=aaa"))
        accept(ledger, asking(id="r2", fingerprint="v1:timestamp=bbb"))
        accept(ledger, cleaning(ledger))
        touch(ledger, "default", ["my-finetune"])
        assert due_in(ledger, "r1") > 29 * timedelta(days=1)


def test_a_request_dated_before_the_use_that_withdrew_a_cleanup_is_not_withdrawn_with_it(ledger):
    # Given a call under way for a cleanup, and use, which withdraws it
    accept(ledger, cleaning(ledger, delay=None))
    claimed = claim(ledger)
    ledger.check([claimed], mark=True)
    touch(ledger, "default", ["my-finetune"])
    # When somebody's message arrives that was sent before that, and the call turns out to have done nothing
    accept(ledger, asking(id="r1", requested_at=from_ms(ledger.now_ms()) - timedelta(seconds=20)))
    ledger.conclude([outcome(claimed, "cancelled")])
    # Then only the cleanup's request is withdrawn
    assert get(ledger, "c1").state is State.CANCELLED
    assert (get(ledger, "r1").id, get(ledger, "r1").state) == ("r1", State.QUEUED)


def test_a_plan_older_than_a_request_does_not_make_the_request_older(ledger):
    # The name was used again between the plan and the request: the request means the finetune of now.
    accept(ledger, asking(id="r1", delay=HOUR))
    asked = int(ledger.redis.hget("janitor:d:r1", "asked_at"))
    accept(ledger, cleaning(ledger))
    assert int(ledger.redis.hget("janitor:d:r1", "asked_at")) == asked


@pytest.mark.parametrize("keep", [touch, protect])
def test_a_cleanup_that_joined_one_being_cancelled_is_withdrawn_too(ledger, keep):
    accept(ledger, asking(id="r1", fingerprint="v1:timestamp=aaa"))
    claimed = claim(ledger)
    ledger.check([claimed], mark=True)
    ledger.cancel(["r1"])
    accept(ledger, cleaning(ledger, requested_at=None))
    keep(ledger, "default", ["my-finetune"])
    unprotect(ledger, "default", ["my-finetune"])
    ledger.conclude([outcome(claimed, "cancelled")])
    assert get(ledger, "c1").state is State.CANCELLED
    assert ledger.redis.hgetall("janitor:open:default") == {}


def test_a_name_we_have_deleted_is_another_finetune_from_then_on(ledger, clocked):
    # Given one without a timestamp, known for long
    seen = {"fingerprint": "v1:mode=aaa", "began": None, "unsound": None, "first_seen": 1_700_000_000_000}
    ledger.redis.hset("janitor:inventory:default", "my-finetune", json.dumps(seen))
    accept(ledger, asking(id="r1"))
    ledger.conclude([outcome(claim(ledger), "deleted", evidence="response")])
    # Then one that gets its name looks the same, and is not as old.
    now = json.loads(ledger.redis.hget("janitor:inventory:default", "my-finetune"))
    assert now.pop("first_seen") >= get(ledger, "r1").created_at.timestamp() * 1000
    assert now == {name: value for name, value in seen.items() if name != "first_seen"}


@pytest.mark.parametrize("ids", [["fine", ""], [7, "fine"], ["fine", "a b"], [["fine"], "fine"]])
def test_one_bad_id_does_not_lose_the_use_of_others_where_nobody_waits_for_an_answer(ledger, ids):
    with capture_logs() as logs:
        report_use(ledger, "default", ids)
    assert load(ledger, "default").used.keys() == {"fine"}
    assert [line["event"] for line in logs] == ["use.refused"]


@pytest.mark.parametrize(("account", "ids"), [("nobody", ["fine"]), (None, ["fine"]), ("default", [None])])
def test_use_that_cannot_be_noted_at_all_is_logged(ledger, account, ids):
    with capture_logs() as logs:
        report_use(ledger, account, ids)
    assert [line["event"] for line in logs] == ["use.refused"]
    assert load(ledger, "default").use_since is None


@pytest.mark.parametrize("when", ["accepted", "claimed"])
def test_one_first_seen_after_the_plan_is_another_though_it_looks_the_same(ledger, clocked, when):
    # Given a plan, and its finetune gone since; what has its name now has no timestamp either
    later = clocked.after(minutes=10)
    seen = {"fingerprint": "v1:mode=aaa", "began": None, "unsound": None, "first_seen": later.now_ms()}
    request = cleaning(ledger, fingerprint="v1:mode=aaa", requested_at=from_ms(ledger.now_ms()) - HOUR)
    if when == "claimed":
        accept(later, request)
    later.redis.hset("janitor:inventory:default", "my-finetune", json.dumps(seen))
    if when == "accepted":
        accept(later, request)
    assert clocked.after(hours=2).claim("default", "w", 10)[0] == []
    assert get(ledger, "c1").message == "kept: the name belongs to another finetune now"


def test_one_that_could_not_be_read_since_the_plan_is_kept_for_that_reason(ledger):
    seen = {"fingerprint": None, "began": None, "unsound": None, "first_seen": 1_700_000_000_000}
    ledger.redis.hset("janitor:inventory:default", "my-finetune", json.dumps(seen))
    accept(ledger, cleaning(ledger))
    assert get(ledger, "c1").message == "kept: which finetune it is could not be read"
