"""Faults that were found once, each with the case that showed it; the domain alone, no Redis, no network."""

import io
import ssl
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import urllib3

from tasks import errors
from tasks.backoff import Again, retried, retry_after
from tasks.durations import parse_time
from tasks.incarnations import api_timestamp, fingerprint
from tasks.outcomes import Rules
from tests.unit.fakes import AGELESS, DONE, GONE, NOW_MS, OTHER, RESET, THERE, Case, FakeLedger
from tests.unit.test_bfl import CLIENT, KEY, wire

SEEN = fingerprint(THERE)
LONG_AGO = NOW_MS - 3_600_000
NO_BUDGET = Rules(retry_budget=timedelta(0))
REFUSED = errors.Refused("no", http_status=422, from_api=True)
LATE = timedelta(days=8)

__all__ = ["wire"]


class BrokenTls(io.BytesIO):
    """A body whose TLS breaks while it is read."""

    def read(self, *_: Any) -> bytes:
        raise ssl.SSLError("decryption failed or bad record mac")


def test_tls_that_breaks_while_the_answer_is_read_is_unclear(wire):
    wire.answer = urllib3.HTTPResponse(BrokenTls(), None, 200, preload_content=False)
    with pytest.raises(errors.Unclear):
        CLIENT.delete_finetune("a")


@pytest.mark.parametrize(
    ("detail", "told"),
    [
        ([{"loc": 5, "msg": "x"}], "5: x"),
        ([{"loc": "body", "msg": "x"}], "body: x"),
        ("caf\ud83d", "caf?"),
        (f"you sent the key {KEY}", "you sent the key ***"),
    ],
)
def test_whatever_the_api_writes_is_one_line_that_can_be_stored_without_the_key(wire, detail, told):
    wire.answers(422, {"detail": detail})
    with pytest.raises(errors.Refused) as raised:
        CLIENT.delete_finetune("a")
    assert str(raised.value) == f"HTTP 422: {told}"


def test_an_answer_nested_beyond_measure_is_unclear(wire):
    wire.answers(200, b"[" * 200_000)
    with pytest.raises(errors.Unclear, match="not JSON"):
        CLIENT.delete_finetune("a")


def test_no_error_keeps_the_request_that_carries_the_key(wire):
    wire.answer = ConnectionResetError("reset")
    with pytest.raises(errors.Unclear) as raised:
        CLIENT.delete_finetune("a")
    assert (raised.value.__context__, raised.value.__cause__) == (None, None)


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00"])
def test_times_at_the_edge_of_the_calendar_are_no_times(text):
    assert api_timestamp({"timestamp": text}, datetime.now(UTC)) is None
    with pytest.raises(errors.InvalidRequest, match="is not a time"):
        parse_time(text)


def test_a_retry_after_with_an_impossible_offset_is_none():
    assert retry_after({"Retry-After": "1 Jan 2020 00:00:00 +99999999999999999"}) is None


def test_a_retry_after_of_nothing_is_no_leave_to_hurry():
    slept: list[float] = []

    def refused():
        raise Again("busy", timedelta(0))

    with pytest.raises(Again):
        retried(refused, timedelta(seconds=2), slept.append, lambda: None)
    assert sum(slept) > 0.2


def test_a_wrong_delete_is_never_repeated_even_where_redis_is_away():
    wrong = errors.WrongFinetune("asked to delete 'a', the API says it deleted 'b'", http_status=200)
    case = Case([wrong], ledger=FakeLedger(keeps=False)).carried_out()
    assert (case.result, case.written["pause"]) == (("review", 1), str(wrong))


@pytest.mark.parametrize("found", [THERE, GONE])
def test_a_cancel_seen_at_the_check_ends_as_a_cancel(found):
    ends = {"cancelled": THERE, "deleted/read-back": GONE}
    case = Case([], [found], ledger=FakeLedger("cancelled"), unclear_at=LONG_AGO, fingerprint=SEEN)
    case.clock.seconds += 2
    assert ends[case.carried_out().result[0]] is found


