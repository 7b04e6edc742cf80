"""The API client: each answer is a value or one error, in one printable line, without the key."""

import json
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests
from hypothesis import given
from hypothesis import strategies as st

from tasks.api import client as module
from tasks.api import errors
from tasks.api.answers import WORDS_OF_SUCCESS
from tasks.api.client import BflClient
from tasks.api.transport import Reply, Transport
from tasks.text import finetune_key, is_same_name, one_line

KEY = "5ecret-key-of-the-account"
OURS = "my-finetune"
UUID = "3f2504e0-4f89-41d3-9a0c-0305e82c3301"
CONFIRMED = {"status": "success", "message": "gone", "deleted_finetune_id": OURS, "timestamp": "2026-03-01"}
FROM_API = {"detail": "Finetune not found or access denied"}
PROBLEM = {"loc": ["body", "finetune_id"], "msg": "short", "type": "value_error"}


class Wire:
    """In place of the transport: gives one answer, or breaks, and remembers what was sent."""

    def __init__(self) -> None:
        self.sent: list[requests.PreparedRequest] = []
        self.reply: Any = None

    def send(self, request):
        self.sent.append(request)
        return self.reply

    def answers(self, body, status=200, headers=None, reason=None):
        response = requests.Response()
        response.status_code, response.reason = status, reason
        response.headers.update(headers or {})
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.reply = Reply(response, raw, seconds=0.5, broken=None, begun=True)

    def breaks(self, *, begun):
        self.reply = Reply(requests.Response(), b"", seconds=0.5, broken="it broke", begun=begun)

    def delete(self, finetune_id=OURS, **more):
        return client().delete_finetune(finetune_id, **more)

    def error_of(self, call=None) -> errors.ApiError:
        with pytest.raises(errors.ApiError) as raised:
            call() if call else self.delete()
        told = "".join(traceback.format_exception(raised.value))
        assert KEY not in f"{raised.value} {raised.value!r} {vars(raised.value)} {told}"
        assert str(raised.value).isprintable()
        return raised.value


@pytest.fixture
def wire(monkeypatch):
    wire = Wire()
    monkeypatch.setattr(Transport, "send", lambda _, request: wire.send(request))
    return wire


def client(key=KEY, url="https://api.bfl.ai/", **more):
    return BflClient(url, key, **more)


def test_a_delete_is_sent_as_the_contract_says(wire):
    wire.answers(CONFIRMED)
    answer = wire.delete()
    (sent,) = wire.sent
    assert (sent.method, sent.url) == ("POST", "https://api.bfl.ai/v1/delete_finetune")
    assert json.loads(sent.body or b"") == {"finetune_id": OURS}
    assert (sent.headers["x-key"], sent.headers["content-type"]) == (KEY, "application/json")
    assert sent.headers["content-length"] == str(len(sent.body or b""))
    assert answer == module.Answer("success", "gone", "2026-03-01", http_status=200, seconds=0.5)


def test_a_vantage_is_the_host_and_path_and_a_tag_of_the_key():
    one, other = client(url="https://API.bfl.ai/"), client("another-key")
    assert one.host == other.host == "api.bfl.ai"
    assert one.vantage == "api.bfl.ai 4de62712"
    assert one.vantage != other.vantage
    assert client(url="http://user:pass@127.0.0.1:8000/prefix").vantage == "127.0.0.1:8000/prefix 4de62712"
    assert KEY not in repr(one) + one.vantage
    assert "pass" not in repr(client(url="http://user:pass@127.0.0.1"))


@pytest.mark.parametrize("key", ["line\nbreak", "schlüssel", " s3cret", "esc\x1b"])
def test_a_key_that_no_header_can_carry_is_refused_without_being_shown(key):
    with pytest.raises(ValueError, match=r"api\.bfl\.ai") as raised:
        client(key)
    assert key not in str(raised.value)


# Words of success (what broke: `Error`, `failed`, `Pending`, `queued` and `rejected` were taken for success).


