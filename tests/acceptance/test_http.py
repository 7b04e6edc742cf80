"""The HTTP service as its clients see it: a real process, a real Redis, a worker and a simulated API."""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import uuid
from collections import Counter
from contextlib import closing
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests

from tests.acceptance.http import SECRETS, Client, secret_of
from tests.processes import ROOT, janitor_here, producer, records, until

pytestmark = pytest.mark.usefixtures("running_worker")
UNKNOWN = "no deletion has the id 'nope'"


@pytest.fixture
def finetune(api):
    name = f"ft-{uuid.uuid4().hex[:12]}"
    api.create(name)
    return name


def only(answer):
    (item,) = answer.json()["deletions"]
    return item


def id_of(item):
    return item["deletion"]["id"]


def detail(answer):
    assert answer.headers["Content-Type"] == "application/problem+json"
    told = answer.json()
    assert told["status"] == answer.status_code
    assert "\n" not in told["detail"]
    return told["detail"]


def test_a_deletion_is_accepted_followed_to_its_end_and_found_by_every_other_way(billing, env, finetune):
    accepted = billing.ask(finetune, reason="customer left")
    item = only(accepted)
    assert (accepted.status_code, item["created"]) == (202, True)
    ended = billing.get(f"/v1/deletions/{id_of(item)}?wait=30").json()
    assert (ended["state"], ended["status"], ended["evidence"]) == ("deleted", "Success", "response")
    assert (ended["requested_by"], ended["source"], ended["reason"]) == ("billing", "http", "customer left")
    listed = billing.get("/v1/deletions", params={"finetune_id": finetune}).json()
    assert listed["cursor"] is None
    found = [*records(janitor_here(env, "show", ended["id"], "--json")), *listed["deletions"]]
    # It may have been verified in between.
    assert [one | {"verified_at": None} for one in found] == [ended | {"verified_at": None}] * 2


def test_many_at_once_are_accepted_in_order_or_not_at_all(billing, api, finetune):
    names = [f"{finetune}-{n}" for n in range(10)]
    for name in names:
        api.create(name)
    refused = billing.ask(*names, "bad name")
    assert (refused.status_code, "'bad name' has a space" in detail(refused)) == (422, True)
    assert billing.get("/v1/deletions", params={"finetune_id": names[0]}).json()["deletions"] == []
    accepted = billing.ask(*names, delay_seconds=3600)
    items = accepted.json()["deletions"]
    assert accepted.status_code == 202
    assert [item["deletion"]["finetune_id"] for item in items] == names
    assert {item["deletion"]["state"] for item in items} == {"scheduled"}
    too_many = billing.ask(*map(str, range(1001)))
    assert (too_many.status_code, "at most 1000 items" in detail(too_many)) == (422, True)


def test_a_second_request_for_a_finetune_is_a_deletion_of_its_own(billing, finetune):
    # Given a request for a finetune, when another one comes, then each has a record, and a cancel withdraws one.
    first, second = (only(billing.ask(finetune, delay_seconds=wait)) for wait in (3600, 7200))
    assert (first["created"], second["created"], id_of(first) != id_of(second)) == (True, True, True)
    billing.post(f"/v1/deletions/{id_of(second)}/cancel")
    states = [billing.get(f"/v1/deletions/{id_of(item)}").json()["state"] for item in (first, second)]
    assert states == ["scheduled", "cancelled"]


def test_times_and_missing_ok_are_kept(billing):
    item = only(billing.ask("nobody-knows-it", missing_ok=True, due_at="2030-01-01T00:00:00+01:00"))
    assert item["deletion"]["due_at"] == "2029-12-31T23:00:00.000Z"
    assert item["deletion"]["missing_ok"] is True
    item = only(billing.ask("nobody-knows-it", missing_ok=True))
    ended = billing.get(f"/v1/deletions/{id_of(item)}?wait=40").json()
    assert (ended["state"], ended["missing_ok"]) == ("not_found", True)


