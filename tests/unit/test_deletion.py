"""One deletion, carried out against a scripted API: what each answer leads to, and when a call may start."""

import json
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks.api.errors import ApiError, NotSent, Refused, Throttled, TryAgain, Unclear, WrongFinetune
from tasks.deletion import Rules
from tasks.errors import LedgerUnavailable
from tasks.judgement import SETTLED_AFTER
from tasks.ledger.types import Try
from tests.unit.fakes import (
    AGELESS,
    AGELESS_OTHER,
    CHANGED,
    DONE,
    ELSEWHERE,
    GONE,
    HELD,
    HERE,
    NEWER,
    NO_KEY,
    NO_PAGE,
    NOT_ALLOWED,
    NOW_MS,
    OURS,
    RESET,
    SEEN,
    SEEN_AGELESS,
    SEEN_CHANGED,
    THERE,
    Case,
    FakeLedger,
)  # fmt: skip

REFUSED_CONNECTION = NotSent("the connection was refused or not possible")
BUSY = Throttled("Too Many Requests", http_status=429, retry_after=timedelta(seconds=3))
NO_CREDITS = Throttled("Insufficient credits", http_status=402)
TOO_EARLY = TryAgain("Too Early", http_status=425)
INVALID = Refused("body.finetune_id: not yours", http_status=422, from_api=True)
REDIRECT = Refused("Found", http_status=302)
WRONG = WrongFinetune("asked to delete 'my-finetune', the API says it deleted 'another'", http_status=200)
ODD_STATUS = Unclear("the answer's status 'Pending' is not a known word of success: queued", http_status=200)
BUG = KeyError("an error of ours")
NO_BUDGET = Rules(retry_budget=timedelta(0))
SHORTLY_AGO, LONG_AGO = NOW_MS - 5_000, NOW_MS - 3_600_000
OVERTAKEN = timedelta(days=30)  # asked for before the finetune of THERE was created
WAITED = timedelta(minutes=61)
PAST_DEADLINE = timedelta(days=7, seconds=1)
UNCLEAR: dict[str, Any] = {"incarnation": SEEN, "unclear_at": SHORTLY_AGO}
SETTLED: dict[str, Any] = {"incarnation": SEEN, "unclear_at": LONG_AGO}


@pytest.fixture(autouse=True)
def logged():
    with capture_logs() as lines:
        yield lines


def table(rows: dict[str, Any]) -> Any:
    return pytest.mark.parametrize(("case", "result"), list(rows.values()), ids=list(rows))


@table({
    "confirmed": (Case([DONE]), ("deleted/response", 1)),
    "another one was deleted": (Case([WRONG]), ("review", 1)),
    "unclear, then gone": (Case([RESET], [THERE, GONE]), ("deleted/read-back", 1)),
    "unclear, then still there": (Case([RESET, DONE]), ("deleted/response", 2)),
    "unclear, then another, created before": (Case([RESET], [THERE, NEWER]), ("review", 1)),
    "unclear, read back after a wait": (Case([RESET], [THERE, RESET, GONE]), ("deleted/read-back", 1)),
    "unclear, and so is the list": (Case([RESET, DONE], [THERE, GONE, THERE], [RESET]), ("deleted/response", 2)),
    "a 200 with no word of success, still there": (Case([ODD_STATUS], rules=NO_BUDGET), ("back", 1)),
    "a 200 with no word of success, gone": (Case([ODD_STATUS], [THERE, GONE]), ("deleted/read-back", 1)),
    "not sent": (Case([REFUSED_CONNECTION, DONE]), ("deleted/response", 2)),
    "throttled": (Case([BUSY, DONE]), ("deleted/response", 2)),
    "throttled at the observation": (Case([DONE], [BUSY, THERE]), ("deleted/response", 1)),
    "throttled at the read-back": (Case([RESET], [THERE, BUSY, GONE]), ("deleted/read-back", 1)),
    "too early": (Case([TOO_EARLY, DONE]), ("deleted/response", 2)),
    "404 and gone": (Case([GONE], [THERE, GONE]), ("not_found", 1)),
    "404, yet still there": (Case([GONE, DONE]), ("deleted/response", 2)),
    "404, yet in the list": (Case([GONE, DONE], [THERE, GONE, THERE], [[OURS]]), ("deleted/response", 2)),
    "404, and another by then": (Case([GONE], [THERE, NEWER], incarnation=SEEN), ("superseded", 1)),
    "404 after an unclear attempt": (
        Case([RESET, GONE], [THERE, THERE, THERE, GONE]), ("deleted/read-back", 2)
    ),
    "404 after an earlier claim's unclear attempt": (
        Case([GONE], [THERE, GONE], **UNCLEAR), ("deleted/read-back", 1)
    ),
    "404 after an unclear attempt that is settled": (Case([GONE], [THERE, GONE], **SETTLED), ("not_found", 1)),
    "the key is fine, this one is forbidden": (Case([NO_KEY]), ("failed", 1)),
    "refused for good": (Case([INVALID]), ("failed", 1)),
    "a redirect is never followed": (Case([REDIRECT]), ("failed", 1)),
    "refused, an unclear attempt settled before": (Case([INVALID], **SETTLED), ("failed", 1)),
    "gone before any attempt": (Case([], [GONE]), ("not_found", 0)),
    "gone after an earlier claim's unclear attempt": (Case([], [GONE], **SETTLED), ("deleted/read-back", 0)),
    "another, created after an earlier claim's attempt": (Case([], [NEWER], **SETTLED), ("deleted/read-back", 0)),
    "the observation is refused for good": (Case([], [INVALID]), ("failed", 0)),
    "the observation is refused, an attempt is unclear": (Case([], [INVALID], **UNCLEAR), ("back", 0)),
    "the observation fails": (Case([], [RESET], rules=NO_BUDGET), ("back", 0)),
    "the observation fails once": (Case([DONE], [RESET, THERE]), ("deleted/response", 1)),
})  # fmt: skip
def test_each_answer_leads_to_its_outcome(case, result):
    assert case.carried_out().result == result
    assert case.finish.message


