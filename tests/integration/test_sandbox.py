"""The simulated API: what it keeps, which keys it accepts, and every way in which it breaks."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from tasks.api.client import BflClient
from tasks.deletion import Rules, carry_out
from tests.conftest import asking, claim
from worker.sandbox.api import Sandbox


@pytest.fixture
def api():
    with Sandbox(latency_seconds=0) as sandbox:
        sandbox.create("mine")
        yield sandbox


def call(api, method, path, *, key="sandbox-key", timeout=5, **content):
    return requests.request(method, api.url + path, headers={"x-key": key}, timeout=timeout, **content)


def delete(api, finetune_id="mine", **more):
    return call(api, "POST", "/v1/delete_finetune", json={"finetune_id": finetune_id}, **more)


def details(api, finetune_id="mine", **more):
    return call(api, "GET", "/v1/finetune_details", params={"finetune_id": finetune_id}, **more)


def test_what_is_deleted_is_gone_from_all_calls(api):
    assert call(api, "GET", "/v1/my_finetunes").json() == {"finetunes": ["mine"]}
    assert details(api).json()["finetune_details"]["trigger_word"] == "TOK"
    assert delete(api).json()["status"] == "Success"
    assert call(api, "GET", "/v1/my_finetunes").json() == {"finetunes": []}
    gone = {"detail": "Finetune not found or access denied"}
    assert [(a.status_code, a.json()) for a in (details(api), delete(api))] == [(404, gone), (404, gone)]


def test_a_name_created_again_is_another_incarnation(api):
    before = details(api).json()
    delete(api)
    api.create("mine")
    assert details(api).json() != before
    delete(api)
    assert [entry["incarnation"] for entry in api.deletes()] == [1, 2]


def test_a_lora_has_free_fields_and_a_unique_id_of_its_own(api):
    api.create("chosen-name", lora=True, precision="bf16", trigger_phrase=None)
    shown = details(api, "chosen-name").json()["finetune_details"]
    assert set(shown) == {"id", "name", "base_model", "precision", "created_at"}
    assert (shown["name"], shown["precision"]) == ("chosen-name", "bf16")
    api.create("chosen-name", lora=True)
    assert details(api, "chosen-name").json()["finetune_details"]["id"] != shown["id"]


def test_two_spellings_of_a_uuid_are_one_finetune(api):
    api.create("0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10")
    answer = delete(api, "0D3F5C1E-6A55-4B0E-9A53-2F1F6B1F3F10").json()
    assert answer["deleted_finetune_id"] == "0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10"
    assert api.finetunes() == ["mine"]


SHAPES = {
    "trained": {},
    "trained, without a creation time": {"timestamp": None},
    "a LoRA": {"lora": True},
    "a LoRA with nothing to tell it by": {"lora": True, "id": None, "created_at": None},
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_real_pipeline_deletes_a_finetune_of_any_shape_with_two_calls(api, ledger, shape):
    api.create("wanted", **shape)
    ledger.accept([asking("wanted")])
    client = BflClient(api.url, "sandbox-key")
    finish, _ = carry_out(claim(ledger), api=client, ledger=ledger, rules=Rules(), sleep=lambda _: None)
    assert (finish.result, finish.evidence) == ("deleted", "response"), finish.message
    assert [entry["call"] for entry in api.journal()] == ["finetune_details", "delete_finetune"]
    assert api.finetunes() == ["mine"]


def test_every_answer_has_a_date(api):
    answers = [details(api), details(api, "unknown"), delete(api), call(api, "GET", "/v1/my_finetunes")]
    assert all("Date" in answer.headers for answer in answers)


@pytest.mark.parametrize(("key", "known"), [("wrong", "wrong"), ("", "missing")])
def test_without_an_accepted_key_nothing_happens(api, key, known):
    assert [delete(api, key=key).status_code, details(api, key=key).status_code] == [403, 403]
    assert [(entry["key"], entry["effective"]) for entry in api.journal()] == [(known, False)] * 2
    assert api.finetunes() == ["mine"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/v1/delete_finetune", 405), ("POST", "/v1/my_finetunes", 405), ("GET", "/v2/my_finetunes", 404),
     ("GET", "/v1/finetune_details", 422)],
)  # fmt: skip
def test_other_calls_are_refused(api, method, path, status):
    answer = call(api, method, path)
    assert answer.status_code == status
    assert answer.json()["detail"]


def test_above_the_limit_of_calls_at_once_it_throttles():
    with Sandbox(latency_seconds=0.3, max_at_once=2) as api, ThreadPoolExecutor(4) as threads:
        statuses = sorted(answer.status_code for answer in threads.map(lambda _: details(api), range(4)))
        assert statuses.count(429) == 2
        assert max(entry["at_once"] for entry in api.journal()) == 4


WHOLE = {"status": 200, "message": "", "deleted_finetune_id": "mine", "timestamp": ""}


@pytest.mark.parametrize(
    ("kind", "more", "seen", "gone"),
    [
        (
            "status",
            {"status": 503, "headers": {"Retry-After": "7"}},
            lambda a: a.headers["Retry-After"] == "7",
            False,
        ),
        ("status", {"status": 500, "applies": True}, lambda a: a.status_code == 500, True),
        ("status", {"status": 302, "headers": {"Location": "/"}}, lambda a: len(a.history) == 1, False),
        ("not_json", {}, lambda a: a.text.startswith("<html>"), True),
        ("missing_fields", {}, lambda a: set(a.json()) == {"status"}, True),
        ("wrong_id", {}, lambda a: a.json()["deleted_finetune_id"] == "somebody-elses", True),
        ("huge", {}, lambda a: len(a.content) > 1 << 20, True),
        ("early_hints", {}, lambda a: a.status_code == 103, True),  # requests takes it for the answer
        ("slow", {"seconds": 0.3}, lambda a: a.elapsed.total_seconds() > 0.25, True),
    ],
)
def test_answers_that_come_but_are_not_right(api, kind, more, seen, gone):
    api.fault(kind, **more)
    assert seen(delete(api))
    assert api.finetunes() == ([] if gone else ["mine"])
    assert api.deletes()[0]["effective"] is gone


@pytest.mark.parametrize("applies", [False, True])
@pytest.mark.parametrize("kind", ["reset", "close", "cut", "hang", "drip", "drip_headers"])
def test_answers_that_do_not_come_whole(api, kind, applies):
    api.fault(kind, applies=applies)
    began = time.monotonic()
    with pytest.raises(requests.RequestException):
        delete(api, timeout=0.3)
    assert time.monotonic() - began < 3
    entry = api.deletes()[0]
    assert (entry["effective"], entry["http_status"], entry["fault"]) == (applies, None, kind)
    assert api.finetunes() == ([] if applies else ["mine"])


def test_a_fault_meets_only_what_it_names(api):
    api.create("other")
    api.fault("status", finetune_id="other", status=500, times=2, skip=1)
    assert delete(api).status_code == 200
    api.fault("status", call="finetune_details", status=418)
    assert [details(api, "other").status_code, details(api, "other").status_code] == [418, 200]
    # The first that matches is let through, the next two are not, and then all is well.
    api.create("other")
    assert delete(api, "other").status_code == 200
    api.create("other")
    assert [delete(api, "other").status_code for _ in range(3)] == [500, 500, 200]


def test_a_list_in_another_shape(api):
    api.fault("reshaped", call="my_finetunes")
    assert call(api, "GET", "/v1/my_finetunes").json() == {"finetunes": [{"model": "in another shape"}]}


def test_it_is_steered_over_http_too(api):
    steer = api.url + "/_sandbox/"
    assert requests.post(steer + "finetunes", json={"finetune_id": "new"}, timeout=5).status_code == 200
    assert requests.post(steer + "faults", json={"kind": "status", "status": 500}, timeout=5).status_code == 200
    assert delete(api).status_code == 500
    assert requests.delete(steer + "finetunes/new", timeout=5).status_code == 200
    assert api.finetunes() == ["mine"]
    assert requests.get(steer + "journal", timeout=5).json() == api.journal()
    assert requests.post(steer + "faults", json={"kind": "flood"}, timeout=5).status_code == 422
    assert requests.get(steer + "nothing", timeout=5).status_code == 404


def test_what_clients_keep_alive_ends_with_it(api):
    with requests.Session() as session:
        session.get(api.url + "/v1/my_finetunes", timeout=5)
        api.__exit__(None, None, None)
        with pytest.raises(requests.ConnectionError):
            session.get(api.url + "/v1/my_finetunes", timeout=5)
