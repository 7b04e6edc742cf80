"""One deletion, decided: what each answer of the API leads to, and what the look before the delete says."""

import json
from datetime import timedelta
from typing import Any

import pytest

from tasks.errors import NotSent, Refused, Throttled, TryAgain, WrongFinetune
from tasks.incarnations import fingerprint
from tasks.outcomes import Rules
from tests.unit.fakes import (
    AGELESS,
    DONE,
    GONE,
    NO_KEY,
    NO_PAGE,
    NOT_ALLOWED,
    NOW_MS,
    OTHER,
    OURS,
    RESET,
    THERE,
    Case,
    FakeLedger,
)

REFUSED_CONNECTION = NotSent("the connection was refused or not possible")
BUSY = Throttled("Too Many Requests", http_status=429, retry_after=timedelta(seconds=3))
NO_CREDITS = Throttled("Insufficient credits", http_status=402)
TOO_EARLY = TryAgain("Too Early", http_status=425)
INVALID = Refused("body.finetune_id: not yours", http_status=422, from_api=True)
WRONG = WrongFinetune("asked to delete 'my-finetune', the API says it deleted 'another'", http_status=200)
NO_BUDGET = Rules(retry_budget=timedelta(0))
WHERE_UNCLEAR = Rules(look_first="unclear")
SEEN = fingerprint(THERE)
# A claim of what was looked at before counts as the check of its first call.
KNOWN: dict[str, Any] = {"fingerprint": SEEN, "calling": NOW_MS}
SHORTLY_AGO, LONG_AGO = NOW_MS - 5_000, NOW_MS - 3_600_000
# How long before NOW the finetune of THERE began, by the API's own timestamp.
AGE = timedelta(days=28, hours=2)


def table(rows: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(("case", "result"), list(rows.values()), ids=list(rows))


@table({
    "confirmed": (Case([DONE]), ("deleted/response", 1)),
    "another one was deleted": (Case([WRONG]), ("review", 1)),
    "unclear, then gone": (Case([RESET], [THERE, GONE]), ("deleted/read-back", 1)),
    "unclear, then still there": (Case([RESET, DONE]), ("deleted/response", 2)),
    "unclear, then another's": (Case([RESET], [THERE, OTHER]), ("deleted/read-back", 1)),
    "unclear, read back after a wait": (Case([RESET], [THERE, RESET, GONE]), ("deleted/read-back", 1)),
    "unclear, and so is the list": (Case([RESET, DONE], [THERE, GONE, THERE], [RESET]), ("deleted/response", 2)),
    "not sent": (Case([REFUSED_CONNECTION, DONE]), ("deleted/response", 2)),
    "throttled": (Case([BUSY, DONE]), ("deleted/response", 2)),
    "throttled at the look": (Case([DONE], [BUSY, THERE]), ("deleted/response", 1)),
    "throttled at the read-back": (Case([RESET], [THERE, BUSY, GONE]), ("deleted/read-back", 1)),
    "too early": (Case([TOO_EARLY, DONE]), ("deleted/response", 2)),
    "404 and gone": (Case([GONE], [THERE, GONE]), ("not_found", 1)),
    "404, yet still there": (Case([GONE, DONE]), ("deleted/response", 2)),
    "404, yet in the list": (Case([GONE, DONE], [THERE, GONE, THERE], [[OURS]]), ("deleted/response", 2)),
    "404, and another's by then": (Case([GONE], [THERE, OTHER]), ("superseded", 1)),
    "404 to everything is no news": (
        Case([NO_PAGE, DONE], [THERE, NO_PAGE, THERE], [NO_PAGE]), ("deleted/response", 2)
    ),
    "404 after an unclear attempt": (
        Case([RESET, GONE], [THERE, THERE, THERE, GONE]), ("deleted/read-back", 2)
    ),
    "404 after an earlier claim's unclear attempt": (
        Case([GONE], [THERE, GONE], unclear_at=SHORTLY_AGO), ("deleted/read-back", 1)
    ),
    "404 after an unclear attempt that was settled": (
        Case([GONE], [THERE, GONE], unclear_at=LONG_AGO), ("not_found", 1)
    ),
    "the key is fine, this one is forbidden": (Case([NO_KEY]), ("failed", 1)),
    "refused for good": (Case([INVALID]), ("failed", 1)),
    "refused, an unclear attempt just before": (Case([RESET, INVALID, DONE]), ("deleted/response", 3)),
    "refused, an unclear attempt settled long ago": (Case([INVALID], unclear_at=LONG_AGO), ("failed", 1)),
    "forbidden, an unclear attempt just before": (Case([RESET, NO_KEY, DONE]), ("deleted/response", 3)),
    "gone before any attempt": (Case([], [GONE]), ("not_found", 0)),
    "gone after an earlier claim's unclear attempt": (
        Case([], [GONE], unclear_at=LONG_AGO), ("deleted/read-back", 0)
    ),
    "another's after an earlier claim's unclear attempt": (
        Case([], [OTHER], unclear_at=LONG_AGO, fingerprint=SEEN), ("deleted/read-back", 0)
    ),
    "the look is refused for good": (Case([], [INVALID]), ("failed", 0)),
})  # fmt: skip
def test_each_answer_leads_to_its_outcome(case, result):
    assert case.carried_out().result == result
    assert case.outcome.message


@pytest.mark.parametrize("found", [GONE, OTHER])
def test_what_the_read_back_shows_is_concluded_at_once(found):
    case = Case([RESET], [THERE, found]).carried_out()
    assert (case.result, case.clock.slept) == (("deleted/read-back", 1), [])


def test_the_words_of_the_api_are_kept():
    done, refused = Case([DONE]).carried_out().outcome, Case([INVALID]).carried_out().outcome
    assert (done.status, done.message, done.timestamp) == ("success", "Finetune deleted", "2026-03-01T12:00:00Z")
    assert refused.message == "HTTP 422: body.finetune_id: not yours"


def test_a_wrongly_deleted_finetune_pauses_its_account():
    case = Case([WRONG]).carried_out()
    assert "'another'" in case.written["pause"], "by the script that writes the outcome, or not at all"


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        (BUSY, {"ms": 3_000, "step_ms": 1_000, "most_ms": 60_000}),
        (Throttled("slow down", http_status=503, retry_after=timedelta(0)), {"ms": 0, "step_ms": 1_000}),
        (NO_CREDITS, {"ms": None, "step_ms": 30_000, "most_ms": 300_000}),
    ],
)
def test_throttling_cools_the_whole_account_down_for_as_long_as_the_ledger_says(answer, asked):
    case = Case([answer, DONE], ledger=FakeLedger(cool=timedelta(seconds=4))).carried_out()
    ((action, details),) = case.ledger.actions
    assert (action, case.clock.slept) == ("cool", [4.0])
    assert asked.items() <= details.items()


