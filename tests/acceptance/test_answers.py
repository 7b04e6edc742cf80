"""The answer table, row by row: a real worker, real HTTP, and a producer that knows Celery alone.

If a row stops an account (a cool-down, a pause, a park), it has an account of its own.
"""

import socket
import threading
from datetime import UTC, datetime, timedelta

import pytest
import requests

from tasks.ledger import Ledger
from tasks.ledger.queries import get, get_many
from tests.processes import KEY, janitor_here, producer, records, until
from worker.redis_url import connect
from worker.sandbox.api import Sandbox

pytestmark = pytest.mark.usefixtures("running_worker")
ACCOUNTS = ("cool_429", "cool_402", "cool_503", "alarmed", "locked_out", "unsure", "late", "moved")


@pytest.fixture(scope="module")
def closed_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def settings(api, closed_port):
    urls = {f"BFL_API_URL_{name.upper()}": api.url for name in ACCOUNTS}
    keys = {f"BFL_API_KEY_{name.upper()}": KEY for name in ACCOUNTS}
    timeouts = {"JANITOR_CONNECT_TIMEOUT": "500ms", "JANITOR_READ_TIMEOUT": "500ms", "JANITOR_CALL_DEADLINE": "1s"}
    moved = {"BFL_API_URL_MOVED": f"http://127.0.0.1:{closed_port}"}
    # A deletion that uses up its budget of short waits (5 s) is past its deadline then.
    hasty = {"JANITOR_GIVE_UP_AFTER": "1s"}
    return {**urls, **keys, **moved, **timeouts, **hasty, "BFL_API_KEY_LOCKED_OUT": "a-key-that-is-refused"}


@pytest.fixture(scope="module")
def ask(redis_url):
    """Ask for a deletion by name, as another application would; the result to wait for."""
    app = producer(redis_url)

    def ask(finetune_id, **options):
        return app.send_task("finetunes.delete", args=[finetune_id], kwargs=options, queue="deletions")

    return ask


@pytest.fixture(scope="module")
def ledger(redis_url):
    return Ledger(connect(redis_url))


@pytest.fixture
def finetune(api, request):
    """A finetune of this test's own."""
    name = "ft-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:200]
    api.create(name)
    return name


def ago(**duration):
    return (datetime.now(UTC) - timedelta(**duration)).isoformat()


def moment(text):
    return datetime.fromisoformat(text)


def record_of(result, timeout=40):
    """The record, however the deletion ended."""
    try:
        return result.get(timeout=timeout)
    except Exception as error:
        return error.args[0]


@pytest.fixture(scope="module")
def unclear_to_the_end(api, ask):
    """Asked for first, judged last: what stays unclear up to its deadline takes half a minute to settle."""
    api.create("ft-never-clear")
    api.fault("hang", finetune_id="ft-never-clear", times=None)
    # Once the attempt is made no observation succeeds any more.
    api.fault("status", call="finetune_details", finetune_id="ft-never-clear", status=500, times=None, skip=1)
    return ask("ft-never-clear", account="unsure")


@pytest.fixture(scope="module")
def refused_after_an_unclear_attempt(api, ask):
    """A refusal after an unclear attempt is `failed` only if the finetune is still there half a minute later."""
    api.create("ft-refused-late")
    api.fault("status", finetune_id="ft-refused-late", status=502)
    api.fault("status", finetune_id="ft-refused-late", status=400, body={"detail": "malformed"}, times=None)
    return ask("ft-refused-late", account="late")


@pytest.fixture(scope="module")
def reused_while_it_waited(api, ask):
    """What waits is observed half a minute after it was accepted, so that a reused name is noticed."""
    api.create("ft-reused")
    asked, ended = ask("ft-reused", delay_seconds=45), threading.Event()

    def reuse():
        while not ended.wait(0.1):
            if any(call["finetune_id"] == "ft-reused" for call in api.journal()):
                api.create("ft-reused", trigger_word="ANOTHER")
                return

    # At once, whatever the order of the tests: 15 s later it would be deleted.
    reusing = threading.Thread(target=reuse)
    reusing.start()
    yield asked
    # In a process that runs other tests of this file, the observation may be yet to come.
    ended.set()
    reusing.join()


@pytest.fixture(autouse=True)
def _started_first(running_worker, unclear_to_the_end, refused_after_an_unclear_attempt, reused_while_it_waited):
    """The slow rows run beside all others."""