@pytest.mark.parametrize("details", [[THERE], [RESET]])
def test_a_cancel_past_the_deadline_with_nothing_sent_is_handed_back_to_be_cancelled(details):
    case = Case([], details, cancel_requested_at=NOW_MS, due_ago=LATE, last_tried=1)
    assert case.carried_out().result == ("queued", 0)
    assert case.written["unclear_at"] == ""


def test_a_key_refused_while_the_last_attempt_is_resolved_parks_the_account():
    no_key = errors.KeyRefused("Forbidden", http_status=403, from_api=True)
    case = Case([], [no_key], [no_key], due_ago=LATE, last_tried=1, unclear_at=LONG_AGO).carried_out()
    assert (case.result, [action for action, _ in case.ledger.actions]) == (("queued", 0), ["park"])


def test_an_unclear_attempt_is_not_failed_because_looking_is_refused():
    case = Case([], [REFUSED], unclear_at=LONG_AGO, rules=NO_BUDGET, fingerprint=SEEN).carried_out()
    assert case.result == ("queued", 0)


def test_a_fault_of_ours_is_given_up_at_the_deadline_too():
    case = Case([], [KeyError("ours")], due_ago=LATE).carried_out()
    assert case.result[0] == "failed"


def test_after_a_wait_the_finetune_is_looked_at_in_either_mode():
    case = Case([errors.NotSent("refused"), DONE], rules=Rules(look_first="unclear")).carried_out()
    assert (case.result, case.api.calls["details"]) == (("deleted/response", 2), 1)


def test_requests_made_since_another_incarnation_began_are_told_so():
    case = Case([RESET], [THERE, OTHER], fingerprint=SEEN, looked_at=LONG_AGO).carried_out()
    assert (case.result[0], case.outcome.since_ms) == ("deleted/read-back", NOW_MS)


def test_without_a_fingerprint_an_unclear_attempt_trusts_only_a_sound_age():
    assert Case([], [AGELESS], unclear_at=LONG_AGO).carried_out().result == ("review", 0)


def test_a_check_that_took_too_long_does_not_count():
    # Given a process that is frozen for two seconds in each check.
    ledger = FakeLedger()
    case = Case([], fingerprint=SEEN, calling=0, ledger=ledger)
    check = ledger.check

    def slow(calls, **how):
        verdicts = check(calls, **how)
        case.clock.seconds += 2
        return verdicts

    vars(ledger)["check"] = slow
    assert (case.carried_out().result, len(ledger.checked)) == (("queued", 0), 3)


def test_the_claims_own_age_counts_from_when_it_was_asked_for():
    case = Case([DONE], fingerprint=SEEN, began_ago=3).carried_out()
    assert (case.result[0], len(case.ledger.checked)) == ("deleted/response", 2)


def test_a_leave_to_look_is_no_leave_to_delete():
    # Given a slow answer, whose read-back is let through although the account is paused since.
    case = Case([(2, RESET)], fingerprint=SEEN, ledger=FakeLedger("go", "paused")).carried_out()
    assert case.result == ("queued", 1)


def test_a_stop_is_heeded_before_each_call():
    for seconds_of_the_look in (0, 2):
        case = Case([], [(seconds_of_the_look, THERE)], fingerprint=SEEN)
        case.clock.stopping = True
        assert (case.carried_out().result, case.outcome.message) == (("queued", 0), "the worker is stopping")


def test_past_the_deadline_another_incarnation_is_superseded_not_failed():
    case = Case([], [OTHER], due_ago=LATE, last_tried=1, fingerprint=SEEN, looked_at=LONG_AGO).carried_out()
    assert (case.result, case.outcome.since_ms is not None) == (("superseded", 0), True)


def test_a_stop_is_heeded_before_the_second_call_of_a_look_and_before_a_probe():
    no_key = errors.KeyRefused("Forbidden", http_status=403, from_api=True)
    for first in (GONE, no_key):
        case = Case([], [first], [[]])
        case.clock.stopping = True
        assert (case.carried_out().result, case.api.calls["list"]) == (("queued", 0), 0)
