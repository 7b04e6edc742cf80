"""Cleanups in the ledger: use and protection withdraw a cleanup's deletion, and nobody else's."""

import json
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks.account_stops import cool_down
from tasks.api.errors import Throttled
from tasks.cleanup.inventory import load, protect, protected_among, report_use, touch, unprotect
from tasks.errors import InvalidRequest
from tasks.intake import Intake
from tasks.ledger.holds import hold
from tasks.ledger.queries import get
from tasks.ledger.types import Act
from tasks.records import State, to_ms
from tests.conftest import accept, asking, carry_out_one, claim, finish, mark

PLAN = "cleanup:7a9f3a52-0f7e-4e0b-8f0c-3f4b8c1f5a01"
HOUR = timedelta(hours=1)
WHICH = '{"identity":{"id":"u-1"}}'
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
MIXED = "0F8fad5b-D9cb-469f-A165-70867728950e"


def cleaning(clocked, id_="c1", **fields):
    """A cleanup's request, dated like its plan, which was made five minutes ago."""
    planned_at = clocked.now - timedelta(minutes=5)
    usual = {
        "id": id_,
        "source": PLAN,
        "incarnation": WHICH,
        "observed_at": planned_at,
        "vantage": "api.bfl.ai 0a1b2c3d",
        "delay": HOUR,
        "requested_at": planned_at,
    }
    return asking(**{**usual, **fields})


def intake_of(ledger):
    return Intake(ledger, lambda account: None)


def no_report_waits(ledger, clocked):
    """As maintenance notes it: whatever is due by now may start."""
    ledger.redis.set(ledger.keys.reports_clear, clocked.after(milliseconds=1).now_ms())


def claim_cleanup(ledger, clocked):
    no_report_waits(ledger, clocked)
    return claim(ledger)


def seen_since(ledger, clocked, **fields):
    """What a survey that began now saw."""
    seen = {"incarnation": WHICH, "created": None, "unsound": None, "first_seen": clocked.at_ms, **fields}
    ledger.redis.hset(ledger.keys.inventory("default"), "my-finetune", json.dumps(seen))


NONE = ([], [])
USED = "kept: it was used after the plan was made"
KEEPING = {
    "touch": (lambda ledger, clocked: touch(ledger, "default", ["my-finetune"]), USED),
    "protect": (lambda ledger, clocked: protect(ledger, "default", ["my-finetune"]), "kept: it is protected"),
    "protect until": (
        lambda ledger, clocked: protect(ledger, "default", ["my-finetune"], clocked.now + HOUR),
        "kept: it is protected",
    ),
}


@pytest.mark.parametrize("how", KEEPING)
class TestKept:
    def test_a_waiting_cleanup_is_withdrawn_at_once(self, ledger, clocked, how):
        keep, why = KEEPING[how]
        accept(ledger, cleaning(clocked))
        assert keep(ledger, clocked) == (["c1"], [])
        deletion = get(ledger, "c1")
        assert (deletion.state, deletion.message, deletion.cancelled_by) == (State.CANCELLED, why, "cleanup")
        assert keep(ledger, clocked) == NONE, "it is withdrawn once"

    def test_what_was_kept_before_it_is_accepted_is_withdrawn_at_once(self, ledger, clocked, how):
        keep, why = KEEPING[how]
        assert keep(ledger, clocked) == NONE
        assert accept(ledger, cleaning(clocked)) == ["accepted"]
        assert (get(ledger, "c1").state, get(ledger, "c1").message) == (State.CANCELLED, why)
        assert accept(ledger, cleaning(clocked)) == ["known"], "what was withdrawn stays so"

    def test_the_deletion_of_somebody_else_goes_on(self, ledger, clocked, how):
        accept(ledger, cleaning(clocked), asking(id="r1", delay=3 * HOUR), asking(id="r2"))
        before = get(ledger, "r1")
        assert KEEPING[how][0](ledger, clocked) == (["c1"], [])
        assert get(ledger, "r1") == before
        assert get(ledger, "r2").state == State.QUEUED

    def test_a_call_under_way_ends_as_it_ends(self, ledger, clocked, how):
        # Given a cleanup's delete call under way
        accept(ledger, cleaning(clocked, delay=None))
        claimed = claim_cleanup(ledger, clocked)
        assert mark(ledger, claimed) == "go"
        # When its finetune is kept, then it is told each time that the call cannot be taken back,
        for _ in range(2):
            assert KEEPING[how][0](ledger, clocked) == ([], ["c1"])
        # and what it did is on record.
        assert get(ledger, "c1").state == State.RUNNING
        assert get(ledger, "c1").cancel_requested_at is not None
        finish(ledger, claimed, "deleted", attempt=1)
        assert get(ledger, "c1").state == State.DELETED

    def test_one_that_a_worker_holds_but_has_not_called_is_lost_to_it(self, ledger, clocked, how):
        accept(ledger, cleaning(clocked, delay=None))
        claimed = claim_cleanup(ledger, clocked)
        KEEPING[how][0](ledger, clocked)
        assert get(ledger, "c1").state == State.CANCELLED
        assert mark(ledger, claimed) != "go"


