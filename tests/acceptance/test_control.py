"""For the person on call: the switch that stops all deleting, stopped accounts, dead letters."""

import base64
import json
import pickle
import threading
import uuid
from datetime import UTC, datetime, timedelta

import pytest
import redis

from tasks.durations import iso
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import keep
from tasks.ledger.keys import keys
from tasks.ledger.queries import stopped_accounts
from tests.processes import KEY, environment, janitor, janitor_here, producer, records, until, worker
from worker.local import embedded
from worker.redis_url import connect
from worker.sandbox.api import Sandbox


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.05) as sandbox:
        yield sandbox


@pytest.fixture
def env(api, tmp_path):
    with embedded.running(tmp_path / "redis") as url:
        yield environment(url, api.url, JANITOR_STATE_DIR=tmp_path / "state")


def deletes_after(api, moment):
    return [call for call in api.deletes() if datetime.fromisoformat(call["at"]) > moment]


def test_a_pause_stops_all_deleting_within_2_seconds_and_resume_goes_on(env, api, tmp_path):
    with worker(env, tmp_path / "one"), worker(env, tmp_path / "two"):
        for name, option in (("all accounts", []), ("default", ["--account", "default"])):
            # Given two workers in the midst of many deletions
            names = [f"{name[:3]}-{n}" for n in range(150)]
            for finetune in names:
                api.create(finetune)
            before = len(api.deletes())
            janitor_here(env, "delete", *names, "--json")
            until(lambda before=before: len(api.deletes()) > before + 20, seconds=60, what="the first deletes")
            # When all is paused, or this account, then none is deleted two seconds later;
            paused = janitor_here(env, "pause", "--reason", "a complaint", *option)
            stopped_by = datetime.now(UTC) + timedelta(seconds=2)
            assert (paused.returncode, f"paused: {name}" in paused.stderr) == (0, True)
            threading.Event().wait(3)  # the time to delete nevertheless
            assert deletes_after(api, stopped_by) == []
            assert api.finetunes(), "the pause came too late to show anything"
            # what waits is not rewritten, requests are accepted, doctor says what is going on.
            doctor = janitor_here(env, "doctor")
            assert (doctor.returncode, "a complaint): ask " in doctor.stdout) == (0, True)
            api.create("late")
            (late,) = records(janitor_here(env, "delete", "late", "--json"))
            assert late["state"] == "queued"
            # When it is resumed, then it goes on.
            resumed = janitor_here(env, "resume", *option)
            assert (resumed.returncode, "still paused" in resumed.stderr) == (0, False)
            until(lambda: not api.finetunes(), seconds=40, what="the end of all deletions")
            done = janitor_here(env, "wait", late["id"], "--timeout", "20", "--json")
            assert records(done)[0]["state"] == "deleted"
    assert len(api.deletes()) == 302, "each finetune was deleted once"
    assert max(call["at_once"] for call in api.journal()) <= 8


def test_what_is_paused_by_name_stays_so_until_it_is_resumed_by_name(env, tmp_path):
    janitor_here(env, "pause", "--account", "default")
    janitor_here(env, "pause")
    whole = janitor_here(env, "resume")
    assert "still paused (by request): run `janitor resume --account default` to go on" in whole.stderr
    assert "still paused" not in janitor_here(env, "resume", "--account", "default").stderr
    assert janitor_here(env, "pause", "--account", "nobody").returncode == 2


def test_a_parked_account_goes_on_by_itself_once_its_key_works(env, api, tmp_path):
    # Given a key that the API does not accept yet.
    api.keys.clear()
    api.create("ft")
    with worker(env, tmp_path / "log"):
        (asked,) = records(janitor_here(env, "delete", "ft", "--json"))
        ledger = Ledger(connect(env["REDIS_URL"]))
        until(lambda: "default" in stopped_accounts(ledger), seconds=60, what="the park")
        doctor = janitor_here(env, "doctor")
        assert (doctor.returncode, "the API refuses its key" in doctor.stdout) == (1, True)
        calls = len(api.journal())
        api.keys.add(KEY)
        done = janitor_here(env, "wait", asked["id"], "--timeout", "45", "--json")
        (record,) = records(done)
    assert (record["state"], len(record["attempts"])) == ("deleted", 1)
    assert calls <= 6, "a parked account is asked rarely"
    assert "parked" not in janitor_here(env, "doctor").stdout