class TestIdempotency:
    @pytest.mark.parametrize("count", [1, 3])
    def test_the_same_call_under_the_same_key_changes_nothing(self, billing, finetune, count):
        names = [f"{finetune}-{n}" for n in range(count)]
        key = f"key/{finetune}"
        first = billing.ask(*names, key=key, delay_seconds=3600)
        again = billing.ask(*names, key=key, delay_seconds=3600)
        assert (first.status_code, again.status_code) == (202, 200)
        ids = [id_of(item) for item in first.json()["deletions"]]
        assert ids == [id_of(item) for item in again.json()["deletions"]]
        assert len(set(ids)) == count
        assert [item["created"] for item in again.json()["deletions"]] == [False] * count
        listed = billing.get("/v1/deletions", params={"finetune_id": names[0]}).json()["deletions"]
        assert [one["id"] for one in listed] == ids[:1]

    @pytest.mark.parametrize(
        ("names", "more"),
        [(["-b"], {}), (["-a"], {"reason": "another"}), (["-a", "-b"], {}), (["-a"], {"missing_ok": True})],
    )
    def test_the_same_key_for_something_else_is_a_conflict_and_writes_nothing(
        self, billing, finetune, names, more
    ):
        billing.ask(f"{finetune}-a", key=finetune, delay_seconds=3600)
        other = billing.ask(*(finetune + name for name in names), key=finetune, **{"delay_seconds": 3600, **more})
        assert other.status_code == 409
        assert detail(other) == (
            f"the Idempotency-Key {finetune!r} was used before, for another body: give each call its own"
        )
        for name, count in (("-a", 1), ("-b", 0)):
            listed = billing.get("/v1/deletions", params={"finetune_id": finetune + name}).json()["deletions"]
            assert len(listed) == count

    def test_the_key_of_another_token_neither_blocks_nor_reveals(self, base, billing, finetune):
        # Given a key that another token used,
        with Client(base, "boss") as boss:
            theirs = only(boss.ask(f"{finetune}-theirs", key=finetune, delay_seconds=3600))
        # when this token uses the key, then it is a request of its own.
        ours = billing.ask(finetune, key=finetune, delay_seconds=3600)
        assert (ours.status_code, only(ours)["created"]) == (202, True)
        assert id_of(only(ours)) != id_of(theirs)
        assert "-theirs" not in ours.text

    def test_a_call_that_was_refused_has_not_used_its_key(self, billing, finetune):
        assert billing.ask("bad name", key=finetune).status_code == 422
        assert billing.ask(finetune, key=finetune, delay_seconds=3600).status_code == 202


class TestCancel:
    def test_who_and_why_are_on_record(self, billing, finetune):
        id_ = id_of(only(billing.ask(finetune, delay_seconds=3600)))
        done = billing.post(f"/v1/deletions/{id_}/cancel", params={"reason": "it is needed"}).json()
        assert (done["cancelled_by"], done["cancel_reason"]) == ("billing", "it is needed")
        refused = billing.post(f"/v1/deletions/{id_}/cancel", params={"reason": "two\nlines"})
        assert (refused.status_code, "give one line" in detail(refused)) == (422, True)

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ({"json": {"reason": "it is needed"}}, "give all in the query"),
            ({"params": {"reasn": "it is needed"}}, "query.reasn is 'it is needed': Extra inputs"),
        ],
    )
    @pytest.mark.parametrize("call", ["cancel", "resolve?as=kept&note=seen"])
    def test_a_reason_that_would_be_ignored_is_refused(self, boss, finetune, call, given, words):
        id_ = id_of(only(boss.ask(finetune, delay_seconds=3600)))
        refused = boss.post(f"/v1/deletions/{id_}/{call}", **given)
        assert (refused.status_code, words in detail(refused)) == (422, True), refused.text
        assert boss.get(f"/v1/deletions/{id_}").json()["state"] == "scheduled"

    def test_what_waits_is_withdrawn_and_again_answers_alike(self, billing, api, finetune):
        id_ = id_of(only(billing.ask(finetune, delay_seconds=3600)))
        for _ in range(2):
            done = billing.post(f"/v1/deletions/{id_}/cancel")
            assert (done.status_code, done.json()["state"]) == (200, "cancelled")
        assert api.deletes(finetune) == []

    def test_what_had_ended_is_a_conflict(self, billing, finetune):
        id_ = id_of(only(billing.ask(finetune)))
        billing.get(f"/v1/deletions/{id_}?wait=30")
        late = billing.post(f"/v1/deletions/{id_}/cancel")
        assert (late.status_code, detail(late)) == (
            409, f"the deletion {id_!r} had ended already: it is deleted"
        )  # fmt: skip

    def test_what_is_under_way_is_requested(self, billing, api, finetune):
        api.fault("slow", finetune_id=finetune, call="delete_finetune", seconds=1.5)
        id_ = id_of(only(billing.ask(finetune)))
        deadline = time.monotonic() + 10
        while not api.deletes(finetune) and time.monotonic() < deadline:
            billing.get(f"/v1/deletions/{id_}")
        done = billing.post(f"/v1/deletions/{id_}/cancel")
        assert (done.status_code, bool(done.json()["cancel_requested_at"])) == (202, True)
        assert billing.get(f"/v1/deletions/{id_}?wait=30").json()["state"] == "deleted"


