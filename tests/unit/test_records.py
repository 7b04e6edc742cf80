"""Records: what may be asked for, which state may follow which, and the one form they are read in."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks import records
from tasks.errors import InvalidRequest
from tasks.records import FINAL, TRANSITIONS, Attempt, Deletion, Evidence, NewRequest, Request, State

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
REQUEST = Request("r1", NOON, "billing", "trial over", "name", NOON, missing_ok=True)
ATTEMPT = Attempt(NOON, sent=True, http_status=200, message="deleted", seconds=0.2)
DELETION = Deletion(
    id="d1", finetune_id="my-finetune", account="default", state=State.DELETED, evidence=Evidence.RESPONSE,
    created_at=NOON, due_at=NOON, deadline=NOON, finished_at=NOON, requests=(REQUEST,), attempts=(ATTEMPT,),
)  # fmt: skip


def refused(check, *given, **options):
    with pytest.raises(InvalidRequest) as error:
        check(*given, **options)
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize("finetune_id", ["a", "x" * 255, "my_fine-tune.2", "3fa85f64-5717-4562-b3fc-2c963f66afa6"])
def test_a_finetune_id_is_taken_as_it_is(finetune_id):
    assert records.check_finetune_id(finetune_id) == finetune_id


@pytest.mark.parametrize(
    ("finetune_id", "why"),
    [
        ("", "is empty"), ("x" * 256, "has 256 characters"), (None, "None is no text"), (7, "7 is no text"),
        (["a"], "['a'] is no text"), ("a b", "'a b' has a space"), (" a", "has a space"),
        ("a\n", r"'a\n' has a space or a control character"), ("a\x00", "control character"),
        ("a\u2028b", "control character"), ("\ud800", "control character"),
        ("org/name", "another organisation's finetune"),
    ],
)  # fmt: skip
def test_an_id_the_api_cannot_know_is_refused(finetune_id, why):
    line = refused(records.check_finetune_id, finetune_id)
    assert why in line
    assert "give" in line
    assert len(line) < 250


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (records.check_request_id, ["a", "x" * 128, "order 7"], ["", "x" * 129, "a\n", None, 7, b"a"]),
        (
            records.check_account,
            ["default", "eu_2", "x" * 40],
            ["", "EU", "a-b", "a b", "x" * 41, "é", None, "a\n"],
        ),
        (records.check_state, list(State), ["", "done", "DELETED"]),
    ],
)
def test_other_names_are_checked_likewise(check, good, bad):
    assert [check(name) for name in good] == good
    assert all("give" in refused(check, name) for name in bad)


def test_what_is_not_known_here_or_not_ours_is_refused_unless_it_is_allowed():
    assert records.check_finetune_id("org/name", allow_org_ids=True) == "org/name"
    assert records.check_account("eu", {"eu", "default"}) == "eu"
    assert "'us' is not known: give one of default, eu" in refused(records.check_account, "us", {"eu", "default"})


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"id": ""}, "request id"), ({"finetune_id": "a b"}, "finetune id"), ({"account": "EU"}, "account"),
        ({"reason": "two\nlines"}, "reason"), ({"reason": "x" * 501}, "reason"),
        ({"requested_by": 7}, "requested_by"), ({"missing_ok": "yes"}, "missing_ok"),
        ({"due_at": NOON, "delay": timedelta(0)}, "give one of them"),
        ({"delay": timedelta(seconds=-1)}, "-1 seconds"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_meant_so_is_refused(fields, why):
    request = NewRequest(**{"id": "r1", "finetune_id": "a", **fields})
    assert why in refused(request.checked, allow_org_ids=False)


def test_a_request_in_order_is_taken():
    now = NewRequest("r1", "org/name", reason="läuft ab", delay=timedelta(0), missing_ok=True)
    later = NewRequest("r1", "org/name", due_at=NOON)
    assert [request.checked(allow_org_ids=True) for request in (now, later)] == [now, later]


def test_every_state_has_its_followers_and_a_final_one_only_a_late_confirmation():
    assert set(TRANSITIONS) == set(State)
    assert all(TRANSITIONS[state] == {State.DELETED} - {state} for state in FINAL)
    assert all(TRANSITIONS[state] >= FINAL for state in set(State) - FINAL)
    assert not any(state in after for state, after in TRANSITIONS.items())
    assert State.RUNNING not in TRANSITIONS[State.SCHEDULED], "nothing runs before it is due"


@pytest.mark.parametrize("missing_ok", [True, False])
def test_done_is_deleted_or_missing_where_that_is_fine(missing_ok):
    ended = {state: replace(DELETION, state=state) for state in State}
    done = {state for state, deletion in ended.items() if deletion.is_done(missing_ok=missing_ok)}
    assert done == {State.DELETED} | ({State.NOT_FOUND} if missing_ok else set())


def test_times_are_milliseconds_in_the_ledger():
    assert records.from_ms("1500.0") == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert records.to_ms(NOON) == 1_772_366_400_000


def test_the_json_form_is_stable():
    record = DELETION.to_json()
    assert " ".join(record) == (
        "id finetune_id account state status message timestamp evidence created_at due_at deadline finished_at "
        "looked_at fingerprint cancel_requested_at retried_by requests attempts"
    )
    assert " ".join(record["requests"][0]) == "id at requested_by reason source due_at missing_ok"
    assert " ".join(record["attempts"][0]) == "at sent http_status error message seconds"
    assert json.loads(json.dumps(record)) == record
    assert (DELETION.request("r1"), DELETION.request("r2")) == (REQUEST, None)
    assert (record["state"], record["evidence"], record["looked_at"]) == ("deleted", "response", None)
    assert record["finished_at"] == "2026-03-01T12:00:00.000Z"