@pytest.mark.parametrize("spelling", [UUID, UUID.upper(), MIXED])
@pytest.mark.parametrize("listed", [UUID, UUID.upper(), MIXED])
@pytest.mark.parametrize("keep", [touch, protect])
@pytest.mark.parametrize("first", ["kept", "accepted"])
def test_two_spellings_of_a_uuid_are_one_finetune(ledger, clocked, spelling, listed, keep, first):
    if first == "accepted":
        accept(ledger, cleaning(clocked, finetune_id=listed))
    keep(ledger, "default", [spelling])
    accept(ledger, cleaning(clocked, finetune_id=listed))
    assert get(ledger, "c1").state == State.CANCELLED
    unprotect(ledger, "default", [spelling.swapcase()])
    assert protected_among(ledger, "default", [UUID, UUID.upper()]) == []
    assert load(ledger, "default").protected == {}


@pytest.mark.parametrize("key", ["used", "protected"])
def test_the_claim_checks_again(ledger, clocked, key):
    # Given one that is kept, though nothing withdrew it, as after a backup was restored
    accept(ledger, cleaning(clocked))
    ledger.redis.hset(getattr(ledger.keys, key)("default"), "my-finetune", clocked.at_ms + 86_400_000)
    late = clocked.after(hours=2)
    assert claim_cleanup(late, clocked) is None
    assert get(late, "c1").state == State.CANCELLED


def test_a_cleanup_waits_while_a_report_of_use_may_wait(ledger, clocked):
    # Given workers that were away for longer than the grace, while services went on reporting use
    no_report_waits(ledger, clocked)
    accept(ledger, cleaning(clocked), asking("asked-for"))
    late = clocked.after(hours=2)
    assert claim(late).finetune_id == "asked-for"
    assert claim(late) is None
    # When none waits any more, it starts
    assert claim_cleanup(late, clocked).id == "c1"


def test_protection_ends_by_itself_or_by_request(ledger, clocked):
    protect(ledger, "default", ["a", "b"], clocked.now + HOUR)
    protect(ledger, "default", ["c"])
    assert protected_among(ledger, "default", ["a", "b", "c", "d"]) == ["a", "b", "c"]
    later = clocked.after(hours=2)
    assert protected_among(later, "default", ["a", "b", "c", "d"]) == ["c"]
    accept(later, cleaning(clocked, finetune_id="a"))
    assert get(later, "c1").state == State.SCHEDULED
    unprotect(later, "default", ["c"])
    assert protected_among(later, "default", ["c"]) == []


def test_protecting_leaves_what_people_ask_for_alone(ledger):
    protect(ledger, "default", ["my-finetune"])
    accept(ledger, asking(id="r1"))
    touch(ledger, "default", ["my-finetune"])
    assert get(ledger, "r1").state == State.QUEUED


def test_use_before_the_plan_is_no_reason(ledger, clocked):
    touch(ledger, "default", ["my-finetune"])
    later = clocked.after(hours=1)
    accept(later, cleaning(clocked))
    assert get(later, "c1").state == State.SCHEDULED


@pytest.mark.parametrize("known_use", [None, 0])
@pytest.mark.parametrize("back", [timedelta(0), timedelta(minutes=20)])
def test_use_after_the_plan_is_seen_by_its_value_whatever_the_clock_says(ledger, clocked, known_use, back):
    # Given a use that the plan knows, if there is one, when the clock is set back and another use is reported,
    if known_use is None:
        touch(ledger, "default", ["my-finetune"])
        known_use = clocked.at_ms
        clocked.after(hours=1)
    request = cleaning(clocked, known_use=known_use)
    touch(clocked.after(seconds=-back.total_seconds()), "default", ["my-finetune"])
    # then the finetune is kept, even if the clock has caught up since.
    accept(clocked.after(hours=1), request)
    assert get(ledger, "c1").message == USED


NOT_REPORTED = "kept: use was not reported without a gap"
REPORTS = {  # hours after the plan at which use of another one is reported: what becomes of one due in 60 hours
    "they go on": ((20, 40, 59), State.RUNNING, None),
    "they stop": ((20,), State.CANCELLED, NOT_REPORTED),
    "they pause for more than a day": ((20, 50), State.CANCELLED, NOT_REPORTED),
}