def test_a_long_cool_down_is_waited_out_in_the_ledger_and_not_held_against_the_deletion():
    case = Case([BUSY], ledger=FakeLedger(cool=timedelta(minutes=10)), due_ago=timedelta(days=8)).carried_out()
    assert case.result == ("queued", 1)
    assert (case.clock.slept, case.outcome.delay, case.run.last_tried) == ([], None, False)


@table({
    "at the delete": (Case([NO_KEY], lists=[NO_KEY]), ("queued", 1)),
    "at the look": (Case([], [NO_KEY], [NO_KEY]), ("queued", 0)),
})  # fmt: skip
def test_a_refused_key_parks_the_account_and_hands_the_deletion_back_as_it_was(case, result):
    assert case.carried_out().result == result
    assert [action for action, _ in case.ledger.actions] == ["park"]
    assert (case.outcome.delay, case.run.last_tried) == (None, False)


@table({
    "same fingerprint": (Case([DONE], fingerprint=SEEN), ("deleted/response", 1)),
    "same fingerprint, asked long ago": (
        Case([DONE], [AGELESS], fingerprint=fingerprint(AGELESS), asked_ago=timedelta(days=9)),
        ("deleted/response", 1),
    ),
    "other fingerprint": (Case(fingerprint=fingerprint(OTHER)), ("superseded", 0)),
    "began after the request": (Case(asked_ago=AGE + timedelta(seconds=61)), ("superseded", 0)),
    "began within the tolerance": (Case([DONE], asked_ago=AGE + timedelta(seconds=59)), ("deleted/response", 1)),
    "no sound age, too late": (Case([], [AGELESS], asked_ago=timedelta(minutes=61)), ("review", 0)),
    "no sound age, in time": (Case([DONE], [AGELESS], asked_ago=timedelta(minutes=59)), ("deleted/response", 1)),
    "no sound age, an unclear attempt before": (Case([], [AGELESS], unclear_at=SHORTLY_AGO), ("review", 0)),
    "a sound age, late": (Case([DONE], asked_ago=timedelta(minutes=61)), ("deleted/response", 1)),
    "details not allowed, listed": (Case([DONE], [NOT_ALLOWED], [[OURS]]), ("deleted/response", 1)),
    "no details page, listed": (Case([DONE], [NO_PAGE], [[OURS]]), ("deleted/response", 1)),
    "details not allowed, not listed": (Case([], [NOT_ALLOWED], [["another"]]), ("not_found", 0)),
    "only the list, too late": (
        Case([], [NOT_ALLOWED], [[OURS]], asked_ago=timedelta(hours=2)), ("review", 0)
    ),
    "only the list, but a fingerprint to keep": (
        Case([], [NOT_ALLOWED], [[OURS]], fingerprint=SEEN, rules=NO_BUDGET), ("queued", 0)
    ),
})  # fmt: skip
def test_the_look_before_the_delete_decides_whether_it_goes_ahead(case, result):
    assert case.carried_out().result == result


