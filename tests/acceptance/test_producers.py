"""Other services: they know Celery, our task names and queue, and nothing else of ours."""

import json
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from celery import chain, chord, group

from tasks.ledger import Ledger
from tests.processes import ROOT, environment, janitor_here, producer, records, started, until
from worker.local.supervise import Spec
from worker.redis_url import celery_url, connect

pytestmark = pytest.mark.usefixtures("running_worker")

# A service of somebody else's, with a task of its own that our deletions call back.
SERVICE = """
import json, os
from celery import Celery

app = Celery("theirs", broker=os.environ["THEIR_BROKER"], backend=os.environ["THEIR_BROKER"])
app.conf.task_default_queue = "theirs"
app.conf.broker_transport_options = {"visibility_timeout": 3600}

@app.task(name="theirs.note")
def note(*given, tag=None):
    with open(os.environ["THEIR_NOTES"], "a") as file:
        file.write(json.dumps([tag, repr(given)]) + "\\n")
    return "noted"

@app.task(name="theirs.states")
def states(records):
    return sorted(record["state"] for record in records)
"""


@pytest.fixture(scope="module")
def app(redis_url):
    return producer(redis_url)


@pytest.fixture(scope="module")
def notes(redis_url, tmp_path_factory):
    """Their service, running; what it was called back with."""
    folder = tmp_path_factory.mktemp("theirs")
    (folder / "theirs.py").write_text(SERVICE)
    file = folder / "notes"
    env = environment(THEIR_BROKER=celery_url(redis_url), THEIR_NOTES=file, PYTHONPATH=folder)
    argv = [
        sys.executable,
        "-m",
        "celery",
        "-A",
        "theirs",
        "worker",
        "-l",
        "INFO",
        "-P",
        "threads",
        "-n",
        "theirs",
    ]
    log = folder / "log"
    spec = Spec("theirs", argv, env, ready=lambda: b"ready." in log.read_bytes(), log=log)
    with started(spec):
        yield lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def noted(notes, tag):
    until(lambda: any(seen == tag for seen, _ in notes()), seconds=60, what=f"the note {tag}")
    return [given for seen, given in notes() if seen == tag]


@pytest.fixture
def finetune(api):
    name = f"ft-{uuid.uuid4().hex[:12]}"
    api.create(name)
    return name


def delete(app, finetune_id, **options):
    return app.signature("finetunes.delete", args=[finetune_id], kwargs=options, queue="deletions")


def state_of(app, id_):
    """The state of the record in a result, read again."""
    found = app.backend.get_task_meta(id_, cache=False)["result"]
    return found.args[0].get("state") if isinstance(found, Exception) and isinstance(found.args[0], dict) else None


def wait_until_read(app):
    """A message that was sent later has been carried out, and others were read before it."""
    for _ in range(3):
        app.send_task("finetunes.delete", ["never-there"], {"missing_ok": True}, queue="deletions").get(timeout=60)


def note(app, tag):
    return app.signature("theirs.note", kwargs={"tag": tag}, queue="theirs")


def documented(document, mark):
    """The example of a document that bears this mark."""
    text = (ROOT / document).read_text(encoding="utf-8")
    (code,) = re.findall(rf"<!-- tested: {mark} -->\n```python\n(.*?)```", text, re.DOTALL)
    return code


def run_alone(code, redis_url):
    """Run it as it stands, in a process that has Celery and nothing of ours."""
    broker = f"BROKER_URL = {celery_url(redis_url)!r}\n"
    only_celery = "\nimport sys\nassert not {'tasks', 'worker'} & set(sys.modules)\n"
    argv = [sys.executable, "-c", broker + code + only_celery]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, cwd="/")
    assert done.returncode == 0, done.stderr
    return done


def test_the_guides_callbacks_run_as_they_stand(api, redis_url, notes):
    for name in ("linked", "chained"):
        api.create(name)
    run_alone(documented("docs/how-to/producers.md", "callbacks"), redis_url)
    until(lambda: {tag for tag, _ in notes()} >= {"told", "next"}, seconds=60, what="the callbacks")
    # The finetune is gone by now: this time it is `not_found`, and the other callback runs.
    run_alone(documented("docs/how-to/producers.md", "callbacks"), redis_url)
    until(lambda: "not deleted" in {tag for tag, _ in notes()}, seconds=60, what="the other callback")
    assert [tag for tag, _ in notes()].count("next") == 1, "a chain stops where a finetune was not deleted"