@table({
    "the incarnation seen before": (Case([DONE], incarnation=SEEN), ("deleted/response", 1)),
    "another one": (Case([], [NEWER], incarnation=SEEN), ("superseded", 0)),
    "another one, no creation time": (Case([], [AGELESS_OTHER], incarnation=SEEN_AGELESS), ("superseded", 0)),
    "created after the request": (Case([], [THERE], asked_ago=OVERTAKEN), ("superseded", 0)),
    "no creation time, right away": (Case([DONE], [AGELESS]), ("deleted/response", 1)),
    "no creation time, too late": (Case([], [AGELESS], asked_ago=WAITED), ("review", 0)),
    "no creation time, an unclear attempt before": (Case([], [AGELESS], unclear_at=SHORTLY_AGO), ("review", 0)),
    "not distinguishable, right away": (
        Case([DONE], [{**CHANGED, "views": 9}], incarnation=SEEN_CHANGED), ("deleted/response", 1)
    ),
    "details not allowed, listed": (Case([DONE], [NOT_ALLOWED], [[OURS]]), ("deleted/response", 1)),
    "no details page, listed": (Case([DONE], [NO_PAGE], [[OURS]]), ("deleted/response", 1)),
    "no details page, not listed, and the delete finds it": (
        Case([DONE], [NO_PAGE], [["another"]]), ("deleted/response", 1)
    ),
    "no details page, not listed, and the delete does not": (
        Case([GONE], [NO_PAGE], [["another"]]), ("not_found", 1)
    ),
    "no details page, not listed, a 404 that is not the API's": (
        Case([NO_PAGE], [NO_PAGE], [["another"]], rules=NO_BUDGET), ("back", 1)
    ),
    "no details page, not listed, too late": (Case([], [NO_PAGE], [[]], asked_ago=WAITED), ("review", 0)),
    "no details page, not listed, a cleanup": (Case([], [NO_PAGE], [[]], cleanup=True), ("cancelled", 0)),
    "only the list, too late": (Case([], [NOT_ALLOWED], [[OURS]], asked_ago=WAITED), ("review", 0)),
    "404, but listed: not whole": (Case([], [GONE], [[OURS]], rules=NO_BUDGET), ("back", 0)),
    "gone, but seen from elsewhere": (
        Case([], [GONE], incarnation=SEEN, vantage=ELSEWHERE, unclear_at=LONG_AGO), ("review", 0)
    ),
})  # fmt: skip
def test_every_delete_is_preceded_by_an_observation_that_decides(case, result):
    assert case.carried_out().result == result