def test_a_superseded_deletion_names_what_changed_and_since_when():
    outcome = Case(fingerprint=fingerprint(OTHER), looked_at=SHORTLY_AGO).carried_out().outcome
    assert "trigger_word, mode changed" in str(outcome.message)
    assert outcome.since_ms == SHORTLY_AGO


@pytest.mark.parametrize(
    ("case", "looks"),
    [
        (Case([DONE], rules=WHERE_UNCLEAR), 0),
        (Case([DONE], rules=WHERE_UNCLEAR, fingerprint=SEEN), 1),
        (Case([DONE], rules=WHERE_UNCLEAR, looked_at=SHORTLY_AGO), 1),
        (Case([DONE], rules=WHERE_UNCLEAR, backoffs=1), 1),
        (Case([DONE], rules=WHERE_UNCLEAR, unclear_at=SHORTLY_AGO), 1),
        (Case([RESET, DONE], rules=WHERE_UNCLEAR), 2),
    ],
    ids=[
        "fresh",
        "with a fingerprint",
        "looked at",
        "after a wait",
        "after an unclear attempt",
        "after an unclear answer",
    ],
)
def test_looks_can_be_kept_to_where_something_is_unclear(case, looks):
    assert case.carried_out().outcome.state == "deleted"
    assert case.api.calls["details"] == looks


@pytest.mark.parametrize(
    ("case", "checks"),
    [
        (Case([DONE], [(0.9, THERE)], **KNOWN), 0),
        (Case([DONE], [(1.1, THERE)], **KNOWN), 1),
        (Case([REFUSED_CONNECTION, DONE], **KNOWN), 2),
        (Case([DONE], calling=NOW_MS), 1),
        (Case([DONE], rules=WHERE_UNCLEAR), 1),
        (Case([DONE], rules=WHERE_UNCLEAR, calling=NOW_MS), 0),
    ],
    ids=["quick look", "slow look", "after a wait", "first look", "no mark and no look", "marked and no look"],
)
def test_a_delete_is_sent_with_a_permission_not_older_than_a_second_nor_than_a_wait(case, checks):
    assert case.carried_out().result[0] == "deleted/response"
    assert len(case.ledger.checked) == checks


def test_what_a_first_look_found_is_kept_before_the_delete_is_sent():
    (kept,) = Case([DONE]).carried_out().ledger.checked
    assert (kept.fingerprint, kept.looked_at) == (SEEN, NOW_MS)


def test_a_claim_that_lay_too_long_is_checked_before_anything_is_sent():
    case = Case(ledger=FakeLedger("paused"))
    case.clock.seconds += 2
    assert (case.carried_out().result, case.api.calls["details"]) == (("queued", 0), 0)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lost", "the lease ended"),
        ("paused", "the account is paused"),
        ("parked", "the account is parked"),
        ("full", "no permit is free"),
        ("cooling", "the account cools down"),
    ],
)
def test_without_permission_nothing_is_sent_and_nothing_counted(word, message):
    case = Case([], [(2, THERE)], ledger=FakeLedger(word), rules=NO_BUDGET, due_ago=timedelta(days=8))
    assert (case.carried_out().result, case.outcome.message) == (("queued", 0), message)
    assert (case.outcome.delay, case.run.last_tried) == (None, False)


def test_the_read_back_of_a_slow_call_needs_no_leave_to_delete_but_a_lease():
    paused = Case([(2, RESET)], [THERE, GONE], ledger=FakeLedger("go", "paused")).carried_out()
    lost = Case([(2, RESET)], [THERE, GONE], ledger=FakeLedger(look="lost")).carried_out()
    assert (paused.result, lost.result) == (("deleted/read-back", 1), ("queued", 1))
    assert lost.written["unclear_at"] == NOW_MS


def test_before_a_wait_the_ledger_learns_of_the_attempt_and_of_what_is_unclear():
    case = Case([RESET, DONE], [(0.5, THERE), THERE]).carried_out()
    ((lines, unclear_at),) = case.ledger.kept
    first, second = json.loads(lines), json.loads(case.written["attempts"])
    assert (first["error"], first["sent"], unclear_at) == ("Unclear", True, NOW_MS + 500)
    assert (second["error"], second["http_status"]) == (None, 200)


def test_a_lease_lost_in_a_wait_ends_the_work():
    case = Case([REFUSED_CONNECTION], ledger=FakeLedger(keeps=False)).carried_out()
    assert case.result == ("queued", 1)
    assert json.loads(case.written["attempts"])["sent"] is False