def test_the_guides_result_is_read_as_it_stands(redis_url):
    asking = 'app.send_task("finetunes.delete", ["never-there"], queue="deletions")'
    code = f"from celery import Celery\napp = Celery(broker=BROKER_URL, backend=BROKER_URL)\ndeletion = {asking}\n"
    done = run_alone(code + documented("docs/how-to/producers.md", "result") + "print(record['state'])", redis_url)
    assert done.stdout == "not_found\n"


@pytest.mark.parametrize("document", ["README.md", "docs/how-to/producers.md"])
def test_the_documented_producer_runs_as_it_stands(api, redis_url, document):
    code = documented(document, "producer")
    api.create("my-finetune")
    done = run_alone(code, redis_url)
    assert done.stdout.startswith("deleted Success Finetune my-finetune deleted 20")
    assert len(code.splitlines()) <= 10


def test_get_answers_with_the_record_that_the_command_shows(app, env, finetune):
    result = app.send_task("finetunes.delete", [finetune], {"reason": "over"}, queue="deletions")
    record = result.get(timeout=60)
    shown = records(janitor_here(env, "show", result.id, "--json"))[0]
    assert record | {"verified_at": None} == shown | {"verified_at": None}, "it may have been verified in between"
    assert (record["id"], record["source"], record["reason"]) == (result.id, "name", "over")


def test_the_task_id_is_the_idempotency_key(app, api, finetune):
    key = f"order 7: {finetune}"
    first = app.send_task("finetunes.delete", [finetune], task_id=key, queue="deletions").get(timeout=60)
    again = app.send_task("finetunes.delete", [finetune], task_id=key, queue="deletions")
    second = app.send_task("finetunes.delete", [finetune], {"missing_ok": True}, queue="deletions")
    assert second.get(timeout=60)["state"] == "not_found"
    assert again.get(timeout=60) == first
    assert len(api.deletes(finetune)) == 1


def test_a_known_id_with_other_arguments_is_a_conflict_and_the_first_result_replaces_it(app, api, env, finetune):
    # Given a deletion that waits, and a request for another finetune under the same id
    key, other = f"order 8: {finetune}", f"{finetune}-other"
    api.create(other)
    first = app.send_task(
        "finetunes.delete", [finetune], {"delay_seconds": 600, "reason": "secret"}, task_id=key, queue="deletions"
    )
    until(lambda: janitor_here(env, "show", key).returncode == 0, seconds=60, what="the record")
    second = app.send_task("finetunes.delete", [other], task_id=key, queue="deletions")
    # Then the second one is told of the conflict, and of nothing else;
    with pytest.raises(Exception, match="used before with other arguments") as raised:
        second.get(timeout=60)
    assert type(raised.value).__name__ == "IdConflict"
    assert not [word for word in ("secret", finetune) if word in str(raised.value).replace(key, "")]
    # when the first one has ended, then the result is its own.
    janitor_here(env, "cancel", key)
    until(lambda: state_of(app, first.id) == "cancelled", seconds=60, what="the result of the first")
    assert (api.deletes(finetune), api.deletes(other)) == ([], [])


def test_a_conflict_does_not_replace_a_result(app, api, finetune):
    key, other = f"order 9: {finetune}", f"{finetune}-other"
    api.create(other)
    first = app.send_task("finetunes.delete", [finetune], task_id=key, queue="deletions").get(timeout=60)
    app.send_task("finetunes.delete", [other], task_id=key, queue="deletions")
    # One more, so that the conflict has been dealt with.
    app.send_task("finetunes.delete", [finetune], task_id=key, queue="deletions").get(timeout=60)
    wait_until_read(app)
    assert app.AsyncResult(key).get(timeout=60) == first
    assert api.deletes(other) == []