def test_200_is_deleted_by_response(api, ask, finetune):
    record = ask(finetune, reason="trial over", requested_by="billing").get(timeout=60)
    assert (record["state"], record["evidence"], record["status"]) == ("deleted", "response", "Success")
    assert record["message"] == f"Finetune {finetune} deleted"
    assert (record["source"], record["requested_by"], record["reason"]) == ("name", "billing", "trial over")
    assert [entry["effective"] for entry in api.deletes(finetune)] == [True]


def test_200_naming_another_id_is_for_review_and_stops_the_account(api, ask, finetune, env, ledger):
    api.fault("wrong_id", finetune_id=finetune)
    record = record_of(ask(finetune, account="alarmed"))
    assert record["state"] == "review"
    assert "somebody-elses" in record["message"]
    assert len(api.deletes(finetune)) == 1
    # When more is asked for, then it waits.
    api.create(f"{finetune}-2")
    waiting = ask(f"{finetune}-2", account="alarmed")
    until(lambda: get_many(ledger, [waiting.id])[0], seconds=20, what="a record")
    assert janitor_here(env, "wait", waiting.id, "--timeout", "2").returncode == 4
    assert api.deletes(f"{finetune}-2") == []


@pytest.mark.parametrize("word", ["Error", "failed", "Pending", "queued", "rejected", ""])
@pytest.mark.parametrize("applies", [True, False])
def test_200_with_any_other_word_than_of_success_is_observed(api, ask, finetune, word, applies):
    said = {"status": word, "message": "", "deleted_finetune_id": finetune, "timestamp": ""}
    api.fault("status", finetune_id=finetune, status=200, body=said, applies=applies)
    record = ask(finetune).get(timeout=60)
    assert (record["state"], record["evidence"]) == ("deleted", "read-back" if applies else "response")
    assert [entry["effective"] for entry in api.deletes(finetune)] == ([True] if applies else [False, True])


@pytest.mark.parametrize("word", ["OK", "Deleted", "completed"])
def test_200_with_another_word_of_success_is_deleted(api, ask, finetune, word):
    said = {"status": word, "message": "m", "deleted_finetune_id": finetune, "timestamp": "t"}
    api.fault("status", finetune_id=finetune, status=200, body=said, applies=True)
    record = ask(finetune).get(timeout=60)
    assert (record["evidence"], record["status"], record["message"]) == ("response", word, "m")


def test_another_spelling_of_a_uuid_is_our_id(api, ask):
    api.create("0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10")
    record = ask("0D3F5C1E-6A55-4B0E-9A53-2F1F6B1F3F10").get(timeout=60)
    assert (record["state"], record["evidence"]) == ("deleted", "response")


def test_the_unique_id_just_observed_is_our_id(api, ask, finetune):
    api.create(finetune, lora=True, id="8e6c0d9a")
    said = {"status": "Success", "message": "", "deleted_finetune_id": "8e6c0d9a", "timestamp": ""}
    api.fault("status", finetune_id=finetune, status=200, body=said, applies=True)
    assert ask(finetune).get(timeout=60)["evidence"] == "response"


UNCLEAR = [
    ("missing_fields", {}), ("not_json", {}), ("cut", {}), ("huge", {}), ("status", {"status": 202}), ("hang", {}),
    ("reset", {}), ("close", {}), ("drip", {"seconds": 0.3}), ("drip_headers", {"seconds": 0.3}),
    ("status", {"status": 500}), ("status", {"status": 503}), ("status", {"status": 504, "body": "<html>"}),
    ("early_hints", {}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "more"), UNCLEAR)
def test_an_unclear_answer_that_was_applied_is_found_gone(api, ask, finetune, kind, more):
    api.fault(kind, finetune_id=finetune, applies=True, **more)
    record = ask(finetune).get(timeout=60)
    assert (record["state"], record["evidence"]) == ("deleted", "read-back")
    assert len(api.deletes(finetune)) == 1


@pytest.mark.parametrize(("kind", "more"), UNCLEAR)
def test_an_unclear_answer_that_was_not_applied_is_tried_again(api, ask, finetune, kind, more):
    api.fault(kind, finetune_id=finetune, applies=False, **more)
    record = ask(finetune).get(timeout=60)
    assert (record["state"], record["evidence"]) == ("deleted", "response")
    assert [entry["effective"] for entry in api.deletes(finetune)] == [False, True]
    assert [attempt["http_status"] for attempt in record["attempts"]][-1] == 200


def test_a_refused_connection_is_tried_again(ask, closed_port):
    result = ask("ft-moved", account="moved")
    with Sandbox(port=closed_port, keys={KEY}, latency_seconds=0) as moved:
        moved.create("ft-moved")
        record = result.get(timeout=40)
    assert (record["state"], len(moved.deletes())) == ("deleted", 1)


