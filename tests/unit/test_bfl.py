"""The API client: every answer and every broken connection is one error, and none shows the key."""

import io
import json
import socket
import traceback
from datetime import timedelta
from typing import Any

import pytest
import urllib3
from urllib3 import exceptions as broken
from urllib3.connectionpool import HTTPConnectionPool

from tasks import errors
from tasks.bfl import BODY_LIMIT, BflClient
from tests.unit.fakes import OURS

KEY = "5ecret-key-of-the-account"
CLIENT = BflClient("https://api.bfl.ai/", KEY)
POOL: Any = HTTPConnectionPool("api.bfl.ai")
CONFIRMED = {"status": "success", "message": "gone", "deleted_finetune_id": OURS, "timestamp": "2026-03-01"}
FROM_API = {"detail": "Finetune not found or access denied"}
PROBLEM = {"loc": ["body", "finetune_id"], "msg": "short", "type": "value_error"}


class Wire:
    """In place of a connection: gives one answer, or breaks, and remembers what was sent."""

    def __init__(self, monkeypatch) -> None:
        self.sent: list[Any] = []
        self.answer: Any = None
        monkeypatch.setattr(HTTPConnectionPool, "urlopen", lambda _, **request: self.send(request))

    def send(self, request):
        self.sent.append(request)
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def answers(self, status, body, headers=None, reason=None):
        raw = io.BytesIO(body if isinstance(body, bytes) else json.dumps(body).encode())
        self.answer = urllib3.HTTPResponse(raw, headers, status, reason=reason, preload_content=False)

    def error_of(self) -> errors.ApiError:
        with pytest.raises(errors.ApiError) as raised:
            CLIENT.delete_finetune(OURS)
        told = "".join(traceback.format_exception(raised.value))
        assert KEY not in f"{raised.value} {raised.value!r} {vars(raised.value)} {told}"
        return raised.value


@pytest.fixture
def wire(monkeypatch):
    return Wire(monkeypatch)


def test_a_delete_is_sent_as_the_contract_says(wire):
    wire.answers(200, CONFIRMED)
    answer = CLIENT.delete_finetune(OURS)
    (sent,) = wire.sent
    assert (sent["method"], sent["url"]) == ("POST", "/v1/delete_finetune")
    assert json.loads(sent["body"]) == {"finetune_id": OURS}
    assert KEY not in repr(CLIENT)
    assert (sent["headers"]["x-key"], sent["headers"]["content-type"]) == (KEY, "application/json")
    assert (sent["timeout"].connect_timeout, sent["timeout"].read_timeout, sent["redirect"]) == (5, 15, False)
    assert (answer.status, answer.message, answer.timestamp) == ("success", "gone", "2026-03-01")


@pytest.mark.parametrize("other_shape", [{}, [], {"finetunes": "a", "finetune_details": ["a"]}])
def test_looks_and_lists_are_read_in_their_known_shape_only(wire, other_shape):
    good = {"finetunes": ["a", {"b": 1}], "finetune_details": {"mode": "style"}}
    for call, field in (
        (CLIENT.my_finetunes, "finetunes"),
        (lambda: CLIENT.finetune_details("a&b"), "finetune_details"),
    ):
        wire.answers(200, good)
        assert call() == good[field]
        wire.answers(200, other_shape)
        with pytest.raises(errors.Unclear, match="answered without"):
            call()
    assert wire.sent[-1]["url"] == "/v1/finetune_details?finetune_id=a%26b"


@pytest.mark.parametrize(
    ("kind", "statuses"),
    [
        (errors.Throttled, [429, 402]),
        (errors.TryAgain, [408, 425]),
        (errors.NotFound, [404]),
        (errors.KeyRefused, [401, 403]),
        (errors.Refused, [400, 405, 409, 422, 499, 301, 302, 307, 308]),
        (errors.Unclear, [500, 502, 503, 504]),
    ],
)
def test_each_status_stands_for_one_error(wire, kind, statuses):
    for status in statuses:
        wire.answers(status, FROM_API, {"Location": "https://elsewhere.example/"})
        error = wire.error_of()
        assert (type(error), error.http_status, error.retry_after) == (kind, status, None)
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
    wire.answers(status, FROM_API, {"retry-after": asked})
    error = wire.error_of()
    assert (type(error), error.retry_after) == (kind, wait)


@pytest.mark.parametrize(
    ("body", "line", "from_api"),
    [
        (FROM_API, "HTTP 404: Finetune not found or access denied", True),
        (
            {"detail": [PROBLEM, {"msg": "and\nmore"}, "?"]},
            "HTTP 404: body.finetune_id: short; and more; ?",
            True,
        ),
        ({"detail": {"code": 7}}, 'HTTP 404: {"code": 7}', True),
        ({"detail": None}, "HTTP 404: No Such Page", True),
        ({"error": "?"}, "HTTP 404: No Such Page", False),
        (b"<html>404</html>", "HTTP 404: No Such Page", False),
        (b"", "HTTP 404: No Such Page", False),
        (["detail"], "HTTP 404: No Such Page", False),
        ({"detail": "x" * 501}, f"HTTP 404: {'x' * 497}...", True),
    ],
)
def test_the_apis_own_words_are_kept_in_one_line(wire, body, line, from_api):
    wire.answers(404, body, reason="No Such Page")
    error = wire.error_of()
    assert (str(error), error.from_api) == (line, from_api)


@pytest.mark.parametrize(
    ("status", "body", "headers"),
    [
        *((200, {**CONFIRMED, field: None}, {}) for field in CONFIRMED), (202, CONFIRMED, {}),
        (200, b"<html>", {}), (200, b"", {}), (200, b"\xff\xfe", {}), (200, [CONFIRMED], {}),
        (200, json.dumps(CONFIRMED).encode() + b" " * BODY_LIMIT, {}),
        (200, json.dumps(CONFIRMED).encode()[:-9], {"Content-Length": "200"}),
        (200, json.dumps(CONFIRMED).encode(), {"Content-Length": "200"}),
    ],
)  # fmt: skip
def test_a_good_status_without_a_complete_confirmation_is_unclear(wire, status, body, headers):
    wire.answers(status, body, headers)
    assert type(wire.error_of()) is errors.Unclear


def test_a_confirmation_for_another_finetune_is_alarming(wire):
    wire.answers(200, {"deleted_finetune_id": "another"})
    error = wire.error_of()
    assert type(error) is errors.WrongFinetune
    assert f"{OURS!r}, the API says it deleted 'another'" in str(error)


@pytest.mark.parametrize(
    ("reason", "kind", "words"),
    [
        (broken.NewConnectionError(POOL, "refused"), errors.NotSent, "refused"),
        (broken.NameResolutionError("api.bfl.ai", POOL, socket.gaierror()), errors.NotSent, "not resolved"),
        (broken.ConnectTimeoutError(POOL, "slow"), errors.NotSent, "within the connect timeout"),
        (broken.SSLError("certificate verify failed"), errors.NotSent, "TLS failed"),
        (broken.ReadTimeoutError(POOL, "/", "slow"), errors.Unclear, "in time"),
        (broken.ProtocolError("aborted", ConnectionResetError(104, "reset")), errors.Unclear, "connection broke"),
    ],
)
def test_a_broken_connection_is_not_sent_or_unclear(wire, reason, kind, words):
    wire.answer = broken.MaxRetryError(POOL, "/", reason) if kind is errors.NotSent else reason
    error = wire.error_of()
    assert (type(error), error.http_status) == (kind, None)
    assert words in error.detail