@pytest.mark.parametrize("reports", REPORTS)
@pytest.mark.parametrize("needs_use", [True, False])
def test_a_cleanup_of_what_is_unused_needs_reports_until_it_starts(ledger, clocked, reports, needs_use):
    # Given a finetune that a policy found unused, and one that was found by its age alone
    hours, state, message = REPORTS[reports]
    touch(ledger, "default", ["other"])
    start = clocked.after(minutes=5).now_ms()
    accept(ledger, cleaning(clocked, needs_use=needs_use, delay=60 * HOUR))
    # When use is reported, or no longer
    for hour in hours:
        clocked.at_ms = start + hour * 3_600_000
        touch(ledger, "default", ["other"])
    clocked.at_ms = start + 60 * 3_600_000
    claim_cleanup(ledger, clocked)
    # Then the first is deleted only if somebody could have said that it is used.
    found = get(ledger, "c1")
    assert (found.state, found.message) == ((state, message) if needs_use else (State.RUNNING, None))


def test_a_plan_of_what_is_unused_is_kept_if_reports_have_stopped_before_it_is_applied(ledger, clocked):
    touch(ledger, "default", ["other"])
    accept(clocked.after(hours=25), cleaning(clocked, needs_use=True))
    assert get(ledger, "c1").message == NOT_REPORTED


def test_use_is_reported_since_the_first_after_a_day_without(ledger, clocked):
    assert load(ledger, "default").use_since is None
    start = clocked.now
    for _ in range(4):
        touch(ledger, "default", ["a"])
        clocked.after(hours=20)
    found = load(ledger, "default")
    assert found.use_since == start
    clocked.after(hours=20)
    assert (load(ledger, "default").use_since, load(ledger, "default").use_last) == (None, found.use_last)
    touch(ledger, "default", ["b"])
    again = load(ledger, "default")
    assert again.use_since == again.use_last == clocked.now


@pytest.mark.parametrize("ids", [["fine", ""], ["a b"], [7]])
def test_a_bad_id_changes_nothing(ledger, ids):
    with pytest.raises(InvalidRequest):
        touch(ledger, "default", ids)
    with pytest.raises(InvalidRequest, match="'nobody' is not known: give one of default"):
        protect(ledger, "nobody", ["fine"])
    assert load(ledger, "default").used == {}


@pytest.mark.parametrize("ids", [["fine", ""], [7, "fine"], ["fine", "a b"], [["fine"], "fine"]])
def test_one_bad_id_does_not_lose_the_use_of_the_others_if_nobody_waits_for_an_answer(ledger, ids):
    with capture_logs() as logs:
        report_use(intake_of(ledger), None, ids)
    assert load(ledger, "default").used.keys() == {"fine"}
    assert [line["event"] for line in logs] == ["use.refused"]


@pytest.mark.parametrize(
    ("account", "ids", "reason"),
    [("nobody", ["fine"], "account"), (7, ["fine"], "account"), ("default", [None], "request")],
)
def test_use_that_cannot_be_noted_at_all_is_logged_and_counted(ledger, account, ids, reason):
    with capture_logs() as logs:
        report_use(intake_of(ledger), account, ids)
    assert [line["event"] for line in logs] == ["use.refused"]
    assert ledger.redis.hget(ledger.keys.stats("default"), f"refused:{reason}") == "1"
    assert load(ledger, "default").used == {}


@pytest.mark.parametrize("when", ["accepted", "claimed"])
def test_one_first_seen_after_the_plan_is_another_though_it_looks_the_same(ledger, clocked, when):
    # Given a plan, and its finetune replaced since
    request = cleaning(clocked)
    clocked.after(minutes=10)
    if when == "claimed":
        accept(ledger, request)
    seen_since(ledger, clocked)
    if when == "accepted":
        accept(ledger, request)
    clocked.after(hours=2)
    assert claim_cleanup(ledger, clocked) is None
    assert get(ledger, "c1").message == "kept: the name belongs to another finetune now"


@pytest.mark.parametrize("row", ["{", "7", '{"incarnation": null}'])
def test_one_whose_row_in_the_inventory_cannot_be_read_is_kept(ledger, clocked, row):
    ledger.redis.hset(ledger.keys.inventory("default"), "my-finetune", row)
    accept(ledger, cleaning(clocked))
    assert get(ledger, "c1").message == "kept: the name belongs to another finetune now"


