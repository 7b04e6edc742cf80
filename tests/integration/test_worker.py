"""A worker process: what it refuses to start with, a Redis without room, and how it stops."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import pytest
from celery import Celery

from tasks.ledger import Ledger
from tasks.ledger.keys import keys
from tasks.ledger.queries import workers_seen
from tests import holding
from tests.processes import KEY, ROOT, environment, janitor, janitor_here, producer, records, until, worker
from worker.app import configuration
from worker.local.embedded import running
from worker.redis_url import connect
from worker.sandbox.api import Sandbox
from worker.settings import Settings

MIB = 1 << 20


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    with running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def client(redis_url):
    with connect(redis_url) as client:
        client.flushall()
        client.config_set("appendonly", "no")  # nothing has to outlive the module
        yield client
        client.config_set("maxmemory", 0)


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.01) as sandbox:
        yield sandbox


def env_of(redis_url, api, **more):
    return environment(redis_url, api.url, **more)


def celery(env, *arguments):
    """Run Celery's command to its end."""
    argv = [sys.executable, "-m", "celery", "-A", "worker", *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=30, check=False, cwd=ROOT)


def test_a_setting_says_something_new_and_the_defaults_that_matter_are_what_they_were():
    defaults = Celery(set_as_current=False).conf
    repeated = {
        name: value
        for name, value in configuration(Settings(), "redis://localhost").items()
        if defaults.get(name) == value
    }
    assert repeated == {}
    # See the docstring of `configuration`.
    assert list(defaults.accept_content) == ["json"]
    assert defaults.task_create_missing_queues
    assert defaults.task_acks_on_failure_or_timeout
    assert (defaults.task_acks_on_failure, defaults.task_acks_on_timeout) == (None, None)
    assert not defaults.worker_cancel_long_running_tasks_on_connection_loss
    assert not defaults.redis_retry_on_timeout
    assert (defaults.broker_connection_retry, defaults.broker_connection_retry_on_startup) == (True, None)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["-P", "prefork"], "only the threads pool is supported"),
        (["--pool=prefork"], "only the threads pool is supported"),
        (["-P", "solo"], "only the threads pool is supported"),
        (["-P", "threads", "-c", "11"], "--concurrency 11 is too low for JANITOR_THREADS=8"),
    ],
)
def test_a_worker_that_could_not_work_as_designed_is_refused_in_one_line(client, redis_url, api, options, line):
    done = celery(env_of(redis_url, api), "worker", *options)
    errors = [one for one in done.stderr.splitlines() if one.startswith("Error: ")]
    assert (done.returncode, len(errors)) == (2, 1)
    assert line in errors[0]


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (("worker", "-l", "DEBUG"), "--loglevel is not supported: set JANITOR_LOG_LEVEL"),
        (("worker", "--logfile=it.log"), "--logfile is not supported: the log goes to stderr"),
        (("beat", "--detach"), "--detach is not supported: it stays in the foreground"),
    ],
)
def test_an_option_of_celery_that_would_not_do_what_it_says_is_refused(client, redis_url, api, arguments, advice):
    done = janitor(env_of(redis_url, api), *arguments)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert advice in done.stderr


@pytest.mark.parametrize("missing", ["check_server", "SlotWatch"], ids=["checked first", "made when ready"])
def test_a_worker_does_not_start_without_what_cannot_be_checked_or_made(client, redis_url, api, missing):
    # Given a worker in which something is broken that nobody foresaw
    broken = f"import worker.lifecycle; worker.lifecycle.{missing} = None"
    argv = [sys.executable, "-c", f"{broken}; from worker.cli import main; main(['worker'])"]
    # When it starts, then it ends, and the log says why.
    env = env_of(redis_url, api)
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=20, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "start.failed" in done.stderr
    assert "TypeError" in done.stderr


@pytest.mark.parametrize("command", [("worker", "-P", "threads"), ("beat",)])
@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (keys.schema, "99", "the ledger has schema 99"),
        ("janitor:accounts", "x", "a ledger of finetune-janitor 0.1"),
    ],
)
def test_no_process_works_on_a_ledger_of_another_version(client, redis_url, api, command, key, value, line):
    client.set(key, value)
    done = celery(env_of(redis_url, api), *command)
    assert done.returncode == 2
    assert line in done.stderr


def after_rounds(client, count):
    """Wait for this many rounds of the worker's maintenance, one a second: a bound for what must not happen."""
    for _ in range(count):
        before = client.get(keys.maintained)
        until(lambda before=before: client.get(keys.maintained) != before, what="a round", seconds=60)


@contextmanager
def little_room(client):
    """Redis with less memory free than is kept for what was accepted before: 8 MiB of more than 200."""
    for n in range(200):
        client.set(f"ballast-{n}", "x" * MIB)
    used = client.info("memory")["used_memory"]
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", used + 8 * MIB)
    try:
        yield
    finally:
        client.config_set("maxmemory", 0)


def waiting(client, queue="deletions"):
    return client.llen(queue)