class TestSiblings:
    DELETED = Try(
        "sibling", 11, 12, "deleted", incarnation=SEEN, vantage=HERE, state="deleted", evidence="response"
    )

    @pytest.mark.parametrize("kind", ["delete", "resolve", "observe"])
    def test_one_that_a_sibling_has_deleted_ends_before_any_call(self, kind):
        case = Case([], [], [], kind=kind, tries=(self.DELETED,)).carried_out()
        assert case.result == ("deleted/sibling", 0)
        assert (case.finish.deleted_by, case.finish.incarnation) == ("sibling", SEEN)
        assert not case.api.calls

    def test_one_asked_for_while_the_call_was_out_observes_for_itself(self):
        # Given a 200 that came after the name was given to another finetune, whose deletion was asked for.
        under_way = Try(
            "sibling", 8, 12, "deleted", incarnation=SEEN, vantage=HERE, state="deleted", evidence="response"
        )
        case = Case([DONE], [NEWER], tries=(under_way,), asked_ago=timedelta(seconds=20))
        assert case.carried_out().result == ("deleted/response", 1)


class TestWords:
    def test_the_words_of_the_api_are_kept(self):
        done, refused = Case([DONE]).carried_out().finish, Case([INVALID]).carried_out().finish
        assert (done.status, done.message, done.timestamp) == (
            "success",
            "Finetune deleted",
            "2026-03-01T12:00:00Z",
        )
        assert refused.message == "HTTP 422: body.finetune_id: not yours"

    def test_each_attempt_is_noted_with_what_was_answered(self):
        case = Case([RESET, DONE]).carried_out()
        (first,) = (json.loads(line) for line in case.ledger.marks[1][1].lines)
        (second,) = case.attempts
        assert (first["error"], first["sent"], first["vantage"]) == ("Unclear", True, HERE)
        assert (second["error"], second["http_status"]) == (None, 200)
        assert case.progress.counts == {"call:200:0.1": 1, "ms:200": 100}

    def test_one_that_never_left_says_so(self):
        (attempt,) = Case([REFUSED_CONNECTION], rules=NO_BUDGET).carried_out().attempts
        assert attempt["sent"] is False

    def test_the_unique_id_just_observed_may_stand_in_the_answer(self):
        case = Case([DONE], [{**THERE, "id": "a1b2"}]).carried_out()
        assert case.api.unique_ids == ["a1b2"]

    def test_what_was_observed_is_kept_before_the_call(self):
        ((attempt, mark),) = Case([DONE]).carried_out().ledger.marks
        assert (attempt, mark.findings.incarnation, mark.findings.vantage) == (1, SEEN, HERE)
        assert mark.findings.observed_at == NOW_MS

    def test_an_unclear_answer_is_kept_before_the_next_call(self):
        case = Case([(2, RESET), DONE], [THERE]).carried_out()
        assert case.result == ("deleted/response", 2)
        assert [mark.findings.unclear_at for _, mark in case.ledger.marks] == [0, NOW_MS + 2_000]

    def test_a_wrongly_deleted_finetune_pauses_its_account(self):
        case = Case([WRONG]).carried_out()
        assert "'another'" in (case.finish.pause or "")