@pytest.mark.parametrize("option", ["countdown", "eta"])
def test_countdown_and_eta_are_due_at_and_the_record_exists_at_once(app, api, env, finetune, option):
    # When a deletion is sent with Celery's own delay
    due = datetime.now(UTC) + timedelta(hours=1)
    waiting = app.send_task(
        "finetunes.delete", [finetune], queue="deletions", **{option: 3600 if option == "countdown" else due}
    )
    # Then its record is there, dated and waiting in the ledger,
    until(lambda: janitor_here(env, "show", waiting.id).returncode == 0, seconds=60, what="the record")
    (record,) = records(janitor_here(env, "show", waiting.id, "--json"))
    assert (record["state"], record["asked_at"]) == ("scheduled", record["created_at"])
    assert abs(datetime.fromisoformat(record["due_at"]) - due) < timedelta(seconds=20)
    # and it can be cancelled.
    assert app.send_task("finetunes.cancel", [waiting.id], queue="deletions").get(timeout=60) == "cancelled"
    with pytest.raises(Exception, match="cancelled"):
        waiting.get(timeout=60)
    assert api.deletes(finetune) == []


def test_a_request_that_expires_before_it_is_read_is_never_accepted(app, api, env, finetune):
    late = app.send_task("finetunes.delete", [finetune], queue="deletions", expires=-1)
    wait_until_read(app)
    assert janitor_here(env, "show", late.id).returncode == 1
    assert api.deletes(finetune) == []


def test_expires_holds_only_until_a_request_is_accepted(app, finetune):
    result = app.send_task("finetunes.delete", [finetune], {"delay_seconds": 3}, queue="deletions", expires=2)
    assert result.get(timeout=60)["state"] == "deleted"


def test_an_accepted_request_that_comes_again_after_its_time_does_not_expire(app, finetune):
    ask = partial(app.send_task, "finetunes.delete", [finetune], {"delay_seconds": 3}, queue="deletions")
    result = ask()
    wait_until_read(app)
    ask(task_id=result.id, expires=-1)
    assert result.get(timeout=60)["state"] == "deleted"


def test_a_cancel_with_a_delay_is_a_dead_letter(app, env):
    cancel = app.send_task("finetunes.cancel", ["any-id"], queue="deletions", countdown=60)
    until(lambda: cancel.id in janitor_here(env, "dead-letters", "list", "--json").stdout, seconds=60, what="it")


def test_a_compressed_message_is_read(app, finetune):
    result = app.send_task("finetunes.delete", [finetune], queue="deletions", compression="gzip")
    assert result.get(timeout=60)["state"] == "deleted"


def test_a_refused_request_is_logged_because_its_result_may_not_be_read(app, log, finetune):
    app.send_task("finetunes.delete", [finetune], {"account": "defualt"}, queue="deletions")
    until(lambda: "'defualt' is not known" in log.read_text(), seconds=60, what="the line in the log")


def test_a_deletion_that_does_not_end_as_asked_raises_with_its_record(app):
    result = app.send_task("finetunes.delete", ["ft-unknown"], queue="deletions")
    with pytest.raises(Exception, match="not_found") as raised:
        result.get(timeout=60)
    assert type(raised.value).__name__ == "DeletionNotDone"
    assert raised.value.args[0]["finetune_id"] == "ft-unknown"


BAD = [
    (([""], {}), "the finetune id is empty: give 1 to 255"),
    ((["x" * 256], {}), "has 256 characters: give 1 to 255"),
    (([7], {}), "the finetune id 7 is not a text"),
    ((["a\nb"], {}), "has a space or a control character"),
    ((["org/name"], {}), "JANITOR_ALLOW_ORG_IDS=true"),
    ((["a"], {"account": "nobody"}), "the account 'nobody' is not known: give one of default"),
    ((["a"], {"delay_seconds": -1}), "delay_seconds is -1: give a number"),
    ((["a"], {"delay_seconds": "soon"}), "delay_seconds is 'soon': give a number"),
    ((["a"], {"due_at": "tomorrow"}), "'tomorrow' is not a time: give a time in ISO 8601"),
    ((["a"], {"due_at": 7}), "due_at is 7: give a time"),
    ((["a"], {"missing_ok": "yes"}), "missing_ok is 'yes': give true or false"),
    ((["a"], {"reason": 7}), "reason is 7: give one line"),
    ((["a"], {"requested_at": "2020-01-01T00:00:00Z"}), "is older than records are kept"),
    ((["a"], {"when": "now"}), "'when' is not an argument: accepted are account, reason"),
]


