"""Workers living and dying: pools, standard Celery tools, Redis going away, a stop, secrets kept."""

import signal
import subprocess
import sys
import threading

import pytest
import redis

from tasks.ledger.keys import keys
from tests.processes import (
    KEY,
    ROOT,
    environment,
    janitor,
    janitor_here,
    producer,
    records,
    started,
    until,
    worker,
)
from worker.local import embedded
from worker.local.supervise import Spec
from worker.redis_url import connect
from worker.sandbox.api import Sandbox


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.01) as sandbox:
        sandbox.create("my-finetune")
        yield sandbox


@pytest.fixture
def system(api, tmp_path):
    """A Redis and the environment of a worker on it."""
    with embedded.running(tmp_path / "redis") as url:
        yield environment(url, api.url, JANITOR_STATE_DIR=tmp_path / "state")


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_other_pools_are_refused_with_one_line(system, pool):
    argv = [sys.executable, "-m", "celery", "-A", "worker", "worker", "-P", pool]
    env = system | {"PYTHONWARNINGS": "ignore"}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "threads" in done.stderr


def test_more_processes_are_more_workers(system, api, tmp_path):
    names = [f"ft-{n}" for n in range(60)]
    for name in names:
        api.create(name)
    with worker(system, tmp_path / "one.log"), worker(system, tmp_path / "two.log"):
        done = janitor_here(system, "delete", *names, "--wait", "--json")
    assert {record["state"] for record in records(done)} == {"deleted"}
    assert sorted(call["finetune_id"] for call in api.deletes()) == sorted(names)
    assert max(call["at_once"] for call in api.journal()) <= 8
    assert all("deletion.finished" in (tmp_path / name).read_text() for name in ("one.log", "two.log"))


WRONG_LEDGERS = [("janitor:accounts", "0.1"), ("janitor:2:schema", "schema 999")]


@pytest.mark.parametrize(("key", "words"), WRONG_LEDGERS)
@pytest.mark.parametrize(
    "command",
    [["worker"], ["beat"], ["list"], ["delete", "x"], ["cancel", "x"], ["pause"], ["touch", "x"],
     ["cleanup", "list"], ["dead-letters", "list"]],
    ids=" ".join,
)  # fmt: skip
def test_a_ledger_of_another_version_ends_every_command_with_one_line(system, command, key, words):
    # Given a Redis with a ledger of 0.1, or of a version to come
    with redis.Redis.from_url(system["REDIS_URL"]) as store:
        store.flushall()
        _ = store.sadd(key, "default") if key.endswith("accounts") else store.set(key, 999)
    # When any command meets it
    run = janitor if command[0] in ("worker", "beat") else janitor_here
    done = run(system | {"PYTHONWARNINGS": "ignore"}, *command)
    # Then it ends with one line, and changes nothing. (Celery's beat logs that it starts before.)
    told = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert (done.returncode, len(told)) == (2, 1), done.stderr
    assert words in told[0]
    with redis.Redis.from_url(system["REDIS_URL"]) as store:
        assert store.keys() == [key.encode()]


def test_standard_celery_tools_work(system, tmp_path):
    def celery(*arguments):
        return [sys.executable, "-m", "celery", "-A", "worker", *arguments]

    with worker(system, tmp_path / "log"):
        seen = subprocess.run(
            celery("inspect", "active"), env=system, capture_output=True, text=True, timeout=30, check=False
        )
        assert (seen.returncode, "1 node online" in seen.stdout) == (0, True)
        log = tmp_path / "beat.log"
        # Celery's beat, stopped while it sends, closes its schedule under its own feet: wait for its first tick.
        client = connect(system["REDIS_URL"], patient=False)
        client.delete(keys.tick)
        beat = Spec("beat", celery("beat"), system, lambda: bool(client.exists(keys.tick)), log=log)
        with started(beat):
            pass
        assert beat.log
        assert b"Traceback" not in beat.log.read_bytes()