class TestFreshness:
    """A call starts at most two seconds after the observation began."""

    @pytest.mark.parametrize(
        ("seconds", "observations", "result"),
        [
            ([1.9], 1, ("deleted/response", 1)),
            ([2.1, 1.9], 2, ("deleted/response", 1)),
            ([12, 12, 1], 3, ("deleted/response", 1)),
            ([12, 12, 12], 3, ("deleted/response", 1)),
        ],
        ids=["quick", "slow once", "slow twice", "slow always: within two seconds of the last answer"],
    )
    def test_an_older_one_is_made_again_at_most_twice(self, seconds, observations, result):
        case = Case([DONE], [(one, THERE) for one in seconds]).carried_out()
        assert (case.result, case.api.calls["details"]) == (result, observations)

    def test_a_name_that_is_given_to_another_during_a_slow_answer_is_seen(self):
        case = Case([], [(12, THERE), NEWER], incarnation=SEEN).carried_out()
        assert case.result == ("superseded", 0)

    def test_a_process_that_freezes_in_the_mark_observes_again(self):
        case = Case([DONE], [THERE], ledger=FakeLedger(slow=0.9)).carried_out()
        assert (case.result, case.api.calls["details"]) == (("deleted/response", 1), 1)
        frozen = Case([], [THERE, NEWER], ledger=FakeLedger(slow=14), incarnation=SEEN).carried_out()
        assert (frozen.result, frozen.api.calls["details"]) == (("superseded", 0), 2)

    def test_one_that_freezes_each_time_is_handed_back(self):
        case = Case([], [THERE], ledger=FakeLedger(slow=3), rules=NO_BUDGET).carried_out()
        assert (case.result, case.api.calls["details"]) == (("back", 0), 3)
        assert "too old for a safe delete" in case.finish.message

    def test_a_clock_that_stood_still_is_seen_by_redis_clock(self):
        # Given a machine that slept, with a monotonic clock that did not count it.
        case = Case([DONE], [THERE], ledger=FakeLedger(ahead=14), rules=NO_BUDGET).carried_out()
        # Then what it had observed does not count, and it observes again.
        assert (case.result, case.api.calls["details"]) == (("deleted/response", 1), 2)

    def test_redis_clock_set_back_makes_nothing_younger(self):
        case = Case([DONE], [(2.1, THERE), THERE], ledger=FakeLedger(ahead=-3600)).carried_out()
        assert (case.result, case.api.calls["details"]) == (("deleted/response", 1), 2)

    def test_the_second_call_of_an_observation_counts_too(self):
        case = Case([DONE], [NO_PAGE], [(1.5, [OURS]), (1.5, [OURS])]).carried_out()
        assert case.api.calls["list"] == 1
        slow = Case([DONE], [(1.5, NO_PAGE), NO_PAGE], [(1.5, [OURS]), [OURS]]).carried_out()
        assert (slow.result, slow.api.calls["list"]) == (("deleted/response", 1), 2)


class TestMark:
    @pytest.mark.parametrize(
        ("word", "message"),
        [
            ("lost", "the lease ended"), ("paused", "the account is paused"), ("parked", "the account is parked"),
            ("cooling", "the account cools down"),
        ],
    )  # fmt: skip
    def test_without_leave_nothing_is_sent_and_nothing_counted(self, word, message):
        case = Case([], ledger=FakeLedger(word), rules=NO_BUDGET, due_ago=timedelta(days=8)).carried_out()
        assert (case.result, case.finish.message) == (("back", 0), message)
        assert (case.finish.delay, case.finish.counted, case.finish.last_try) == (None, False, False)

    @pytest.mark.parametrize(
        ("word", "message"), [("cancelled", "withdrawn; the finetune is still there"), ("held", HELD)]
    )
    def test_cancelled_or_held_with_nothing_tried_it_ends(self, word, message):
        case = Case([], ledger=FakeLedger(word)).carried_out()
        assert (case.result, case.progress.findings.unclear_at) == (("cancelled", 0), 0)
        assert case.finish.message == message

    @pytest.mark.parametrize("word", ["cancelled", "held"])
    @pytest.mark.parametrize(
        ("details", "result"), [([THERE, THERE], "back"), ([THERE, THERE, THERE, GONE], "deleted/read-back")]
    )
    def test_cancelled_or_held_after_an_unclear_answer_an_observation_decides(self, word, details, result):
        case = Case([RESET], details, ledger=FakeLedger("go", word)).carried_out()
        assert case.result == (result, 1)
        assert case.progress.findings.unclear_at == NOW_MS

    def test_a_refused_mark_says_nothing_of_the_attempt_before_it(self):
        case = Case([RESET], ledger=FakeLedger("go", "paused")).carried_out()
        assert (case.result, case.progress.findings.unclear_at) == (("back", 1), NOW_MS)
        assert [(attempt, one.made) for attempt, one in case.ledger.marks] == [(1, 0), (2, 1)]
        assert case.progress.made == 1, "the last one whose call was made"

    def test_a_mark_whose_call_was_not_made_is_no_attempt(self):
        case = Case([], [THERE], stops_after=1).carried_out()
        assert (len(case.ledger.marks), case.progress.made) == (1, 0)

    def test_the_runner_is_told_of_each(self):
        told: list[int] = []
        case = Case([RESET, DONE])
        from tasks.deletion import carry_out  # noqa: PLC0415 -- the one test that calls it by itself

        carry_out(
            case.claim, api=case.api, ledger=case.ledger, rules=case.rules, sleep=case.clock.sleep,  # type: ignore[arg-type] # fakes
            clock=case.clock, on_mark=lambda: told.append(case.api.calls["delete"]),
        )  # fmt: skip
        assert told == [0, 1]

    def test_a_ledger_that_is_away_hands_the_deletion_back(self):
        case = Case([], ledger=FakeLedger(fails=LedgerUnavailable("Redis is away"))).carried_out()
        assert (case.result, case.finish.message) == (("back", 0), "Redis is away")


