"""How a deletion ends when it is not left to run: cancelled, past its deadline, or struck by a fault of ours."""

import json
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks import errors
from tasks.deletion import SETTLED_AFTER
from tasks.incarnations import fingerprint
from tasks.outcomes import Rules
from tests.unit.fakes import AGELESS, DONE, GONE, NOW_MS, OTHER, RESET, THERE, Case, FakeLedger

REFUSED_CONNECTION = errors.NotSent("the connection was refused or not possible")
BUG = KeyError("a fault of ours")
NO_BUDGET = Rules(retry_budget=timedelta(0))
PAST_DEADLINE = timedelta(days=7, seconds=1)
SHORTLY_AGO, LONG_AGO = NOW_MS - 5_000, NOW_MS - 3_600_000


@pytest.fixture(autouse=True)
def logged():
    with capture_logs() as lines:
        yield lines


class TestCancel:
    def test_before_any_attempt_nothing_is_sent_and_nothing_is_left_to_settle(self):
        case = Case([], [(2, THERE)], ledger=FakeLedger("cancelled")).carried_out()
        assert case.result == ("queued", 0)
        assert case.written["unclear_at"] == "", "so that the ledger writes `cancelled` at once"

    @pytest.mark.parametrize(
        ("unclear_at", "found", "result"),
        [
            (SHORTLY_AGO, GONE, "deleted/read-back"), (SHORTLY_AGO, OTHER, "deleted/read-back"),
            (SHORTLY_AGO, THERE, "queued"), (LONG_AGO, GONE, "deleted/read-back"),
            (LONG_AGO, THERE, "cancelled"), (LONG_AGO, RESET, "queued"),
        ],
    )  # fmt: skip
    def test_with_an_unresolved_attempt_a_look_decides(self, unclear_at, found, result):
        case = Case([], [found], cancel_requested_at=NOW_MS, unclear_at=unclear_at, fingerprint=fingerprint(THERE))
        assert case.carried_out().result == (result, 0)

    def test_still_there_is_believed_only_half_a_minute_after_the_attempt(self):
        case = Case(cancel_requested_at=NOW_MS, unclear_at=SHORTLY_AGO).carried_out()
        assert (case.outcome.delay, case.written["delay_ms"]) == (timedelta(seconds=25), 25_000)

    def test_who_lost_the_lease_does_not_decide(self):
        case = Case(cancel_requested_at=NOW_MS, unclear_at=LONG_AGO, ledger=FakeLedger(look="lost"))
        case.clock.seconds += 2
        assert (case.carried_out().result, case.api.calls["details"]) == (("queued", 0), 0)

    @pytest.mark.parametrize(
        ("details", "result"), [([THERE, THERE], "queued"), ([THERE, THERE, GONE], "deleted/read-back")]
    )
    def test_in_a_wait_after_an_unclear_answer_it_forbids_any_further_attempt(self, details, result):
        case = Case([RESET], details, ledger=FakeLedger("go", "cancelled")).carried_out()
        assert case.result == (result, 1)
        assert case.written["unclear_at"] == NOW_MS


class TestDeadline:
    @pytest.mark.parametrize(
        ("answer", "result"),
        [(DONE, "deleted/response"), (REFUSED_CONNECTION, "failed"), (GONE, "failed"), (RESET, "queued")],
    )
    def test_past_it_one_last_attempt_is_made(self, answer, result):
        case = Case([answer], rules=NO_BUDGET, due_ago=PAST_DEADLINE)
        assert case.carried_out().result == (result, 1)

    def test_a_last_attempt_that_is_unclear_gets_time_to_settle(self):
        case = Case([RESET], rules=NO_BUDGET, due_ago=PAST_DEADLINE).carried_out()
        assert (case.outcome.delay, case.written["last_tried"]) == (SETTLED_AFTER, "1")

    @pytest.mark.parametrize(
        ("found", "result"), [(THERE, "failed"), (GONE, "deleted/read-back"), (RESET, "review")]
    )
    def test_after_the_last_attempt_there_is_only_a_look(self, found, result):
        case = Case([], [found], last_tried=1, unclear_at=LONG_AGO, due_ago=PAST_DEADLINE)
        assert case.carried_out().result == (result, 0)

    def test_what_is_unclear_until_then_is_left_to_a_person(self):
        case = Case([], [RESET], rules=NO_BUDGET, unclear_at=LONG_AGO, due_ago=PAST_DEADLINE)
        assert case.carried_out().result == ("review", 0)

    def test_before_it_a_used_up_budget_only_means_a_longer_wait(self):
        case = Case([REFUSED_CONNECTION], rules=NO_BUDGET, backoffs=3).carried_out()
        assert (case.result, case.written["last_tried"]) == (("queued", 1), "")
        assert case.outcome.delay is not None
        assert timedelta(seconds=1) <= case.outcome.delay <= timedelta(minutes=4)


class TestNothingEscapes:
    @pytest.mark.parametrize(
        ("deletes", "details", "unclear_at"),
        [([BUG], [THERE], NOW_MS), ([], [BUG], ""), ([RESET], [THERE, BUG], NOW_MS)],
    )
    def test_a_bug_hands_the_deletion_back_and_a_call_in_doubt_stays_in_doubt(
        self, deletes, details, unclear_at, logged
    ):
        case = Case(deletes, details)
        case.carried_out()
        assert (case.outcome.state, case.written["unclear_at"]) == ("queued", unclear_at)
        assert case.outcome.delay == SETTLED_AFTER
        assert [line["event"] for line in logged] == ["deletion.bug"]

    def test_a_ledger_that_is_away_hands_the_deletion_back(self):
        ledger = FakeLedger(fails=errors.LedgerUnavailable("Redis is away"))
        case = Case([], [(2, THERE)], ledger=ledger).carried_out()
        assert (case.result, case.outcome.message) == (("queued", 0), "Redis is away")

    @pytest.mark.parametrize("error", errors.ApiError.__subclasses__())
    @pytest.mark.parametrize("script", ["deletes", "details", "lists"])
    def test_whatever_a_call_raises_the_outcome_can_be_written(self, script, error, logged):
        usual: dict[str, Any] = {"deletes": [RESET], "details": [THERE, GONE]}
        case = Case(**{**usual, script: [error("no", http_status=500)]}, rules=NO_BUDGET).carried_out()
        assert json.loads(json.dumps(case.written))["state"] == case.outcome.state
        assert not logged, "it is foreseen, and no bug"


class TestFirstLook:
    @pytest.mark.parametrize(
        ("found", "state"),
        [(THERE, None), (GONE, "not_found"), (AGELESS, "review"), (RESET, None), (BUG, None)],
    )
    def test_it_concludes_only_what_is_clear(self, found, state, logged):
        case = Case([], [found], asked_ago=timedelta(hours=2))
        assert case.run.first_look().state == state
        assert [line["event"] for line in logged] == (["look.bug"] if found is BUG else [])

    @pytest.mark.parametrize(("found", "delay"), [(THERE, None), (RESET, SETTLED_AFTER), (BUG, SETTLED_AFTER)])
    def test_what_could_not_be_seen_is_looked_at_again(self, found, delay):
        assert Case([], [found]).run.first_look().delay == delay

    def test_it_keeps_what_it_saw(self):
        case = Case(kind="look", fingerprint=fingerprint(THERE))
        case.outcome = case.run.first_look()
        assert (case.written["fingerprint"], case.written["looked_at"]) == (fingerprint(THERE), NOW_MS)
        assert (case.written["expected"], case.written["look"]) == (fingerprint(THERE), True)
        assert not Case().written["look"]
