"""Records: what may be asked for, which state may follow which, and the one form they are read in."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks import labels as labels_of
from tasks import records
from tasks.errors import InvalidRequest
from tasks.records import FINAL, TRANSITIONS, UNFINISHED, Attempt, Deletion, Evidence, NewRequest, State

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
ATTEMPT = Attempt(NOON, sent=True, http_status=200, message="deleted", seconds=0.2, vantage="api.test 11111111")
DELETION = Deletion(
    id="d1", finetune_id="my-finetune", account="default", state=State.DELETED, evidence=Evidence.RESPONSE,
    created_at=NOON, asked_at=NOON, due_at=NOON, deadline=NOON, finished_at=NOON, attempts=(ATTEMPT,),
    incarnation={"created_at": "2026-02-01T10:00:00Z"},
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
        ("", "is empty"), ("x" * 256, "has 256 characters"), (None, "None is not a text"), (7, "7 is not a text"),
        (["a"], "['a'] is not a text"), ("a b", "'a b' has a space"), (" a", "has a space"),
        ("a\n", r"'a\n' has a space or a control character"), ("a\x00", "control character"),
        ("a\u2028b", "control character"), ("a\u202eb", "control character"), ("\ud800", "control character"),
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
        (records.check_request_id, ["a", "x" * 128, "order 7"], ["", "x" * 129, "a\n", "\ud800", None, 7, b"a"]),
        (
            records.check_account,
            ["default", "eu_2", "x" * 40],
            ["", "EU", "a-b", "a b", "x" * 41, "é", None, "a\n", "*"],
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
        ({"labels": {"": "x"}}, "label"), ({"due_at": NOON, "delay": timedelta(0)}, "give one of them"),
        ({"delay": timedelta(seconds=-1)}, "-1 seconds"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_meant_so_is_refused(fields, why):
    request = NewRequest(**{"id": "r1", "finetune_id": "a", **fields})
    assert why in refused(request.checked, allow_org_ids=False)


@pytest.mark.parametrize("labels", [
    None, {}, {"customer": "4711"}, {"k" * 63: "v" * 63}, {"a.b/c-d_E9": "läuft = ab"},
    {f"k{n}": "x" for n in range(8)},
])  # fmt: skip
def test_labels_are_taken_as_they_are(labels):
    labels_of.check_labels(labels)


@pytest.mark.parametrize(("labels", "why"), [
    ({f"k{n}": "x" for n in range(9)}, "9 labels are given: give at most 8"), ("a=b", "labels is 'a=b'"),
    (["a"], "labels is ['a']"), ({"": "x"}, "the label ''"), ({"a b": "x"}, "the label 'a b'"),
    ({"é": "x"}, "the label"), ({"a\n": "x"}, r"the label 'a\n'"), ({"k" * 64: "x"}, "the label"),
    ({7: "x"}, "the label 7"), ({"a": ""}, "'a': ''"), ({"a": 7}, "'a': 7"),
    ({"a": None}, "'a': None"), ({"a": "v" * 64}, "'a'"), ({"a": "b\n"}, r"'a': 'b\n'"),
    ({"a": "\ud800"}, "'a'"),
])  # fmt: skip
def test_labels_that_no_record_can_have_are_refused(labels, why):
    line = refused(labels_of.check_labels, labels)
    assert line.startswith(why) or why in line
    assert "give" in line
    assert len(line) < 250


@pytest.mark.parametrize(("texts", "labels"), [
    ([], None), (["a=b"], {"a": "b"}), (["a=b=c", "d=e"], {"a": "b=c", "d": "e"}), (["a=b", "a=b"], {"a": "b"}),
])  # fmt: skip
def test_labels_are_written_key_value(texts, labels):
    assert labels_of.parse_labels(texts) == labels


@pytest.mark.parametrize(("texts", "why"), [
    (["a"], "'a' has no ="), (["a=b", "a=c"], "'a' has two values"), (["=b"], "the label ''"), (["a="], "'a': ''"),
])  # fmt: skip
def test_what_is_no_label_is_refused(texts, why):
    assert why in refused(labels_of.parse_labels, texts)


def test_a_request_in_order_is_taken():
    now = NewRequest("r1", "org/name", reason="läuft ab", delay=timedelta(0), missing_ok=True)
    later = NewRequest("r1", "org/name", due_at=NOON)
    assert [request.checked(allow_org_ids=True) for request in (now, later)] == [now, later]


@pytest.mark.parametrize(
    ("fields", "lane"),
    [
        ({}, "single"), ({"bulk": True}, "bulk"), ({"source": "cleanup:p1", "bulk": True}, "cleanup"),
        ({"source": "cleanup:p1"}, "cleanup"), ({"source": "name"}, "single"),
    ],
)  # fmt: skip
def test_the_source_and_the_number_say_the_lane(fields, lane):
    request = NewRequest("r1", "a", **fields)
    assert (request.lane, request.is_cleanup) == (lane, lane == "cleanup")


def test_every_state_has_its_followers_and_a_final_one_has_two_exceptions():
    # Given the table, then a late confirmation and a failed verification are all that changes a final state.
    assert set(TRANSITIONS) == set(State)
    assert {state: TRANSITIONS[state] for state in FINAL} == {
        **{state: {State.DELETED} for state in FINAL},
        State.SUPERSEDED: {State.REVIEW},
        State.DELETED: {State.REVIEW},
    }
    assert all(TRANSITIONS[state] == set(State) for state in UNFINISHED)


@pytest.mark.parametrize(("state", "final"), [(state, state in FINAL) for state in State])
def test_what_is_final(state, final):
    assert replace(DELETION, state=state).is_final is final


def test_a_state_of_another_version_is_final_and_not_done():
    unknown = replace(DELETION, state="paused")
    assert (unknown.is_final, unknown.is_done, unknown.to_json()["state"]) == (True, False, "paused")


@pytest.mark.parametrize("missing_ok", [True, False])
def test_done_is_deleted_or_missing_if_that_is_fine(missing_ok):
    ended = {state: replace(DELETION, state=state, missing_ok=missing_ok) for state in State}
    done = {state for state, deletion in ended.items() if deletion.is_done}
    assert done == {State.DELETED} | ({State.NOT_FOUND} if missing_ok else set())


def test_times_are_milliseconds_in_the_ledger():
    assert records.from_ms("1500.0") == datetime(1970, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC)
    assert records.to_ms(NOON) == 1_772_366_400_000
    assert records.from_ms(records.to_ms(datetime.max.replace(tzinfo=UTC))).year == 9999
    assert (records.moment(None), records.moment(0)) == (None, datetime(1970, 1, 1, tzinfo=UTC))


def test_the_json_form_is_stable():
    record = DELETION.to_json()
    assert " ".join(record) == (
        "id finetune_id account state evidence status message timestamp source requested_by reason labels "
        "missing_ok created_at asked_at due_at next_try_at deadline finished_at observed_at vantage "
        "incarnation verified_at deleted_by cancel_requested_at cancelled_by cancel_reason resolved_at "
        "resolved_by resolution retry_of retried_by waiting_for attempts"
    )
    assert " ".join(record["attempts"][0]) == "at sent http_status error message seconds vantage"
    assert json.loads(json.dumps(record)) == record
    assert (record["state"], record["evidence"], record["observed_at"]) == ("deleted", "response", None)
    assert (record["finished_at"], record["incarnation"]) == (
        "2026-03-01T12:00:00.000Z",
        {"created_at": "2026-02-01T10:00:00Z"},
    )