class TestList:
    def test_pages_follow_each_other_and_filters_hold(self, boss, api, finetune):
        names = [f"{finetune}-{n}" for n in range(5)]
        for name in names:
            api.create(name)
        since = only(boss.ask(names[0], delay_seconds=3600))["deletion"]["created_at"]
        boss.ask(*names[1:], delay_seconds=3600)
        where = {"since": since, "limit": 2, "state": ["scheduled", "queued"], "account": "default"}
        seen, cursor, pages = [], None, 0
        while cursor or not pages:
            page = boss.get("/v1/deletions", params={**where, "cursor": cursor}).json()
            seen += [one["finetune_id"] for one in page["deletions"]]
            cursor, pages = page["cursor"], pages + 1
        assert (sorted(seen), pages) == (names, 3)
        assert boss.get("/v1/deletions", params={"since": since, "state": "review"}).json()["deletions"] == []
        assert boss.get("/v1/deletions", params={"until": "2020-01-01", "limit": 1}).json()["deletions"] == []


JSON = {"Content-Type": "application/json"}
# Each a deletion whose other field is wrong.
WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"finetune_id": ""}, "the finetune id is empty: give 1 to 255"),
    ({"finetune_id": 7}, "body.deletions.0.finetune_id is 7: Input should be a valid string"),
    ({"finetune_id": "org/x"}, "JANITOR_ALLOW_ORG_IDS"),
    ({"acount": "b"}, "body.deletions.0.acount is 'b': Extra inputs"),
    ({"delay_seconds": -1}, "delay_seconds is -1"),
    ({"due_at": "soon"}, "'soon' is not a time: give a time in ISO 8601"),
    ({"due_at": 5}, "due_at is 5: give a time in ISO 8601"),
    ({"due_at": "2030-01-01", "delay_seconds": 1}, "a time and a delay are both given"),
    ({"reason": "two\nlines"}, "reason is 'two\\nlines': give one line"),
    ({"missing_ok": "yes"}, "missing_ok is 'yes'"),
]
MISTAKES = [
    *(({"json": {"deletions": [{"finetune_id": "a", **field}]}}, words) for field, words in WRONG_FIELDS),
    ({"json": {}}, "body.deletions: Field required"),
    ({"json": []}, "body is []: Input should be a valid dictionary"),
    ({"json": {"deletions": []}}, "body.deletions is []: List should have at least 1 item"),
    ({"json": {"deletions": [{"finetune_id": "a"}] * 2}}, "deletions has 'default/a' twice"),
    ({"data": "{", "headers": JSON}, "body.1: JSON decode error"),
    ({"params": {"account": "b"}, "json": {"deletions": [{"finetune_id": "a"}]}}, "this call takes no query"),
    ({"data": '{"deletions":[{"account":"a","account":"b"}]}', "headers": JSON}, "has 'account' twice"),
    ({"data": '{"deletions":[{"finetune_id":"a"}],"deletions":[]}', "headers": JSON}, "has 'deletions' twice"),
    ({"data": "{}"}, "send it with `Content-Type: application/json`"),
    ({"data": '{"deletions":[{"finetune_id":"\\ud800"}]}', "headers": JSON}, "'\\ud800'"),
    ({"json": {"deletions": [{"finetune_id": "a"}]}, "headers": {"Idempotency-Key": "x" * 129}}, "1 to 128"),
]


@pytest.mark.parametrize(("sent", "words"), MISTAKES)
def test_a_mistake_is_told_in_one_line_and_nothing_is_written(billing, sent, words):
    before = [deletion["id"] for deletion in billing.get("/v1/deletions?limit=1").json()["deletions"]]
    refused = billing.post("/v1/deletions", **sent)
    assert refused.status_code == 422
    assert words in detail(refused)
    assert [deletion["id"] for deletion in billing.get("/v1/deletions?limit=1").json()["deletions"]] == before