@pytest.mark.parametrize("word", [*sorted(WORDS_OF_SUCCESS), "Success", "DELETED", " ok "])
def test_a_known_word_of_success_is_believed_in_any_case(wire, word):
    wire.answers({**CONFIRMED, "status": word})
    assert wire.delete().status == word.strip()


@pytest.mark.parametrize("word", ["Error", "failed", "Pending", "queued", "rejected", "not deleted", "", "okay"])
def test_any_other_word_is_unclear(wire, word):
    wire.answers({**CONFIRMED, "status": word, "message": "as it is"})
    error = wire.error_of()
    assert (type(error), error.http_status) == (errors.Unclear, 200)
    assert f"{word!r} is not a known word of success: as it is" in error.detail


@pytest.mark.parametrize(
    ("asked", "unique_id", "named", "is_ours"),
    [
        (OURS, None, OURS, True),
        (OURS, None, OURS.upper(), False),
        (OURS, None, "another", False),
        (OURS, None, "", False),
        (UUID.upper(), None, UUID, True),
        (UUID, None, UUID.upper(), True),
        (UUID, None, UUID.replace("-", ""), False),
        (OURS, UUID, UUID.upper(), True),
        (OURS, UUID, "another", False),
        (OURS, "", "", False),
    ],
)
def test_an_answer_that_names_another_finetune_is_alarming(wire, asked, unique_id, named, is_ours):
    wire.answers({**CONFIRMED, "deleted_finetune_id": named})
    if is_ours:
        assert wire.delete(asked, unique_id=unique_id).status == "success"
        return
    error = wire.error_of(lambda: wire.delete(asked, unique_id=unique_id))
    assert type(error) is errors.WrongFinetune
    assert f"asked to delete {asked!r}, the API says it deleted {named!r}" in error.detail


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((200, {**CONFIRMED, field: None}) for field in CONFIRMED),
        *((200, {name: value for name, value in CONFIRMED.items() if name != field}) for field in CONFIRMED),
        (202, CONFIRMED), (204, b""), (200, b"<html>"), (200, b""), (200, b"\xff\xfe"), (200, [CONFIRMED]),
        (200, b"[" * 100_000), (100, b""), (103, b""), (199, b""),
    ],
)  # fmt: skip
def test_a_good_status_without_a_complete_confirmation_is_unclear(wire, status, body):
    wire.answers(body, status)
    error = wire.error_of()
    assert (type(error), error.http_status) == (errors.Unclear, status)


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (errors.Throttled, [429, 402]),
        (errors.TryAgain, [408, 425]),
        (errors.NotFound, [404]),
        (errors.KeyRefused, [401, 403]),
        (errors.Refused, [400, 405, 409, 422, 499, 300, 301, 302, 304, 307, 308]),
        (errors.Unclear, [500, 502, 503, 504, 599, 600]),
    ],
)
def test_each_status_stands_for_one_error(wire, kind, statuses):
    for status in statuses:
        wire.answers(FROM_API, status, {"Location": "https://elsewhere.example/"})
        error = wire.error_of()
        assert (type(error), error.http_status, error.retry_after, error.seconds) == (kind, status, None, 0.5)
    assert len(wire.sent) == len(statuses), "nothing is repeated or followed here"


@pytest.mark.parametrize(
    ("status", "asked", "kind", "wait"),
    [
        (429, "7", errors.Throttled, timedelta(seconds=7)),
        (503, "0", errors.Throttled, timedelta(0)),
        (503, "soon", errors.Unclear, None),
        (502, "2", errors.Unclear, timedelta(seconds=2)),
    ],
)
def test_a_wait_the_api_asks_for_is_kept_and_makes_a_503_back_pressure(wire, status, asked, kind, wait):
    wire.answers(FROM_API, status, {"retry-after": asked})
    error = wire.error_of()
    assert (type(error), error.retry_after) == (kind, wait)