THROTTLED = [
    ("cool_429", {"status": 429, "headers": {"Retry-After": "1"}}),
    ("cool_402", {"status": 402, "headers": {"Retry-After": "1"}}),
    ("cool_503", {"status": 503, "headers": {"Retry-After": "1"}}),
]


@pytest.mark.parametrize(("account", "answer"), THROTTLED)
def test_a_throttled_account_cools_down_and_goes_on(api, ask, finetune, account, answer):
    api.fault("status", finetune_id=finetune, **answer)
    record = ask(finetune, account=account).get(timeout=60)
    first, second = record["attempts"]
    assert (first["http_status"], second["http_status"], record["state"]) == (answer["status"], 200, "deleted")
    assert second["at"] > first["at"]
    assert [entry["effective"] for entry in api.deletes(finetune)] == [False, True]


@pytest.mark.parametrize("status", [408, 425])
def test_not_yet_is_tried_again(api, ask, finetune, status):
    api.fault("status", finetune_id=finetune, status=status)
    record = ask(finetune).get(timeout=60)
    assert [attempt["http_status"] for attempt in record["attempts"]] == [status, 200]


def test_404_before_any_attempt_is_not_found(api, ask):
    record = record_of(ask("ft-unknown"))
    assert (record["state"], record["evidence"], api.deletes("ft-unknown")) == ("not_found", None, [])


def test_404_is_fine_if_the_request_says_so(ask):
    assert ask("ft-unknown-too", missing_ok=True).get(timeout=60)["state"] == "not_found"


def test_404_to_the_delete_of_what_is_there_is_tried_again(api, ask, finetune):
    api.fault("status", finetune_id=finetune, status=404)
    assert ask(finetune).get(timeout=60)["state"] == "deleted"
    assert len(api.deletes(finetune)) == 2


def test_404_three_times_to_the_delete_of_what_stays_visible_is_failed(api, ask, finetune):
    api.fault("status", finetune_id=finetune, status=404, times=3)
    record = record_of(ask(finetune))
    assert (record["state"], len(api.deletes(finetune))) == ("failed", 3)
    assert "this key may not delete it" in record["message"]


def test_an_unclear_attempt_that_is_applied_late_is_found_gone(api, ask, finetune):
    # Given an attempt that is applied late: the observation right afterwards still finds the finetune.
    url = f"{api.url}/v1/finetune_details"
    shown = requests.get(url, params={"finetune_id": finetune}, headers={"x-key": KEY}, timeout=5).json()
    api.fault("close", finetune_id=finetune, applies=True)
    api.fault("status", call="finetune_details", finetune_id=finetune, status=200, body=shown, times=1, skip=1)
    record = ask(finetune).get(timeout=60)
    assert (record["state"], record["evidence"]) == ("deleted", "read-back")
    assert len(api.deletes(finetune)) == 1


@pytest.mark.parametrize(
    ("status", "body"), [(405, {"detail": "Method Not Allowed"}), (404, {"error": "no route"})]
)
def test_if_details_does_not_work_the_list_tells_presence(api, ask, finetune, status, body):
    api.fault("status", call="finetune_details", finetune_id=finetune, status=status, body=body, times=None)
    assert ask(finetune).get(timeout=60)["state"] == "deleted"
    # What the list lacks is attempted all the same, and the delete's own 404 tells.
    assert record_of(ask(finetune))["state"] == "not_found"
    assert [entry["http_status"] for entry in api.deletes(finetune)] == [200, 404]


def test_a_list_that_speaks_of_more_proves_no_absence(api, ask):
    # Given a list of which this is one page
    more = {"finetunes": [], "has_more": True}
    fault = api.fault("status", call="my_finetunes", status=200, body=more, times=None)
    seen = len(api.journal())
    result = ask("ft-on-another-page")

    def asked():
        return [entry for entry in api.journal()[seen:] if entry["call"] == "my_finetunes" and entry["fault"]]

    # When it was asked more than once, then the deletion has not ended.
    until(lambda: len(asked()) > 1, seconds=60, what="two lists")
    assert result.state == "PENDING"
    fault.times = 0
    assert record_of(result)["state"] == "not_found"


def test_the_list_has_what_details_does_not_know(api, ask, finetune):
    # Given details that answer 404 once, although the finetune is listed
    api.fault("status", call="finetune_details", finetune_id=finetune, status=404, body={"detail": "no"})
    assert ask(finetune).get(timeout=60)["state"] == "deleted"


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_refused_for_one_finetune_alone_is_failed(api, ask, finetune, status):
    api.fault("status", finetune_id=finetune, status=status)
    record = record_of(ask(finetune))
    assert (record["state"], record["attempts"][0]["http_status"]) == ("failed", status)
    assert api.finetunes().count(finetune) == 1