def test_a_worker_takes_no_request_while_redis_has_no_room_and_goes_on_afterwards(
    client, redis_url, api, tmp_path
):
    app, env = producer(redis_url), env_of(redis_url, api)
    ids = [f"ft-{n}" for n in range(30)]
    for id_ in ids:
        api.create(id_)

    def ask(some):
        return [app.send_task("finetunes.delete", args=[one], queue="deletions") for one in some]

    # Given requests in a Redis that has no room before the worker starts,
    with little_room(client):
        results = ask(ids[:10])
        with worker(env, tmp_path / "first.log"):
            after_rounds(client, 3)  # it had time to take them
            assert (waiting(client), client.hlen("unacked")) == (10, 0)
            # when there is room again, then they are taken.
            client.config_set("maxmemory", 0)
            until(lambda: waiting(client) == 0, what="the requests are taken", seconds=60)
            assert [one.get(timeout=60)["state"] for one in results] == ["deleted"] * 10
            # And when Redis fills up while the worker runs, then it stops taking them.
            with little_room(client):
                log = tmp_path / "first.log"
                until(lambda: log.read_bytes().count(b"redis.full") == 2, what="the warning", seconds=60)
                after_rounds(client, 2)  # a BRPOP that was under way before is over
                results = ask(ids[10:])
                after_rounds(client, 2)
                assert (waiting(client), client.hlen("unacked")) == (20, 0)
            assert [one.get(timeout=30)["state"] for one in results] == ["deleted"] * 20
    assert len(api.deletes()) == 30


def test_a_queue_that_this_worker_was_not_to_take_stays_so(client, redis_url, api, tmp_path):
    log = tmp_path / "wakeups.log"
    with little_room(client), worker(env_of(redis_url, api), log, "-Q", "wakeups"):
        producer(redis_url).send_task("finetunes.delete", args=["ft"], queue="deletions")
        until(lambda: b"redis.full" in log.read_bytes(), what="the warning", seconds=60)
        client.config_set("maxmemory", 0)
        until(lambda: b"redis.has_room" in log.read_bytes(), what="room again", seconds=60)
        after_rounds(client, 2)
        assert waiting(client) == 1


def test_a_stop_ends_within_the_call_deadline_and_five_seconds(client, redis_url, api, tmp_path):
    # Given calls that hang, and more work behind them,
    limits = {"JANITOR_READ_TIMEOUT": "2s", "JANITOR_CALL_DEADLINE": "3s", "JANITOR_CONNECT_TIMEOUT": "1s"}
    app = producer(redis_url)
    for n in range(30):
        api.create(f"ft-{n}")
    api.fault("hang", call="finetune_details", times=None)
    with worker(env_of(redis_url, api, **limits), tmp_path / "worker.log") as child:
        for n in range(30):
            app.send_task("finetunes.delete", args=[f"ft-{n}"], queue="deletions")
        until(lambda: len(api.journal()) >= 8, what="all threads call", seconds=60)
        began = time.monotonic()
        os.kill(child.process.pid, signal.SIGTERM)
        child.process.wait(timeout=20)
        assert (child.process.returncode, time.monotonic() - began < 8) == (0, True)
    # then nothing is lost: all that was sent is in the ledger or still in its queue.
    ledger = keys
    kept = sum(1 for _ in client.scan_iter(ledger.deletion("*")))
    assert kept + waiting(client) + client.hlen("unacked") >= 30
    assert client.zcard(ledger.leases("default", "single")) == 0


def test_a_second_ctrl_c_lets_calls_end_too(client, redis_url, api, tmp_path):
    # Given a worker whose call takes a while
    api.create("my-finetune")
    api.fault("slow", call="delete_finetune", seconds=1.5)
    log = tmp_path / "worker.log"
    with worker(env_of(redis_url, api), log) as child:
        asked = producer(redis_url).send_task("finetunes.delete", args=["my-finetune"], queue="deletions")
        until(api.deletes, what="the call", seconds=60)
        # When it is told to stop twice,
        for word in ("Warm shutdown", "terminate all running tasks"):
            os.kill(child.process.pid, signal.SIGINT)
            until(lambda word=word: word in log.read_text(), what=word, seconds=10)
        child.process.wait(timeout=20)
    # then the call has ended, its record says how, and no error is in the log.
    (record,) = records(janitor_here(env_of(redis_url, api), "list", "--json"))
    assert (record["state"], len(api.deletes()), asked.state) == ("deleted", 1, "SUCCESS")
    assert "Traceback" not in log.read_text()


def test_slots_that_do_not_come_back_are_logged_and_named_by_doctor(client, redis_url, api, tmp_path):
    # Given a worker whose tasks may take two seconds,
    limits = {"JANITOR_CONNECT_TIMEOUT": "0.05s", "JANITOR_CALL_DEADLINE": "0.1s", "JANITOR_RETRY_BUDGET": "0s"}
    env, log = env_of(redis_url, api, **limits), tmp_path / "worker.log"
    client.config_set("appendonly", "yes")  # doctor asks for it

    def entries():
        return " ".join(workers_seen(Ledger(client)))

    def doctor():
        done = janitor_here(env_of(redis_url, api), "doctor")  # which has time to reach the API
        return done.returncode, [line for line in done.stdout.splitlines() if " workers " in line]

    with holding.worker(env, log):
        assert doctor()[0] == 0
        # when two of its tasks hang,
        asked = holding.hold(producer(redis_url), "it", count=2)
        until(lambda: " stuck=2 " in entries(), what="the two slots are noticed", seconds=60)
        # then each is in the log once, and doctor says so,
        code, (line,) = doctor()
        assert (code, line.startswith("error"), ": 2); see slot.stuck" in line) == (1, True, True)
        after_rounds(client, 2)
        assert log.read_text().count("slot.stuck") == 2
        # until they come back.
        holding.let_go(client, "it")
        for one in asked:
            one.get(timeout=60, propagate=False)
        after_rounds(client, 2)
        assert doctor()[0] == 0