@pytest.mark.parametrize(
    ("body", "line", "from_api"),
    [
        (FROM_API, "HTTP 404: Finetune not found or access denied", True),
        ({"detail": [PROBLEM, {"msg": "and\nmore"}, "?", {"loc": 5, "msg": "five"}]},
         "HTTP 404: body.finetune_id: short; and more; ?; 5: five", True),
        ({"detail": {"code": 7}}, 'HTTP 404: {"code": 7}', True),
        ({"detail": None}, "HTTP 404: No Such Page", True),
        ({"error": "?"}, "HTTP 404: No Such Page", False),
        (b"<html>404</html>", "HTTP 404: No Such Page", False),
        (b"", "HTTP 404: No Such Page", False),
        (["detail"], "HTTP 404: No Such Page", False),
        ({"detail": "x" * 501}, f"HTTP 404: {'x' * 497}...", True),
        ({"detail": f"the key {KEY} is odd"}, "HTTP 404: the key *** is odd", True),
        ({"detail": f"{'x' * 490} {KEY}"}, f"HTTP 404: {'x' * 490} ***", True),
        ({"detail": "\x1b]0;title\x07red\u202egnorw\ud800\x9b1m"}, "HTTP 404: ]0;title red gnorw 1m", True),
    ],
)  # fmt: skip
def test_the_apis_own_words_are_kept_in_one_printable_line(wire, body, line, from_api):
    wire.answers(body, 404, reason="No Such Page")
    error = wire.error_of()
    assert (str(error), error.from_api) == (line, from_api)


def test_the_words_of_a_confirmation_are_printable_too(wire):
    wire.answers({**CONFIRMED, "message": f"\x1b[2Jgone\n{KEY}", "timestamp": "\u202e2026"})
    answer = wire.delete()
    assert (answer.message, answer.timestamp) == ("[2Jgone ***", "2026")


@pytest.mark.parametrize(("begun", "kind"), [(False, errors.NotSent), (True, errors.Unclear)])
def test_a_broken_call_names_the_host_and_the_variable_to_set(wire, begun, kind):
    wire.breaks(begun=begun)
    error = wire.error_of(lambda: client(url_variable="BFL_API_URL_EU").delete_finetune(OURS))
    assert (type(error), error.http_status) == (kind, None)
    assert error.detail == "it broke: api.bfl.ai (set BFL_API_URL_EU to use another host)"


def test_a_refused_key_names_the_host_and_the_variable_to_set(wire):
    wire.answers({"detail": "Not authenticated"}, 403)
    assert str(wire.error_of()) == (
        "HTTP 403: api.bfl.ai (set BFL_API_URL to use another host): Not authenticated"
    )


# Details and lists.


def test_details_carry_the_moment_of_the_answer(wire):
    wire.answers({"finetune_details": {"mode": "style"}}, headers={"Date": "Wed, 21 Oct 2026 07:28:00 GMT"})
    details = client().finetune_details("a&b=ü")
    assert (details.fields, details.date) == ({"mode": "style"}, datetime(2026, 10, 21, 7, 28, tzinfo=UTC))
    assert wire.sent[-1].url == "https://api.bfl.ai/v1/finetune_details?finetune_id=a%26b%3D%C3%BC"


def test_an_api_that_repeats_the_key_puts_it_into_no_record(wire):
    wire.answers({"finetune_details": {"mode": f"asked with {KEY}", KEY: "u"}})
    assert client().finetune_details(OURS).fields == {"mode": "asked with ***", "***": "u"}


@pytest.mark.parametrize(
    "date",
    ["", "yesterday", "0", "Wed, 99 Oct 2026 07:28:00 GMT", "Fri, 31 Dec 9999 23:59:59 GMT"],
)
def test_an_unsound_date_is_none(wire, date):
    wire.answers({"finetune_details": {}}, headers={"Date": date})
    assert client().finetune_details(OURS).date is None


@pytest.mark.parametrize("body", [{}, [], {"finetune_details": ["a"]}, {"finetune_details": None}, "text", 5])
def test_details_in_another_shape_are_told_as_such(wire, body):
    wire.answers(body)
    assert type(wire.error_of(lambda: client().finetune_details(OURS))) is errors.Reshaped