QUERIES = [
    ("/v1/deletions?stat=failed", 422, "query.stat is 'failed': Extra inputs"),
    ("/v1/deletions?state=done", 422, "query.state.0 is 'done': Input should be 'scheduled'"),
    ("/v1/deletions?limit=501", 422, "query.limit is '501'"),
    ("/v1/deletions?since=soon", 422, "'soon' is not a time"),
    ("/v1/deletions?cursor=%C2%B2:x", 422, "the cursor '²:x' is not one that a list answered"),
    ("/v1/deletions?account=nobody", 403, "may not use the account 'nobody': only default"),
    ("/v1/deletions?account=Nobody!", 422, "the account 'Nobody!' is not a name"),
    ("/v1/deletions?finetune_id=", 422, "the finetune id is empty"),
    ("/v1/deletions?finetune_id=caf%E9", 422, "is not UTF-8"),
    ("/v1/deletions/caf%E9", 422, "is not UTF-8"),
    ("/v1/deletions/nope", 404, UNKNOWN),
    ("/v1/deletions/nope?wait=5", 404, UNKNOWN),
    ("/v1/deletions/nope?wait=61", 422, "query.wait is '61': Input should be less than or equal to 60"),
    ("/v2/deletions", 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "status", "words"), QUERIES)
def test_a_wrong_question_is_told_what_is_accepted(billing, path, status, words):
    refused = billing.get(path)
    assert (refused.status_code, words in detail(refused)) == (status, True), refused.text


def test_a_call_with_two_keys_is_refused(base, billing):
    # requests cannot send a header twice.
    host = urlsplit(base)
    with closing(HTTPConnection(host.hostname, host.port, timeout=10)) as link:
        link.putrequest("POST", "/v1/deletions")
        for name, value in (("Authorization", billing.headers["Authorization"]), ("Content-Length", "0")):
            link.putheader(name, value)
        link.putheader("Idempotency-Key", "one")
        link.putheader("Idempotency-Key", "two")
        link.endheaders()
        refused = link.getresponse()
        assert (refused.status, b"'Idempotency-Key' is given twice" in refused.read()) == (422, True)


def test_a_body_above_the_limit_is_refused(billing):
    refused = billing.post(
        "/v1/deletions", data=b" " * ((1 << 20) + 1), headers={"Content-Type": "application/json"}
    )
    assert (refused.status_code, "more than 1048576 bytes" in detail(refused)) == (413, True)


def test_cancel_of_an_unknown_id_and_a_wrong_method(billing):
    assert detail(billing.post("/v1/deletions/nope/cancel")) == UNKNOWN
    assert (billing.delete("/v1/deletions").status_code, billing.put("/healthz").status_code) == (405, 405)


