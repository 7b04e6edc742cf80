"""The client over real HTTP: whatever a server does, a call ends in time, in one error, without the key in it."""

import socket
import threading
import time
import traceback
from datetime import timedelta
from typing import Any

import pytest

from tasks import errors
from tasks.bfl import BflClient, Timeouts
from tests.processes import KEY
from worker.sandbox import Sandbox

TIMEOUTS = Timeouts(timedelta(seconds=0.5), timedelta(seconds=0.5), timedelta(seconds=1))


@pytest.fixture(scope="module")
def server():
    with Sandbox(keys={KEY}, latency_seconds=0) as sandbox:
        yield sandbox


@pytest.fixture
def api(server):
    server.heal()
    server.create("mine")
    return server


@pytest.fixture
def client(api):
    return BflClient(api.url, KEY, TIMEOUTS)


def test_the_three_calls(api, client):
    assert client.my_finetunes() == ["mine"]
    assert client.finetune_details("mine")["trigger_word"] == "TOK"
    answer = client.delete_finetune("mine")
    assert (answer.status, answer.message, answer.http_status) == ("Success", "Finetune mine deleted", 200)
    assert answer.timestamp
    assert client.my_finetunes() == []


def test_ids_are_sent_as_they_are(api, client):
    odd = "a&b=c?d#e%20/ü+"
    api.create(odd)
    assert client.finetune_details(odd)["finetune_comment"].startswith(odd)
    client.delete_finetune(odd)
    assert odd not in api.finetunes()


DETAIL = {"detail": [{"loc": ["body", "finetune_id"], "msg": "is too short", "type": "value_error"}]}

ANSWERS: list[tuple[str, dict[str, Any], type[errors.ApiError], str]] = [
    ("status", {"status": 422, "body": DETAIL}, errors.Refused, "HTTP 422: body.finetune_id: is too short"),
    ("status", {"status": 400, "body": {"detail": "no"}}, errors.Refused, "HTTP 400: no"),
    ("status", {"status": 404, "body": {"detail": "unknown"}}, errors.NotFound, "HTTP 404: unknown"),
    ("status", {"status": 401}, errors.KeyRefused, "HTTP 401"),
    ("status", {"status": 403}, errors.KeyRefused, "HTTP 403"),
    ("status", {"status": 408}, errors.TryAgain, "HTTP 408"),
    ("status", {"status": 425}, errors.TryAgain, "HTTP 425"),
    ("status", {"status": 429, "headers": {"Retry-After": "7"}}, errors.Throttled, "HTTP 429"),
    ("status", {"status": 402}, errors.Throttled, "HTTP 402"),
    ("status", {"status": 503, "headers": {"Retry-After": "7"}}, errors.Throttled, "HTTP 503"),
    ("status", {"status": 503}, errors.Unclear, "HTTP 503"),
    ("status", {"status": 500, "body": "a string"}, errors.Unclear, "HTTP 500"),
    ("status", {"status": 302, "headers": {"Location": "/elsewhere"}}, errors.Refused, "HTTP 302"),
    ("status", {"status": 204, "body": {"status": "ok"}}, errors.Unclear, "HTTP 204"),
    ("not_json", {}, errors.Unclear, "not JSON"),
    ("missing_fields", {}, errors.Unclear, "not a complete confirmation"),
    ("wrong_id", {}, errors.WrongFinetune, "asked to delete 'mine', the API says it deleted 'somebody-elses'"),
    ("huge", {}, errors.Unclear, "larger than 1048576 bytes"),
    ("cut", {}, errors.Unclear, "the connection broke"),
    ("reset", {}, errors.Unclear, "the connection broke"),
    ("close", {}, errors.Unclear, "the connection broke"),
    ("hang", {}, errors.Unclear, "no complete answer in time"),
]


@pytest.mark.parametrize(("kind", "more", "error", "words"), ANSWERS)
def test_each_answer_is_one_error_without_the_key(api, client, kind, more, error, words):
    api.fault(kind, **more)
    with pytest.raises(error) as raised:
        client.delete_finetune("mine")
    assert type(raised.value) is error
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    told = "".join(traceback.format_exception(raised.value)) + repr(raised.value) + repr(vars(raised.value))
    assert KEY not in told
    assert KEY not in repr(client)


@pytest.mark.parametrize("kind", ["drip", "drip_headers"])
def test_a_dripping_server_cannot_stretch_the_deadline(api, client, kind):
    api.fault(kind, seconds=0.2)
    began = time.monotonic()
    with pytest.raises(errors.Unclear):
        client.delete_finetune("mine")
    assert time.monotonic() - began < 2


def test_the_client_works_on_after_every_fault(api, client):
    for kind, more, *_ in ANSWERS:
        api.fault(kind, applies=False, **more)
        with pytest.raises(errors.ApiError):
            client.delete_finetune("mine")
    assert client.delete_finetune("mine").http_status == 200


def test_a_connection_kept_alive_and_then_cut_costs_one_call(client, api):
    client.my_finetunes()
    api.fault("reset", call="my_finetunes")
    with pytest.raises(errors.Unclear):
        client.my_finetunes()
    assert client.my_finetunes() == ["mine"]


def test_no_one_listening_means_not_sent():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        client = BflClient(f"http://127.0.0.1:{taken.getsockname()[1]}", KEY, TIMEOUTS)
        with pytest.raises(errors.NotSent, match="refused or not possible"):
            client.delete_finetune("mine")


def test_a_server_without_tls_where_tls_is_meant_means_not_sent(api):
    client = BflClient(api.url.replace("http:", "https:"), KEY, TIMEOUTS)
    with pytest.raises(errors.NotSent, match="TLS failed"):
        client.delete_finetune("mine")
    assert api.finetunes() == ["mine"]


def test_proxies_and_netrc_of_the_environment_are_not_used(api, client, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password hidden\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert client.my_finetunes() == ["mine"]


def test_threads_have_sessions_of_their_own_and_one_deadline_each(api, client):
    api.fault("hang", call="finetune_details")
    outcomes = []

    def slow():
        try:
            client.finetune_details("mine")
        except errors.Unclear as error:
            outcomes.append(error)

    thread = threading.Thread(target=slow)
    thread.start()
    assert all(client.my_finetunes() == ["mine"] for _ in range(20))
    thread.join(5)
    assert len(outcomes) == 1


def test_retry_after_is_kept(api, client):
    api.fault("status", status=429, headers={"Retry-After": "7"})
    with pytest.raises(errors.Throttled) as raised:
        client.delete_finetune("mine")
    assert raised.value.retry_after == timedelta(seconds=7)


@pytest.mark.parametrize("call", ["my_finetunes", "finetune_details"])
@pytest.mark.parametrize("kind", ["not_json", "missing_fields"])
def test_looks_that_answer_in_another_shape_are_unclear(api, client, call, kind):
    api.fault(kind, call=call)
    with pytest.raises(errors.Unclear):
        client.my_finetunes() if call == "my_finetunes" else client.finetune_details("mine")