@pytest.mark.parametrize(
    ("items", "names"),
    [
        ([], set()),
        (["a", "b", "a"], {"a", "b"}),
        ([{"finetune_id": "a"}, {"id": "b", "mode": "x"}, {"name": "c"}, "d"], {"a", "b", "c", "d"}),
        ([{"id": "a", "name": "a"}, {"id": None, "name": "b"}], {"a", "b"}),
    ],
)
def test_a_list_has_names_or_objects_with_a_name(wire, items, names):
    wire.answers({"finetunes": items})
    listing = client().my_finetunes()
    assert (listing.names, listing.count, listing.is_whole) == (names, len(items), True)


@pytest.mark.parametrize(
    "body",
    [
        {}, [], {"finetunes": "a"}, {"finetunes": None}, {"finetunes": {"a": 1}}, {"finetunes": ["a", None]},
        {"finetunes": [5]}, {"finetunes": [{}]}, {"finetunes": [{"id": 5}]}, {"finetunes": [["a"]]},
        {"finetunes": [{"id": "a", "name": "b"}]}, {"finetunes": [{"id": 5, "name": "b"}]},
        {"finetunes": [{"id": ["a"]}]}, {"finetunes": [""]}, {"finetunes": ["\ud800"]},
    ],
)  # fmt: skip
def test_a_list_in_another_shape_is_told_as_such(wire, body):
    wire.answers(body)
    error = wire.error_of(lambda: client().my_finetunes())
    assert (type(error), error.http_status) == (errors.Reshaped, 200)


@pytest.mark.parametrize("age", ["120", "9" * 5000])
@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize("call", ["my_finetunes", "finetune_details"])
def test_an_answer_out_of_a_cache_shows_nothing_of_now(wire, call, status, age):
    # Given a cache between us and the API, when it answers with what it has, though it is asked not to,
    found: dict[str, Any] = {"finetunes": [], "finetune_details": {}}
    wire.answers(FROM_API if status == 404 else found, status, {"Age": age})
    ask = getattr(client(), call)
    error = wire.error_of(ask if call == "my_finetunes" else lambda: ask(OURS))
    # then that is no observation.
    assert (type(error), f"a cache answered, {age[:99]}" in str(error)) == (errors.Unclear, True)
    assert wire.sent[0].headers["cache-control"] == "no-cache"


@pytest.mark.parametrize("age", ["0", "2", "", "x", "-5"])
def test_an_answer_that_is_new_or_whose_age_is_not_known_counts(wire, age):
    wire.answers({"finetunes": []}, headers={"Age": age})
    assert client().my_finetunes().count == 0


@pytest.mark.parametrize(
    "beside",
    [
        {}, {"next": None}, {"next": ""}, {"links": []}, {"meta": {}}, {"cursor": None, "last_page": None},
        {"has_more": False}, {"hasMore": False}, {"truncated": False},
        {"total": 2}, {"total": "2"}, {"count": 2}, {"totalCount": 2}, {"meta": {"total": 2, "has_next": False}},
        {"meta": {"pagination": {"next": None}}}, {"object": "list"}, {"status": "ok"}, {"status": "Success"},
        {"id": "r-1", "request_id": "r-1", "timestamp": 1.5, "created_at": "now", "version": 3},
    ],
)  # fmt: skip
def test_a_list_is_whole_if_all_beside_it_is_known_to_be_harmless(wire, beside):
    wire.answers({"finetunes": ["a", "b"], **beside})
    assert client().my_finetunes().more is None