class TestCoolDown:
    @pytest.mark.parametrize(
        ("answer", "asked"),
        [
            (BUSY, {"ms": timedelta(seconds=3), "step_ms": timedelta(seconds=1), "most_ms": timedelta(minutes=1)}),
            (Throttled("slow down", http_status=503, retry_after=timedelta(0)), {"ms": timedelta(0)}),
            (NO_CREDITS, {"ms": None, "step_ms": timedelta(seconds=30), "most_ms": timedelta(minutes=5)}),
        ],
    )
    def test_a_short_one_is_waited_out_for_as_long_as_the_ledger_says(self, answer, asked):
        case = Case([answer, DONE], ledger=FakeLedger(cool=timedelta(seconds=4))).carried_out()
        ((action, details),) = case.ledger.actions
        assert (action, case.result) == ("cool", ("deleted/response", 2))
        assert case.clock.slept[0] >= 4
        assert asked.items() <= details.items()

    def test_a_long_one_is_waited_out_in_the_ledger_and_not_held_against_the_deletion(self):
        ledger = FakeLedger(cool=timedelta(minutes=10))
        case = Case([BUSY], ledger=ledger, due_ago=timedelta(days=8)).carried_out()
        assert (case.result, case.clock.slept) == (("back", 1), [])
        assert (case.finish.delay, case.finish.counted, case.finish.last_try) == (None, False, False)

    def test_one_that_another_worker_met_is_waited_out_too(self):
        case = Case([DONE], ledger=FakeLedger("cooling", cool=timedelta(seconds=2))).carried_out()
        assert case.result == ("deleted/response", 1)
        assert case.clock.slept[0] >= 2
        assert case.api.calls["details"] == 2, "and after a wait it is observed again"


class TestNotFoundThrice:
    def test_a_finetune_that_stays_visible_may_not_be_deleted_by_this_key(self):
        case = Case([GONE], not_founds=2).carried_out()
        assert case.result == ("failed", 1)
        assert "3 times" in case.finish.message

    def test_before_the_third_time_it_is_tried_again(self):
        case = Case([GONE], rules=NO_BUDGET, not_founds=1).carried_out()
        assert (case.result, case.progress.not_founds) == (("back", 1), 2)

    def test_with_an_unclear_attempt_it_is_not_failed(self):
        case = Case([GONE], rules=NO_BUDGET, not_founds=2, **UNCLEAR).carried_out()
        assert case.result == ("back", 1)


class TestRefusedAfterAnUnclearAttempt:
    @pytest.mark.parametrize("refusal", [INVALID, NO_KEY, REDIRECT])
    def test_it_is_observed_once_the_attempt_is_settled(self, refusal):
        case = Case([RESET, refusal]).carried_out()
        assert case.result == ("back", 2)
        assert case.finish.delay is not None
        assert timedelta(seconds=29) <= case.finish.delay <= timedelta(seconds=31)
        assert case.progress.findings.unclear_at == NOW_MS

    def test_then_it_has_failed_if_it_is_still_there(self):
        assert Case([INVALID], **SETTLED).carried_out().result == ("failed", 1)

    def test_if_it_is_gone_after_the_attempt_it_is_deleted(self):
        assert Case([], [GONE], **SETTLED).carried_out().result == ("deleted/read-back", 0)


class TestKey:
    @table({
        "at the delete": (Case([NO_KEY], lists=[NO_KEY]), ("back", 1)),
        "at the observation": (Case([], [NO_KEY], [NO_KEY]), ("back", 0)),
        "while a cancel is settled": (
            Case([], [NO_KEY], [NO_KEY], kind="resolve", cancel_requested_at=NOW_MS, **SETTLED), ("back", 0)
        ),
    })  # fmt: skip
    def test_one_that_is_refused_parks_the_account_and_hands_the_deletion_back(self, case, result):
        assert case.carried_out().result == result
        assert [action for action, _ in case.ledger.actions] == ["park"]
        assert (case.finish.delay, case.finish.counted) == (None, False)

    @pytest.mark.parametrize("answer", [RESET, REFUSED_CONNECTION])
    def test_if_the_question_is_not_answered_nothing_is_known(self, answer):
        case = Case([NO_KEY], lists=[answer], rules=NO_BUDGET).carried_out()
        assert (case.result, case.ledger.actions) == (("back", 1), [])