def test_a_worker_rides_out_the_absence_of_redis(api, tmp_path):
    state_dir = tmp_path / "redis"
    with embedded.lock(state_dir):
        spec = embedded.spec(state_dir)
        env = environment(embedded.url(state_dir), api.url, JANITOR_STATE_DIR=tmp_path / "state")
        with started(spec) as first, worker(env, tmp_path / "log") as child:
            first.stop()
            away = janitor_here(env, "list")
            assert (away.returncode, len(away.stderr.splitlines())) == (3, 1)
            threading.Event().wait(2)
            assert child.process.poll() is None
            with started(embedded.spec(state_dir)):
                done = janitor_here(env, "delete", "my-finetune", "--wait", "--timeout", "40", "--json")
                assert (done.returncode, records(done)[0]["state"]) == (0, "deleted")
                child.stop()
    assert len(api.deletes()) == 1


def test_a_worker_that_is_told_to_stop_hands_back_what_it_holds(system, api, tmp_path):
    # Given an answer that takes long, and more work than one worker can start.
    api.fault("slow", finetune_id="my-finetune", seconds=3)
    ids = [f"ft-{n}" for n in range(20)]
    for id_ in ids:
        api.create(id_)
        api.fault("status", finetune_id=id_, status=429, headers={"Retry-After": "1"}, times=1)
    with worker(system, tmp_path / "first") as first:
        asked = janitor_here(system, "delete", "my-finetune", *ids, "--json")
        # Whose turn it is between the pauses is not told: each round of calls may be stopped by another one's 429.
        until(lambda: api.deletes("my-finetune"), seconds=40, what="the slow call")
        first.process.send_signal(signal.SIGTERM)
        assert first.process.wait(25) == 0
    (slow, *_) = records(asked)
    assert records(janitor_here(system, "show", slow["id"], "--json"))[0]["state"] == "deleted"
    listed = records(janitor_here(system, "list", "--json"))
    assert {record["state"] for record in listed} <= {"deleted", "queued", "scheduled"}
    with worker(system, tmp_path / "second"):
        done = janitor_here(system, "wait", *(record["id"] for record in listed), "--timeout", "50", "--json")
    assert [record["state"] for record in records(done)] == ["deleted"] * 21
    effective = [call["finetune_id"] for call in api.deletes() if call["effective"]]
    assert sorted(effective) == sorted(["my-finetune", *ids])


def test_the_key_is_nowhere(api, tmp_path):
    state_dir = tmp_path / "redis"
    with embedded.running(state_dir) as url:
        env = environment(url, api.url, JANITOR_STATE_DIR=tmp_path / "state", JANITOR_LOG_LEVEL="DEBUG")
        env |= {"BFL_API_KEY_LOCKED": "another-k3y", "BFL_API_URL_LOCKED": api.url}
        faults = ("reset", "hang", "huge", "not_json", "wrong_id")  # the last one pauses the account
        with worker(env, tmp_path / "log", "-l", "DEBUG"):
            for kind in faults:
                api.create(f"ft-{kind}")
                api.fault(kind, finetune_id=f"ft-{kind}", applies=False)
            janitor_here(
                env, "delete", "my-finetune", *(f"ft-{kind}" for kind in faults[:-1]), "--wait", "--timeout", "6"
            )
            janitor_here(env, "delete", "ft-wrong_id", "--wait", "--timeout", "6")
            janitor_here(env, "delete", "ft-locked", "--account", "locked", "--wait", "--timeout", "2")
            app = producer(url)
            with pytest.raises(Exception, match="account"):
                app.send_task("finetunes.delete", ["x"], {"account": "?"}, queue="deletions").get(timeout=60)
            told = [
                janitor_here(env, *arguments)
                for arguments in (["list", "--json"], ["doctor"], ["doctor", "--settings"])
            ]
            assert {call["fault"] for call in api.deletes()} >= set(faults)
    kept = [*state_dir.rglob("*"), *(tmp_path / "state").rglob("*"), tmp_path / "log"]
    texts = [path.read_bytes() for path in kept if path.is_file()]
    texts += [(done.stdout + done.stderr).encode() for done in told]
    assert any(b"ft-reset" in text for text in texts)
    assert not [text for text in texts if KEY.encode() in text or b"another-k3y" in text]