def test_a_name_we_have_deleted_is_another_finetune_from_then_on(ledger, clocked):
    # Given one without a creation time, known for long
    seen_since(ledger, clocked, first_seen=1_700_000_000_000)
    accept(ledger, asking(id="r1"))
    carry_out_one(ledger)
    # Then one that gets its name looks the same, and is not as old.
    now = json.loads(ledger.redis.hget(ledger.keys.inventory("default"), "my-finetune"))
    assert now == {"incarnation": WHICH, "created": None, "unsound": None, "first_seen": clocked.at_ms}


def test_a_cleanup_leaves_alone_what_has_an_unfinished_deletion(ledger, clocked):
    accept(ledger, asking(id="r1", delay=HOUR), cleaning(clocked))
    assert get(ledger, "c1").message == "kept: another deletion of it is unfinished"
    assert get(ledger, "r1").state == State.SCHEDULED
    accept(ledger, cleaning(clocked, "c2", finetune_id="other"), cleaning(clocked, "c3", finetune_id="other"))
    assert [get(ledger, id_).state for id_ in ("c2", "c3")] == [State.SCHEDULED, State.CANCELLED]


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
    clocked.after(seconds=21)
    assert [ledger.permit("default", f"survey:three:{n}", 8).word for n in range(4)] == ["go"] * 4


def test_a_paused_account_may_be_observed(ledger):
    ledger.account("default", "pause", reason="test")
    assert ledger.permit("default", "survey:one:0", 8).word == "go"


COOL_DOWNS: dict[str, Any] = {
    "a 429 without a time": ({"http_status": 429}, [1, 2, 4]),
    "a 402 without a time": ({"http_status": 402}, [30, 60, 120]),
    "a 503 without a time": ({"http_status": 503}, [1, 2, 4]),
    "what the API asks for": ({"http_status": 429, "retry_after": timedelta(seconds=7)}, [7, 7, 7]),
    "a time of zero": ({"http_status": 429, "retry_after": timedelta(0)}, [1, 2, 4]),
}


@pytest.mark.parametrize("answer", COOL_DOWNS)
def test_a_throttled_account_cools_down_for_all_workers(ledger, clocked, answer):
    fields, seconds = COOL_DOWNS[answer]
    found = []
    for _ in seconds:
        cooling = cool_down(ledger, "default", Throttled("slow down", **fields))
        verdict = ledger.permit("default", "survey:one:0", 8)
        assert (verdict.word, verdict.wait) == ("cooling", cooling)
        found.append(cooling.total_seconds())
        clocked.after(seconds=cooling.total_seconds())
        assert ledger.permit("default", "survey:one:0", 8).word == "go"
    assert found == seconds


def test_the_inventory_of_an_account_that_was_never_surveyed_is_empty(ledger, clocked):
    found = load(ledger, "default")
    assert (found.seen, found.listed_at, found.seen_before, to_ms(found.now)) == ({}, None, None, clocked.at_ms)


@pytest.mark.parametrize("keep", ["used", "protected", "held", "used later"])
def test_a_retry_of_a_cleanups_deletion_is_still_a_cleanup(ledger, clocked, keep):
    # Given a cleanup's deletion that failed, and a finetune that is wanted again since,
    accept(ledger, cleaning(clocked, delay=timedelta(0)))
    finish(ledger, claim_cleanup(ledger, clocked), State.FAILED)

    def want():
        if keep == "held":
            hold(ledger, "default", "my-finetune", None, Act("ana", "command", "a trial"))
        elif keep == "protected":
            protect(ledger, "default", ["my-finetune"])
        else:
            touch(ledger, "default", ["my-finetune"])

    clocked.after(minutes=1)
    if keep != "used later":
        want()
    # when somebody retries all that failed, then it is kept;
    accept(ledger, asking(id="again", retry_of="c1"))
    if keep == "used later":
        want()
    again = get(ledger, "again")
    assert (again.state, again.source) == (State.CANCELLED, PLAN)
    # a request of its own is carried out.
    accept(ledger, asking(id="r1"))
    assert keep == "held" or claim(ledger).id == "r1"


def test_a_retry_of_what_verification_found_still_there_is_carried_out(ledger, clocked):
    # Given a cleanup's deletion of a surveyed finetune, and the same one still there afterwards,
    seen_since(ledger, clocked, first_seen=0)
    accept(ledger, cleaning(clocked, delay=timedelta(0)))
    claimed = claim_cleanup(ledger, clocked)
    assert mark(ledger, claimed) == "go"
    finish(ledger, claimed, attempt=1)
    ended = {"id": "c1", "finished_at": to_ms(get(ledger, "c1").finished_at), "word": "still_there"}
    assert ledger.verify("default", [ended], "still there") == ["c1"]
    # when a person retries it, then it is not taken for another finetune.
    accept(clocked.after(hours=1), asking(id="again", retry_of="c1"))
    assert get(ledger, "again").state is State.QUEUED