def test_a_key_refused_for_all_parks_the_account_and_spends_no_attempt(api, ask, finetune, env, ledger):
    result = ask(finetune, account="locked_out")

    def told():
        (found,) = get_many(ledger, [result.id])
        return found and "the account is parked" in (found.message or "")

    until(told, seconds=20, what="the park")
    (record,) = records(janitor_here(env, "list", "--finetune", finetune, "--json"))
    assert (record["state"], record["attempts"], result.state) == ("queued", [], "PENDING")
    assert api.deletes(finetune) == []


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (
            422,
            {"detail": [{"loc": ["body", "finetune_id"], "msg": "still training", "type": "x"}]},
            "still training",
        ),
        (400, {"detail": "malformed"}, "malformed"),
        (409, {"detail": "in use"}, "in use"),
    ],
)
def test_refused_for_good_is_failed_with_the_apis_own_words(api, ask, finetune, status, body, message):
    api.fault("status", finetune_id=finetune, status=status, body=body)
    record = record_of(ask(finetune))
    assert record["state"] == "failed"
    assert message in record["message"]
    assert (len(api.deletes(finetune)), api.finetunes().count(finetune)) == (1, 1)


def test_a_redirect_is_never_followed(api, ask, finetune):
    with Sandbox(keys={KEY}) as elsewhere:
        there = f"{elsewhere.url}/v1/my_finetunes"
        api.fault("status", finetune_id=finetune, status=302, headers={"Location": there})
        assert record_of(ask(finetune))["state"] == "failed"
        assert elsewhere.journal() == []


SHAPES = [{"timestamp": None}, {"lora": True}, {"lora": True, "created_at": None}, {"lora": True, "id": None}]


@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_carried_out_right_away_is_deleted_whatever_its_details_tell(api, ask, finetune, shape):
    api.create(finetune, **shape)
    assert ask(finetune).get(timeout=60)["state"] == "deleted"


def test_without_a_creation_time_what_was_asked_for_long_ago_is_for_review(api, ask, finetune):
    api.create(finetune, timestamp=None)
    record = record_of(ask(finetune, requested_at=ago(hours=2)))
    assert (record["state"], api.deletes(finetune)) == ("review", [])
    assert "no creation time" in record["message"]


def test_a_finetune_younger_than_the_request_is_superseded_and_stays(api, ask, finetune):
    api.create(finetune, timestamp=ago(seconds=1))
    record = record_of(ask(finetune, requested_at=ago(minutes=1)))
    assert (record["state"], api.deletes(finetune)) == ("superseded", [])


def test_two_requests_for_one_finetune_are_two_records_and_one_delete(api, ask, finetune):
    # Given two that are due at the same moment
    first, second = ask(finetune, delay_seconds=2), ask(finetune, delay_seconds=2)
    found = [first.get(timeout=60), second.get(timeout=60)]
    # Then one deletes, and the other one meant the same finetune.
    assert sorted(record["evidence"] for record in found) == ["response", "sibling"]
    by_response, by_sibling = sorted(found, key=lambda record: record["evidence"])
    assert by_sibling["deleted_by"] == by_response["id"]
    assert len(api.deletes(finetune)) == 1


def test_what_stays_refused_until_its_deadline_is_failed(api, ask, finetune):
    api.fault("status", finetune_id=finetune, status=408, times=None)
    record = record_of(ask(finetune))
    assert record["state"] == "failed"
    assert "given up at its deadline" in record["message"]


def test_a_refusal_after_an_unclear_attempt_is_failed_once_that_is_settled(api, refused_after_an_unclear_attempt):
    record = record_of(refused_after_an_unclear_attempt, timeout=90)
    assert record["state"] == "failed"
    settled = moment(record["finished_at"]) - moment(record["attempts"][0]["at"])
    assert settled >= timedelta(seconds=30)
    assert api.finetunes().count("ft-refused-late") == 1


def test_another_incarnation_is_superseded_and_stays(api, reused_while_it_waited):
    record = record_of(reused_while_it_waited, timeout=90)
    assert (record["state"], api.deletes("ft-reused")) == ("superseded", [])


def test_what_stays_unclear_until_its_deadline_is_for_review(api, unclear_to_the_end):
    assert record_of(unclear_to_the_end, timeout=90)["state"] == "review"
    assert api.finetunes().count("ft-never-clear") == 1


def test_what_was_deleted_is_verified_by_the_list(ledger, ask, finetune):
    record = ask(finetune).get(timeout=60)
    until(lambda: get(ledger, record["id"]).verified_at, seconds=100, what="the verification")
