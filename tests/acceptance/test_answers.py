"""The answer table, row by row: a real worker, real HTTP, and a producer that knows Celery alone.

Accounts that a row stops for everybody (a cool-down, a pause, a park) are accounts of that row.
"""

import socket

import pytest

from tests.processes import KEY, janitor, janitor_here, producer, records, until
from worker.sandbox import Sandbox

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
    return {**urls, **keys, **moved, **timeouts, "BFL_API_KEY_LOCKED_OUT": "a-key-that-is-refused"}


@pytest.fixture(scope="module")
def ask(redis_url):
    """Ask for a deletion by name, as another application would; the result to wait for."""
    app = producer(redis_url)

    def ask(finetune_id, **options):
        return app.send_task("finetunes.delete", args=[finetune_id], kwargs=options, queue="deletions")

    return ask


@pytest.fixture
def finetune(api, request):
    """A finetune of this test's own."""
    name = "ft-" + "".join(c if c.isalnum() else "-" for c in request.node.name.lower())[:200]
    api.create(name)
    return name


def record_of(result):
    """The record, however the deletion ended."""
    try:
        return result.get(timeout=40)
    except Exception as error:
        return error.args[0]


@pytest.fixture(scope="module")
def unclear_to_the_end(env, api, running_worker):
    """Asked for first, judged last: what stays unclear up to its deadline takes half a minute to settle."""
    api.create("ft-never-clear")
    api.fault("hang", finetune_id="ft-never-clear", times=None)
    # Once the attempt is made no look succeeds any more.
    api.fault("status", call="finetune_details", finetune_id="ft-never-clear", status=500, times=None, skip=1)
    hasty = {**env, "JANITOR_GIVE_UP_AFTER": "1s"}
    (record,) = records(janitor(hasty, "delete", "ft-never-clear", "--account", "unsure", "--json"))
    return record["id"]


@pytest.fixture(scope="module")
def refused_to_the_end(env, api, running_worker):
    api.create("ft-never-taken")
    api.fault("status", finetune_id="ft-never-taken", status=408, times=None)
    hasty = {**env, "JANITOR_GIVE_UP_AFTER": "1s"}
    (record,) = records(janitor(hasty, "delete", "ft-never-taken", "--account", "late", "--json"))
    return record["id"]


@pytest.fixture(autouse=True)
def _started_first(unclear_to_the_end, refused_to_the_end):
    """The slow rows run beside all others."""


def test_200_is_deleted_by_response(api, ask, finetune):
    record = ask(finetune, reason="trial over", requested_by="billing").get(timeout=20)
    assert (record["state"], record["evidence"], record["status"]) == ("deleted", "response", "Success")
    assert record["message"] == f"Finetune {finetune} deleted"
    assert [request["requested_by"] for request in record["requests"]] == ["billing"]
    assert [entry["effective"] for entry in api.deletes(finetune)] == [True]


def test_200_naming_another_id_is_for_review_and_stops_the_account(api, ask, finetune, env):
    api.fault("wrong_id", finetune_id=finetune)
    record = record_of(ask(finetune, account="alarmed"))
    assert record["state"] == "review"
    assert "somebody-elses" in record["message"]
    assert len(api.deletes(finetune)) == 1
    # When more is asked for, then it waits.
    api.create(f"{finetune}-2")
    waiting = ask(f"{finetune}-2", account="alarmed")
    held = janitor(env, "wait", waiting.id, "--timeout", "2", "--json")
    until(
        lambda: records(janitor(env, "list", "--finetune", f"{finetune}-2", "--json")), seconds=10, what="a record"
    )
    assert api.deletes(f"{finetune}-2") == []
    assert held.returncode in (1, 4)


UNCLEAR = [
    ("missing_fields", {}), ("not_json", {}), ("cut", {}), ("huge", {}), ("status", {"status": 202}), ("hang", {}),
    ("reset", {}), ("close", {}), ("drip", {"seconds": 0.3}), ("drip_headers", {"seconds": 0.3}),
    ("status", {"status": 500}), ("status", {"status": 503}), ("status", {"status": 504, "body": "<html>"}),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "more"), UNCLEAR)