@pytest.mark.parametrize(("arguments", "words"), BAD)
def test_bad_arguments_fail_the_task_with_one_line_and_write_nothing(app, redis_url, arguments, words):
    written = Ledger(connect(redis_url)).redis
    before = set(written.keys("janitor:2:d:*"))
    result = app.send_task("finetunes.delete", *arguments, queue="deletions")
    with pytest.raises(Exception, match=re.escape(words)) as raised:
        result.get(timeout=60)
    assert type(raised.value).__name__ == "InvalidRequest"
    assert "\n" not in str(raised.value)
    assert set(written.keys("janitor:2:d:*")) == before


def test_missing_arguments_fail_the_task_too(app):
    with pytest.raises(Exception, match="give finetune_id, and all others by name"):
        app.send_task("finetunes.delete", queue="deletions").get(timeout=60)


def test_a_delay_is_kept_and_a_time_too(app, api, finetune):
    due = datetime.now(UTC) + timedelta(seconds=2)
    by_time = app.send_task("finetunes.delete", [finetune], {"due_at": due.isoformat()}, queue="deletions")
    record = by_time.get(timeout=60)
    assert record["attempts"][0]["at"] >= due.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def test_many_at_once_have_ids_of_their_own(app, api, finetune):
    names = [f"{finetune}-{n}" for n in range(120)]
    for name in names:
        api.create(name)
    ids = app.send_task("finetunes.delete_many", [[*names, names[0]]], queue="deletions").get(timeout=60)
    assert len(set(ids)) == len(names)
    found = [app.AsyncResult(id_).get(timeout=60) for id_ in ids]
    assert {record["state"] for record in found} == {"deleted"}
    assert [record["finetune_id"] for record in found] == names
    assert max(entry["at_once"] for entry in api.journal()) <= 8


def test_many_with_one_bad_id_write_nothing(app, env, finetune):
    with pytest.raises(Exception, match="empty"):
        app.send_task("finetunes.delete_many", [[finetune, ""]], queue="deletions").get(timeout=60)
    assert records(janitor_here(env, "list", "--finetune", finetune, "--json")) == []


def test_cancel_by_name(app, api, env, finetune):
    waiting = app.send_task("finetunes.delete", [finetune], {"delay_seconds": 600}, queue="deletions")

    # Messages of one queue may overtake each other: first it has to be accepted.
    until(lambda: janitor_here(env, "show", waiting.id).returncode == 0, seconds=60, what="the record")
    cancel = app.send_task("finetunes.cancel", [waiting.id], queue="deletions")
    assert cancel.get(timeout=60) == "cancelled"
    with pytest.raises(Exception, match="cancelled"):
        waiting.get(timeout=60)
    assert api.deletes(finetune) == []


def test_link_is_called_with_the_record(app, notes, finetune):
    delete(app, finetune).apply_async(link=note(app, finetune))
    (given,) = noted(notes, finetune)
    assert "'state': 'deleted'" in given


def test_link_is_called_when_the_deletion_ends_later(app, notes, finetune):
    delete(app, finetune, delay_seconds=3).apply_async(link=note(app, finetune))
    assert len(noted(notes, finetune)) == 1


def test_link_error_is_called_and_link_is_not(app, notes, finetune):
    gone = f"{finetune}-gone"
    delete(app, gone).apply_async(link=note(app, f"{gone} done"), link_error=note(app, f"{gone} failed"))
    noted(notes, f"{gone} failed")
    assert not [tag for tag, _ in notes() if tag == f"{gone} done"]


def test_a_chain_goes_on_after_the_deletion_and_stops_where_it_failed(app, notes, finetune):
    result = chain(delete(app, finetune), note(app, finetune), app=app).apply_async()
    assert result.get(timeout=60) == "noted"
    stopped: Any = chain(delete(app, f"{finetune}-gone"), note(app, f"{finetune}-gone"), app=app).apply_async()
    with pytest.raises(Exception, match="not_found"):
        stopped.parent.get(timeout=60)
    assert f"{finetune}-gone" not in [tag for tag, _ in notes()]


def test_a_chord_runs_its_body_when_all_have_ended(app, api, notes, finetune):
    api.create(f"{finetune}-2")
    header = group([delete(app, finetune), delete(app, f"{finetune}-2", delay_seconds=2)])
    body = app.signature("theirs.states", queue="theirs")
    assert chord(header, app=app)(body).get(timeout=30) == ["deleted", "deleted"]