class TestResolve:
    """No further attempt is allowed, by a cancel or the deadline: an observation decides."""

    @pytest.mark.parametrize(
        ("unclear_at", "found", "result"),
        [
            (SHORTLY_AGO, GONE, "deleted/read-back"), (SHORTLY_AGO, NEWER, "review"), (SHORTLY_AGO, THERE, "back"),
            (LONG_AGO, GONE, "deleted/read-back"), (LONG_AGO, NEWER, "deleted/read-back"),
            (LONG_AGO, THERE, "cancelled"), (LONG_AGO, RESET, "back"), (LONG_AGO, AGELESS_OTHER, "review"),
        ],
    )  # fmt: skip
    def test_after_a_cancel(self, unclear_at, found, result):
        case = Case(
            [], [found], kind="resolve", cancel_requested_at=NOW_MS, unclear_at=unclear_at, incarnation=SEEN
        )
        assert case.carried_out().result == (result, 0)

    def test_still_there_is_believed_only_half_a_minute_after_the_attempt(self):
        case = Case([], kind="resolve", cancel_requested_at=NOW_MS, **UNCLEAR).carried_out()
        assert (case.finish.delay, case.finish.counted) == (timedelta(seconds=25), False)

    @pytest.mark.parametrize(
        ("found", "result"),
        [(THERE, "failed"), (GONE, "deleted/read-back"), (NEWER, "deleted/read-back"), (RESET, "review")],
    )
    def test_after_the_last_attempt(self, found, result):
        case = Case([], [found], kind="resolve", last_try=True, due_ago=PAST_DEADLINE, **SETTLED)
        assert case.carried_out().result == (result, 0)

    def test_another_incarnation_is_superseded_not_failed(self):
        case = Case([], [NEWER], kind="resolve", last_try=True, due_ago=PAST_DEADLINE, incarnation=SEEN)
        assert case.carried_out().result == ("superseded", 0)


class TestDeadline:
    @pytest.mark.parametrize(
        ("answer", "result"),
        [(DONE, "deleted/response"), (REFUSED_CONNECTION, "failed"), (GONE, "failed"), (RESET, "back")],
    )
    def test_past_it_one_last_attempt_is_made(self, answer, result):
        case = Case([answer], rules=NO_BUDGET, due_ago=PAST_DEADLINE)
        assert case.carried_out().result == (result, 1)

    def test_a_last_attempt_that_is_unclear_gets_time_to_settle(self):
        case = Case([RESET], rules=NO_BUDGET, due_ago=PAST_DEADLINE).carried_out()
        assert (case.finish.delay, case.finish.last_try) == (SETTLED_AFTER, True)

    def test_it_counts_from_when_the_account_was_started_again(self):
        case = Case([GONE], rules=NO_BUDGET, due_ago=PAST_DEADLINE, started_at=LONG_AGO)
        assert case.carried_out().result == ("back", 1)

    def test_what_is_unclear_until_then_is_left_to_a_person(self):
        case = Case([], [RESET], rules=NO_BUDGET, due_ago=PAST_DEADLINE, **SETTLED)
        assert case.carried_out().result == ("review", 0)

    def test_a_first_observation_gives_nothing_up(self):
        # Given an account that was paused for longer than the deadline, so that no attempt could be made.
        case = Case([], [REFUSED_CONNECTION], kind="observe", due_ago=PAST_DEADLINE).carried_out()
        assert case.result == ("observed", 0)

    def test_before_it_a_used_up_budget_means_a_longer_wait(self):
        case = Case([REFUSED_CONNECTION], rules=NO_BUDGET, backoffs=3).carried_out()
        assert (case.result, case.finish.last_try, case.finish.counted) == (("back", 1), False, True)
        assert case.finish.delay is not None
        assert timedelta(seconds=1) <= case.finish.delay <= timedelta(minutes=4)

    def test_an_error_of_ours_is_given_up_at_it_too(self):
        assert Case([], [BUG], due_ago=PAST_DEADLINE).carried_out().result == ("failed", 0)