def test_an_unclear_answer_that_was_applied_is_found_gone(api, ask, finetune, kind, more):
    api.fault(kind, finetune_id=finetune, applies=True, **more)
    record = ask(finetune).get(timeout=20)
    assert (record["state"], record["evidence"]) == ("deleted", "read-back")
    assert len(api.deletes(finetune)) == 1


@pytest.mark.parametrize(("kind", "more"), UNCLEAR)
def test_an_unclear_answer_that_was_not_applied_is_tried_again(api, ask, finetune, kind, more):
    api.fault(kind, finetune_id=finetune, applies=False, **more)
    record = ask(finetune).get(timeout=20)
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
    record = ask(finetune, account=account).get(timeout=20)
    first, second = record["attempts"]
    assert (first["http_status"], second["http_status"], record["state"]) == (answer["status"], 200, "deleted")
    assert second["at"] > first["at"]
    assert [entry["effective"] for entry in api.deletes(finetune)] == [False, True]


@pytest.mark.parametrize("status", [408, 425])
def test_not_yet_is_tried_again(api, ask, finetune, status):
    api.fault("status", finetune_id=finetune, status=status)
    record = ask(finetune).get(timeout=20)
    assert [attempt["http_status"] for attempt in record["attempts"]] == [status, 200]


def test_404_before_any_attempt_is_not_found(api, ask):
    record = record_of(ask("ft-nobody-knows"))
    assert (record["state"], record["evidence"], api.deletes("ft-nobody-knows")) == ("not_found", None, [])


def test_404_is_fine_for_who_says_so(ask):
    assert ask("ft-nobody-knows-either", missing_ok=True).get(timeout=20)["state"] == "not_found"


def test_404_to_the_delete_of_what_is_there_is_tried_again(api, ask, finetune):
    api.fault("status", finetune_id=finetune, status=404)
    assert ask(finetune).get(timeout=20)["state"] == "deleted"
    assert len(api.deletes(finetune)) == 2


def test_404_to_the_second_delete_after_an_unclear_first_is_deleted(api, ask, finetune):
    # Given an attempt that is applied late: the look afterwards still finds the finetune.
    api.fault("close", finetune_id=finetune, applies=True)
    details = {"finetune_details": {"trigger_word": "late"}}
    api.fault("status", call="finetune_details", finetune_id=finetune, status=200, body=details, times=1, skip=1)
    record = ask(finetune).get(timeout=20)
    assert (record["state"], record["evidence"]) == ("deleted", "read-back")


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_refused_for_one_finetune_alone_is_failed(api, ask, finetune, status):
    api.fault("status", finetune_id=finetune, status=status)
    record = record_of(ask(finetune))
    assert (record["state"], record["attempts"][0]["http_status"]) == ("failed", status)
    assert api.finetunes().count(finetune) == 1


def test_a_key_refused_for_all_parks_the_account_and_spends_no_attempt(api, ask, finetune, env):
    result = ask(finetune, account="locked_out")

    def told():
        found = records(janitor(env, "list", "--finetune", finetune, "--json"))
        return found and "the account is parked" in (found[0]["message"] or "")

    until(told, seconds=20, what="the park")
    (record,) = records(janitor(env, "list", "--finetune", finetune, "--json"))
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


def test_another_incarnation_is_superseded_and_lives(api, env, ask, finetune):
    result = ask(finetune, delay_seconds=2)
    until(
        lambda: any(r["looked_at"] for r in records(janitor_here(env, "list", "--finetune", finetune, "--json"))),
        seconds=10,
        what="the first look",
    )
    api.create(finetune, trigger_word="ANOTHER")
    record = record_of(result)
    assert record["state"] == "superseded"
    assert "trigger_word" in record["message"]
    assert api.deletes(finetune) == []


def test_what_stays_refused_until_its_deadline_is_failed(env, refused_to_the_end):
    done = janitor(env, "wait", refused_to_the_end, "--timeout", "60", "--json")
    (record,) = records(done)
    assert (done.returncode, record["state"]) == (1, "failed")
    assert "given up at its deadline" in record["message"]


def test_what_stays_unclear_until_its_deadline_is_for_review(env, api, unclear_to_the_end):
    done = janitor(env, "wait", unclear_to_the_end, "--timeout", "90", "--json", timeout=100)
    (record,) = records(done)
    assert (done.returncode, record["state"]) == (1, "review")
    assert api.finetunes().count("ft-never-clear") == 1