HEADERS = {"task": "finetunes.delete", "id": "broken", "lang": "py", "root_id": "broken", "parent_id": None}
PLACE = {"delivery_info": {"exchange": "deletions", "routing_key": "deletions"}, "delivery_mode": 2, "priority": 0}
GOOD = [["ft"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def message(body=GOOD, headers=HEADERS, *, kind="application/json", **more):
    raw = body if isinstance(body, bytes) else (body if isinstance(body, str) else json.dumps(body)).encode()
    properties = {**PLACE, "body_encoding": "base64", "delivery_tag": str(uuid.uuid4()), "correlation_id": "x"}
    envelope = {
        "body": base64.b64encode(raw).decode(), "content-type": kind, "content-encoding": "utf-8",
        "headers": headers, "properties": properties, **more,
    }  # fmt: skip
    return json.dumps(envelope)


CORPUS = {
    "an envelope that is not JSON": "not json",
    "an envelope that is not text": b"\xff\xfe\x00",
    "an envelope in another encoding": '{"a": 1}'.encode("utf-16"),
    "an envelope nested beyond measure": "[" * 100_000,
    "an empty list": "[]",
    "a number": "7",
    "null": "null",
    "an object with nothing in it": "{}",
    "no properties": message(properties={}),
    "a delivery tag that is a number": message(properties={**PLACE, "delivery_tag": 7}),
    "no place": message(properties={"delivery_tag": "7"}),
    "headers that are a list": message(headers=[]),
    "no headers": message(headers={}),
    "a body that is a number": json.dumps({**json.loads(message()), "body": 7}),
    "a body that is not JSON": message(b"{{"),
    "a body that is no triple": message([1, 2]),
    "a body with other things in it": message([7, 7, 7]),
    "a pickled body": message(pickle.dumps(GOOD), kind="application/x-python-serialize"),
    "a body that claims to be pickled": message(kind="application/x-python-serialize"),
    "a task that is not known": message(headers={**HEADERS, "task": "no.such.task"}),
    "a task without a name": message(headers={**HEADERS, "task": 7}),
    "a task without an id": message(headers={"task": "finetunes.delete"}),
    "a time that is none": message(headers={**HEADERS, "eta": "soon"}),
    "an end that is none": message(headers={**HEADERS, "expires": "soon"}),
    "time limits that are none": message(headers={**HEADERS, "timelimit": 7}),
}


def dead_letters(store, number):
    return store.llen("janitor:2:dead-letters") == number


def test_what_cannot_be_read_is_a_dead_letter_and_the_next_deletion_runs(env, api, tmp_path):
    store = redis.Redis.from_url(env["REDIS_URL"])
    app = producer(env["REDIS_URL"])
    api.create("ft")
    with worker(env, tmp_path / "log") as child:
        for raw in CORPUS.values():
            store.lpush("deletions", raw)
        until(lambda: dead_letters(store, len(CORPUS)), seconds=60, what="a dead letter of each")
        record = app.send_task("finetunes.delete", ["ft"], queue="deletions").get(timeout=60)
        assert record["state"] == "deleted"
        assert child.process.poll() is None
        # Broadcasts for remote control can be garbage too.
        for garbage in ("[]", "7", "{}", '{"properties": 7}', "{{"):
            store.publish("/0.celery.pidbox", garbage)
        assert app.control.inspect(timeout=30, limit=1).ping()
        assert child.process.poll() is None
    assert store.hlen("unacked") == 0, "a dead letter is not delivered again"
    assert "Connection to broker lost" not in (tmp_path / "log").read_text()


def test_a_dead_letter_is_sent_again_and_checked_again(env, api, tmp_path):
    # Given a good message that is a dead letter, as an older worker made it, and a bad one
    store, app = redis.Redis.from_url(env["REDIS_URL"], decode_responses=True), producer(env["REDIS_URL"])
    api.create("ft-1")
    result = app.send_task("finetunes.delete", ["ft-1"], queue="deletions")
    keep(store, "deletions", "not known here", store.rpop("deletions"))
    keep(store, "deletions", "not JSON", "x")
    keep(store, "elsewhere", "not ours", "x")
    elsewhere, bad, good = (one["id"] for one in records(janitor_here(env, "dead-letters", "list", "--json")))
    # When they are sent again
    refused = janitor_here(env, "dead-letters", "requeue", good, elsewhere)
    assert (refused.returncode, "'elsewhere' is not the janitor's" in refused.stderr) == (2, True)
    assert janitor_here(env, "dead-letters", "requeue", good, bad, "nothing").returncode == 1
    # Then a worker carries out the good one, and puts the bad one aside again.
    with worker(env, tmp_path / "log"):
        assert result.get(timeout=60)["state"] == "deleted"
        until(lambda: dead_letters(store, 2), seconds=60, what="the bad one is back")


def test_a_dead_letter_does_not_delete_the_finetune_that_has_the_name_today(env, api, tmp_path):
    # Given a request without a date that has been a dead letter for an hour; its name is used again
    store, app = redis.Redis.from_url(env["REDIS_URL"], decode_responses=True), producer(env["REDIS_URL"])
    now = datetime.now(UTC)
    api.create("ft-1", timestamp=(now - timedelta(minutes=1)).isoformat())
    result = app.send_task("finetunes.delete", ["ft-1"], queue="deletions")
    letter = {"id": "l1", "at": iso(now - timedelta(hours=1)), "queue": "deletions", "reason": "not known here"}
    store.lpush("janitor:2:dead-letters", json.dumps({**letter, "text": store.rpop("deletions")}))
    # When it is sent again
    assert janitor_here(env, "dead-letters", "requeue", "l1").returncode == 0
    # Then the new finetune is not what was meant.
    with worker(env, tmp_path / "log"):
        error = result.get(timeout=60, propagate=False)
    assert (error.args[0]["state"], api.deletes()) == ("superseded", [])


def test_dead_letters_are_counted_listed_shown_and_dropped(env, tmp_path):
    store = redis.Redis.from_url(env["REDIS_URL"])
    for text in ("first thing", "second thing"):
        store.lpush("deletions", text)
    with worker(env, tmp_path / "log"):
        until(lambda: dead_letters(store, 2), seconds=60, what="two dead letters")
    assert "`janitor dead-letters list`" in janitor_here(env, "doctor").stdout
    second, first = records(janitor_here(env, "dead-letters", "list", "--json"))
    assert (first["text"], second["text"], first["queue"]) == ("first thing", "second thing", "deletions")
    assert first["id"] in janitor_here(env, "dead-letters", "list").stdout
    assert "first thing" in janitor_here(env, "dead-letters", "show", first["id"]).stdout
    dropped = janitor_here(env, "dead-letters", "drop", first["id"], "nothing")
    assert (dropped.returncode, "nothing: no dead letter has this id" in dropped.stderr) == (1, True)
    assert [left["id"] for left in records(janitor_here(env, "dead-letters", "list", "--json"))] == [second["id"]]
    assert janitor_here(env, "dead-letters", "drop", "--all").returncode == 0
    assert janitor_here(env, "dead-letters", "list").stderr == "there are no dead letters\n"
    assert janitor_here(env, "dead-letters", "show", first["id"]).returncode == 1
    assert janitor_here(env, "dead-letters", "drop").returncode == 2


UNFIT = [
    ({"maxmemory-policy": "allkeys-lru"}, "maxmemory-policy is allkeys-lru"),
    ({"appendonly": "no"}, "the append-only file is off"),
]


@pytest.mark.parametrize(("config", "words"), UNFIT)
def test_a_redis_that_may_lose_records_is_warned_of_and_refused_if_strict(env, tmp_path, config, words):
    store = redis.Redis.from_url(env["REDIS_URL"])
    for name, value in config.items():
        store.config_set(name, value)
    with worker(env, tmp_path / "log"):
        assert words in (tmp_path / "log").read_text()
    strict = env | {"JANITOR_STRICT": "1", "PYTHONWARNINGS": "ignore"}
    refused = janitor(strict, "worker")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"Error: JANITOR_STRICT is set, and {words}")
    assert len(refused.stderr.splitlines()) == 1
    doctor = janitor_here(env, "doctor")
    assert (doctor.returncode, words in doctor.stdout) == (1, True)


def test_a_full_redis_refuses_what_is_new_and_loses_nothing(env, api, tmp_path):
    store = redis.Redis.from_url(env["REDIS_URL"])
    names = [f"ft-{n}" for n in range(20)]
    for name in names:
        api.create(name)
    with worker(env, tmp_path / "log"):
        asked = records(janitor_here(env, "delete", *names, "--in", "2s", "--json"))
        store.config_set("maxmemory", "1mb")
        refused = janitor_here(env, "delete", "one-more", "--json")
        assert (refused.returncode, refused.stdout) == (3, "")
        assert (len(refused.stderr.splitlines()), "give it more memory" in refused.stderr) == (1, True)
        # They become due meanwhile.
        until(lambda: not store.zcard(keys.wait("default")), seconds=60, what="the start of all")
        store.config_set("maxmemory", "0")
        done = janitor_here(env, "wait", *(record["id"] for record in asked), "--timeout", "60", "--json")
    assert {record["state"] for record in records(done)} == {"deleted"}
    assert sorted(call["finetune_id"] for call in api.deletes() if call["effective"]) == sorted(names)
    assert janitor_here(env, "list", "--finetune", "one-more", "--json").stdout == ""