class TestTokens:
    @pytest.mark.parametrize(
        ("given", "words"),
        [
            (None, "no token"),
            ("Bearer wrong", "a token that is not known"),
            ("Bearer ", "no token"),
            (f"Basic {secret_of('billing')}", "no token"),
            (f"Bearer {secret_of('billing')} x", "a token that is not known"),
            ("Bearer \xe4", "a token that is not known"),
        ],
    )
    @pytest.mark.parametrize("path", ["/v1/deletions", "/metrics", "/nowhere"])
    def test_without_a_known_token_there_is_nothing_but_that(self, base, path, given, words):
        refused = requests.post(
            base + path, data=b"{", headers={"Authorization": given} if given else {}, timeout=5
        )
        assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert words in detail(refused)

    @pytest.mark.parametrize(
        ("name", "method", "path", "words"),
        [
            ("reader", "POST", "/v1/deletions", "'reader' lacks the scope 'enqueue'"),
            ("reader", "POST", "/v1/deletions/x/cancel", "'reader' lacks the scope 'enqueue' or 'admin'"),
            ("writer", "GET", "/v1/deletions", "'writer' lacks the scope 'read'"),
            ("keeper", "GET", "/v1/deletions/x", "'keeper' lacks the scope 'read' or 'enqueue'"),
            ("writer", "GET", "/metrics", "'writer' lacks the scope 'read'"),
            ("billing", "GET", "/metrics", "'billing' is limited to some accounts"),
        ],
    )
    def test_a_token_without_the_scope_is_told_which(self, base, name, method, path, words):
        body = (
            {"json": {"deletions": [{"finetune_id": "a"}]}} if path == "/v1/deletions" and method == "POST" else {}
        )
        with Client(base, name) as client:
            refused = client.request(method, path, **body)
        assert (refused.status_code, words in detail(refused)) == (403, True)

    def test_a_token_sees_and_uses_its_accounts_alone(self, base, billing, finetune):
        id_ = id_of(only(billing.ask(finetune, delay_seconds=3600)))
        with Client(base, "elsewhere") as elsewhere:
            assert elsewhere.ask(finetune).status_code == 403
            assert elsewhere.get(f"/v1/deletions/{id_}").status_code == 404
            assert elsewhere.post(f"/v1/deletions/{id_}/cancel").status_code == 404
            assert elsewhere.get("/v1/deletions?account=default").status_code == 403
            assert elsewhere.get("/v1/deletions").json()["deletions"] == []
            assert elsewhere.get("/v1/deletions", params={"finetune_id": finetune}).json()["deletions"] == []
        assert billing.get(f"/v1/deletions/{id_}").json()["state"] == "scheduled"

    def test_with_enqueue_alone_one_sees_and_withdraws_only_what_one_asked_for(
        self, base, billing, env, redis_url, finetune
    ):
        # Given deletions that others asked for: over HTTP, by command, by name as a producer that calls itself so,
        theirs = id_of(only(billing.ask(finetune, delay_seconds=3600)))
        (by_command,) = records(janitor_here(env, "delete", finetune, "--at", "2030-01-01T00:00:00Z", "--json"))
        more = {"requested_by": "writer", "delay_seconds": 3600}
        by_name = producer(redis_url).send_task("finetunes.delete", (finetune,), more, queue="deletions").id
        until(lambda: billing.get(f"/v1/deletions/{by_name}").status_code == 200, seconds=60, what="accepting")
        with Client(base, "writer") as writer:
            # when a token with `enqueue` alone asks for the same finetune, then it has a deletion of its own,
            ours = id_of(only(writer.ask(finetune, delay_seconds=3600)))
            assert writer.get(f"/v1/deletions/{ours}?wait=0").json()["requested_by"] == "writer"
            # sees and withdraws none of the others,
            for id_ in (theirs, by_command["id"], by_name):
                for answer in (writer.get(f"/v1/deletions/{id_}"), writer.post(f"/v1/deletions/{id_}/cancel")):
                    assert (answer.status_code, detail(answer)) == (404, f"no deletion has the id {id_!r}")
                assert billing.get(f"/v1/deletions/{id_}").json()["state"] == "scheduled"
            # and withdraws its own.
            assert writer.post(f"/v1/deletions/{ours}/cancel").json()["state"] == "cancelled"

    def test_to_withdraw_what_another_one_asked_for_takes_admin(self, base, billing, finetune):
        with Client(base, "writer") as writer, Client(base, "keeper") as keeper:
            id_ = id_of(only(writer.ask(finetune, delay_seconds=3600)))
            refused = billing.post(f"/v1/deletions/{id_}/cancel")
            assert (refused.status_code, "use one with the scope 'admin'" in detail(refused)) == (403, True)
            assert keeper.post(f"/v1/deletions/{id_}/cancel").json()["state"] == "cancelled"

    def test_deleted_by_is_shown_to_those_who_may_read_that_record(self, base, billing, api, finetune):
        # Given two deletions of one finetune, the second one accepted while the first one's call is under way,
        api.fault("slow", finetune_id=finetune, call="delete_finetune", seconds=1.5)
        first = id_of(only(billing.ask(finetune)))
        until(lambda: api.deletes(finetune), seconds=60, what="a call")
        with Client(base, "writer") as writer:
            key = {"Idempotency-Key": finetune}
            body = {"deletions": [{"finetune_id": finetune, "missing_ok": True}]}
            second = id_of(only(writer.post("/v1/deletions", json=body, headers=key)))
            # when the first one has deleted it, then only those who may read the first one are told so.
            told = writer.get(f"/v1/deletions/{second}?wait=40").json()
            assert (told["state"], told["evidence"], told["deleted_by"]) == ("deleted", "sibling", None)
            again = writer.post("/v1/deletions", json=body, headers=key)
            assert (again.status_code, only(again)["deletion"]["deleted_by"]) == (200, None)
        assert billing.get(f"/v1/deletions/{second}").json()["deleted_by"] == first

    def test_no_token_is_ever_logged(self, billing, finetune, log_of_http):
        billing.ask(finetune)
        said = log_of_http.read_text()
        assert "http.accepted" in said
        assert not [name for name in SECRETS if secret_of(name) in said]


