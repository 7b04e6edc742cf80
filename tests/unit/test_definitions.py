"""What other services send by name: read with care, refused in one line, the same again when it comes twice."""

import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.definitions import by_name, by_name_many, callbacks_of
from tasks.errors import InvalidRequest
from tasks.intake import BULK
from tasks.records import NewRequest


def message(**parts) -> SimpleNamespace:
    absent = dict.fromkeys(("callbacks", "errbacks", "chain", "chord", "group", "group_index", "parent_id"))
    return SimpleNamespace(**{**absent, "root_id": "t1", **parts})


def refused(read, *given) -> str:
    with pytest.raises(InvalidRequest) as error:
        read(*given)
    (line,) = str(error.value).splitlines()
    return line


def test_the_least_a_producer_sends_is_a_finetune():
    assert by_name("t1", "a", {}) == NewRequest("t1", "a", account="default", source="name")


def test_who_and_why_travel_with_the_request():
    told: dict[str, Any] = {"account": "eu", "reason": "trial", "requested_by": "billing", "missing_ok": True}
    assert by_name("t1", "a", told) == NewRequest("t1", "a", source="name", **told)


def test_times_are_iso_8601_and_a_delay_is_in_seconds():
    request = by_name("t1", "a", {"due_at": "2026-12-24T20:00:00+02:00", "requested_at": "2026-12-01"})
    assert request.due_at == datetime(2026, 12, 24, 18, tzinfo=UTC)
    assert request.requested_at == datetime(2026, 12, 1, tzinfo=UTC)
    assert by_name("t1", "a", {"delay_seconds": 1.5}).delay == timedelta(seconds=1.5)
    assert by_name("t1", "a", {"delay_seconds": 0, "due_at": ""}).delay == timedelta(0)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dueat": "x"}, "'dueat' is not an argument: accepted are account, reason,"),
        ({"source": "http"}, "'source' is not an argument"),
        ({"fingerprint": "v1:"}, "'fingerprint' is not an argument"),
        ({"due_at": "soon"}, "'soon' is not a time: give"),
        ({"due_at": 1_798_135_200}, "due_at is 1798135200: give a time in ISO 8601"),
        ({"requested_at": ["2026-12-01"]}, "requested_at is ['2026-12-01']: give"),
        *(
            ({"delay_seconds": given}, f"delay_seconds is {given!r}: give a number of seconds")
            for given in (-1, "60", True, float("nan"), float("inf"), 10**12, [1])
        ),
    ],
)
def test_arguments_that_cannot_be_meant_are_refused_in_one_line(options, why):
    assert refused(by_name, "t1", "a", options).startswith(why)
    assert refused(by_name_many, "t1", ["a"], options).startswith(why)


def test_many_are_one_request_each_and_the_same_again_when_the_message_comes_twice():
    ids = [request.id for request in by_name_many("t1", ["a", "b", "a"], {})]
    assert ids == [request.id for request in by_name_many("t1", ("a", "b"), {})]
    assert ids[1:] == [request.id for request in by_name_many("t1", ["b"], {})]
    assert [uuid.UUID(one).version for one in ids] == [5, 5]
    assert not set(ids) & {request.id for request in by_name_many("t2", ["a", "b"], {})}


@pytest.mark.parametrize(("count", "bulk"), [(1, False), (BULK, False), (BULK + 1, True)])
def test_more_than_a_hundred_finetunes_let_single_requests_go_first(count, bulk):
    requests = by_name_many("t1", [f"f{n}" for n in range(count)] + ["f0"] * 50, {"reason": "bulk"})
    assert {(request.bulk, request.reason) for request in requests} == {(bulk, "bulk")}


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ("abc", "must be a list"), ([], "must be a list of at least one"), (None, "must be a list"),
        ({"a": 1}, "must be a list"), (["a", "b c"], "'b c' has a space"), (["a", None], "None is no text"),
        (["a", ["b"]], "['b'] is no text"), (["a", ""], "is empty"),
    ],
)  # fmt: skip
def test_a_list_with_one_bad_finetune_is_refused_whole(given, why):
    assert why in refused(by_name_many, "t1", given, {})


def test_a_message_without_callbacks_stores_none():
    assert callbacks_of(message()) is None
    assert callbacks_of(message(callbacks=[], chain=[])) is None


@pytest.mark.parametrize(
    ("attribute", "argument"),
    [("callbacks", "link"), ("errbacks", "link_error"), ("chain", "chain"), ("chord", "chord")],
)
def test_callbacks_are_kept_under_the_names_they_are_sent_again_with(attribute, argument):
    notify = [{"task": "notify"}]
    kept = callbacks_of(message(**{attribute: notify}, group="g1", group_index=2)) or {}
    assert {name: value for name, value in kept.items() if value is not None} == {
        argument: notify, "group_id": "g1", "group_index": 2, "root_id": "t1",
    }  # fmt: skip
    assert {"link", "link_error", "chain", "chord", "parent_id"} <= kept.keys()