class TestShutdown:
    @pytest.mark.parametrize(
        ("calls_before", "details", "deletes", "lists"),
        [(0, 0, 0, 0), (1, 1, 0, 0)],
        ids=["before the observation", "before the delete"],
    )
    def test_no_further_call_starts(self, calls_before, details, deletes, lists):
        case = Case([], [THERE], stops_after=calls_before).carried_out()
        assert (case.result, case.finish.message) == (("back", deletes), "the worker is stopping")
        assert (case.api.calls["details"], case.api.calls["list"]) == (details, lists)
        assert (case.finish.counted, case.finish.delay, case.progress.findings.unclear_at) == (False, None, 0)

    @pytest.mark.parametrize("first", [GONE, NO_KEY])
    def test_nor_the_second_call_of_an_observation_or_a_probe(self, first):
        case = Case([], [first], [[]], stops_after=1).carried_out()
        assert (case.result, case.api.calls["list"]) == (("back", 0), 0)

    def test_an_unclear_attempt_stays_so(self):
        case = Case([RESET], stops_after=2).carried_out()
        assert (case.result, case.progress.findings.unclear_at) == (("back", 1), NOW_MS)

    def test_waits_end_at_once(self):
        case = Case([REFUSED_CONNECTION], stops_after=2).carried_out()
        assert (case.result, case.clock.slept) == (("back", 1), [])


class TestNothingEscapes:
    @pytest.mark.parametrize(
        ("deletes", "details", "unclear_at"),
        [([BUG], [THERE], NOW_MS), ([], [BUG], 0), ([RESET], [THERE, BUG], NOW_MS)],
        ids=["in the delete", "in the observation", "in the read-back"],
    )
    def test_an_error_of_ours_hands_back_and_a_call_that_may_have_left_is_unclear(
        self, deletes, details, unclear_at, logged
    ):
        case = Case(deletes, details).carried_out()
        assert (case.finish.result, case.progress.findings.unclear_at) == ("back", unclear_at)
        assert case.finish.delay == SETTLED_AFTER
        assert [line["event"] for line in logged] == ["deletion.bug"]

    @pytest.mark.parametrize("kind", ["delete", "resolve", "observe"])
    @pytest.mark.parametrize("error", ApiError.__subclasses__())
    @pytest.mark.parametrize("script", ["deletes", "details", "lists"])
    def test_whatever_a_call_raises_there_is_an_end(self, kind, script, error, logged):
        usual: dict[str, Any] = {"deletes": [RESET], "details": [THERE, GONE]}
        case = Case(**{**usual, script: [error("no", http_status=500)]}, rules=NO_BUDGET, kind=kind).carried_out()
        assert case.finish.message or case.finish.result == "observed"
        assert not logged, "it is foreseen, and no error of ours"

    def test_a_record_that_cannot_be_read_is_left_to_a_person(self):
        case = Case([], [], incarnation="{not json").carried_out()
        assert case.result == ("review", 0)


class TestFirstObservation:
    @pytest.mark.parametrize(
        ("found", "result"),
        [
            (THERE, "observed"), (GONE, "not_found"), (AGELESS, "review"), (RESET, "observed"), (BUG, "observed"),
            (BUSY, "observed"), (NO_KEY, "observed"),
        ],
    )  # fmt: skip
    def test_it_ends_only_what_is_clear(self, found, result):
        case = Case([], [found], kind="observe", asked_ago=timedelta(hours=2)).carried_out()
        assert case.result == (result, 0)

    def test_an_attempt_that_is_not_settled_yet_is_observed_again(self):
        # Given a cleanup whose attempt may still be applied: it holds the finetune meanwhile.
        case = Case([], [THERE], kind="observe", cleanup=True, **UNCLEAR).carried_out()
        assert (case.result, case.finish.delay) == (("observed", 0), SETTLED_AFTER - timedelta(seconds=5))
        assert Case([], [THERE], kind="observe", cleanup=True, **SETTLED).carried_out().finish.delay is None

    @pytest.mark.parametrize(("found", "delay"), [(THERE, None), (RESET, SETTLED_AFTER), (BUG, SETTLED_AFTER)])
    def test_what_could_not_be_seen_is_observed_again(self, found, delay):
        assert Case([], [found], kind="observe").carried_out().finish.delay == delay

    def test_it_keeps_what_it_saw(self):
        findings = Case([], kind="observe").carried_out().progress.findings
        assert (findings.incarnation, findings.vantage, findings.observed_at) == (SEEN, HERE, NOW_MS)

    def test_created_after_the_request_ends_it(self):
        assert Case([], kind="observe", asked_ago=OVERTAKEN).carried_out().result == ("superseded", 0)