def test_a_long_poll_ends_with_the_deletion_and_in_time(billing, api, finetune):
    api.fault("slow", finetune_id=finetune, call="delete_finetune", seconds=1)
    id_ = id_of(only(billing.ask(finetune)))
    assert billing.get(f"/v1/deletions/{id_}?wait=20").json()["state"] == "deleted"
    api.create(f"{finetune}-later")
    waiting = id_of(only(billing.ask(f"{finetune}-later", delay_seconds=3600)))
    began = time.monotonic()
    assert billing.get(f"/v1/deletions/{waiting}?wait=1").json()["state"] == "scheduled"
    assert 0.9 < time.monotonic() - began < 3


def test_a_scrape_counts_what_the_list_has(boss, env, finetune):
    boss.ask(finetune, delay_seconds=3600)

    def listed():
        found = records(janitor_here(env, "list", "--limit", "10000", "--json"))
        return Counter(record["state"] for record in found)

    def scraped():
        lines = [line.rpartition(" ") for line in boss.get("/metrics").text.splitlines()]
        counts = {
            name.split('"')[3]: int(float(n)) for name, _, n in lines if name.startswith("janitor_deletions{")
        }
        return +Counter(counts)

    assert listed()["scheduled"] >= 1
    until(lambda: scraped() == listed(), seconds=60, what="a scrape between two changes")


def test_probes_and_the_description_are_open(base):
    with Client(base) as anyone:
        assert anyone.get("/healthz").json() == anyone.get("/readyz").json() == {"status": "ok"}
        described = anyone.get("/openapi.json").json()
    assert described["openapi"].startswith("3.1")
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert {"/v1/deletions", "/v1/deletions/{deletion_id}", "/v1/deletions/{deletion_id}/cancel"} <= set(
        described["paths"]
    )


def test_a_client_that_trickles_or_breaks_off_harms_nobody(base, billing):
    place = urlsplit(base)
    for text in (b"POST /v1/deletions HTTP/1.1\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n"):
        with socket.create_connection((place.hostname, place.port), timeout=5) as half:
            half.sendall(text)
    assert billing.get("/healthz").status_code == 200


def test_the_record_is_what_the_command_prints(billing, env, finetune):
    item = only(billing.ask(finetune))
    billing.get(f"/v1/deletions/{id_of(item)}?wait=20")
    shown = json.loads(janitor_here(env, "show", id_of(item), "--json").stdout)
    told = billing.get(f"/v1/deletions/{id_of(item)}").json()
    # It may be verified in between.
    assert shown | {"verified_at": None} == told | {"verified_at": None}


@pytest.mark.skipif(not shutil.which("jq"), reason="the guide uses jq, and it is not installed")
def test_the_calls_in_the_guide_work_as_they_stand(base, api):
    for name in ("my-finetune", "other-finetune"):
        api.create(name)
    text = (ROOT / "docs/how-to/http.md").read_text(encoding="utf-8")
    scripts = re.findall(r"<!-- tested: curl -->\n```sh\n(.*?)```", text, re.DOTALL)
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", "\n".join(scripts)],
        env={**os.environ, "JANITOR": base, "TOKEN": secret_of("billing")},
        capture_output=True, text=True, timeout=60, check=True,
    ).stdout  # fmt: skip
    assert all(f'"state":"{state}"' in told for state in ("deleted", "cancelled"))


def test_the_reference_has_each_metric_and_no_other(boss):
    text = (ROOT / "docs/reference/metrics.md").read_text(encoding="utf-8")
    scraped = set(re.findall(r"^# TYPE (janitor_\w+)", boss.get("/metrics").text, re.MULTILINE))
    assert set(re.findall(r"`(janitor_\w+)`", text)) == scraped