@pytest.mark.parametrize(
    ("beside", "named"),
    [
        ({"next": "/v1/my_finetunes?page=2"}, "next"), ({"next_cursor": "abc"}, "next_cursor"),
        ({"cursor": 5}, "cursor"), ({"has_more": True}, "has_more"), ({"hasMore": 1}, "hasMore"),
        ({"truncated": True}, "truncated"), ({"partial": True}, "partial"), ({"complete": False}, "complete"),
        ({"is_last": False}, "is_last"), ({"no_more": False}, "no_more"),
        # Another number than there are names, or a number that is not one of names.
        ({"total": 3}, "total"), ({"total": "3"}, "total"), ({"total": 1}, "total"), ({"total": True}, "total"),
        ({"total": 250.0}, "total"), ({"total": "250.0"}, "total"), ({"count": 250}, "count"),
        ({"total": {"value": 250}}, "total"), ({"total": {"count": 2}}, "total"),
        ({"total_pages": 1}, "total_pages"), ({"hits": 250}, "hits"), ({"remaining": 1}, "remaining"),
        ({"limit": 2}, "limit"), ({"size": 2}, "size"), ({"per_page": 2}, "per_page"),
        ({"page": 1, "last_page": 3}, "page"),
        # At any depth, and what is in a list; a harmless name in what is not known is not harmless.
        ({"meta": {"pagination": {"next": "/p2"}}}, "next"), ({"meta": {"total": 3}}, "total"),
        ({"pagination": [{"next": 2}]}, "pagination"), ({"links": [{"rel": "next", "href": "/p2"}]}, "links"),
        ({"last_evaluated_key": {"id": "x"}}, "last_evaluated_key"), ({"next": {"version": 2}}, "next"),
        # Words that nobody has thought of, and values of another kind than expected.
        ({"continuation_token": "abc"}, "continuation_token"), ({"pageToken": "abc"}, "pageToken"),
        ({"marker": "x"}, "marker"), ({"scroll_id": "x"}, "scroll_id"), ({"account": "x"}, "account"),
        ({"more_finetunes": ["c"]}, "more_finetunes"), ({"id": ["c"]}, "id"), ({"status": "partial"}, "status"),
        ({"object": "page"}, "object"), ({"\u202etxen": 1}, "txen"), ({KEY: 1}, "***"),
    ],
)  # fmt: skip
def test_a_list_with_anything_else_beside_it_may_not_be_whole_and_the_field_is_named(wire, beside, named):
    wire.answers({"finetunes": ["a", "b"], **beside})
    listing = client().my_finetunes()
    assert (listing.is_whole, listing.more) == (False, f"the field '{named}'")


def test_nothing_but_a_plain_200_is_a_whole_list(wire):
    for status, headers, more in [
        (206, {}, "HTTP status 206"), (203, {}, "HTTP status 203"),
        (200, {"Link": '</p1>; rel="prev", </p2>; rel="Next"'}, "the header Link"),
        (200, {"X-Total-Count": "3"}, "the header X-Total-Count"),
        (200, {"Link": '</p1>; rel="self"', "X-Total-Count": "1"}, None),
    ]:  # fmt: skip
        wire.answers({"finetunes": ["a"]}, status=status, headers=headers)
        assert client().my_finetunes().more == more


def test_a_list_beside_very_deep_objects_is_judged_as_any_other(wire):
    wire.answers(b'{"finetunes": [], ' + b'"meta": {' * 900 + b'"next": 2' + b"}" * 901)
    assert client().my_finetunes().more == "the field 'next'"


def test_two_spellings_of_one_uuid_are_one_finetune(wire):
    wire.answers({"finetunes": [UUID.upper(), "Mine"]})
    listing = client().my_finetunes()
    assert listing.has(UUID)
    assert listing.has("Mine")
    assert not listing.has("mine")
    assert is_same_name(UUID, UUID.upper())
    assert not is_same_name("Mine", "mine")
    assert finetune_key(UUID.upper()) == UUID
    assert finetune_key(f"{UUID.upper()}x") == f"{UUID.upper()}x"


@given(st.text(), st.integers(3, 600))
def test_any_text_becomes_one_printable_line_of_bounded_length(text, most):
    line = one_line(text, most=most)
    assert line.isprintable()
    assert len(line) <= most
    assert one_line(line, most=most) == line
