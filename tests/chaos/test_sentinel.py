"""Redis behind Sentinel: the master changes under load, and everything still ends in a record."""

from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import redis
from celery import Celery

from tests.chaos.harness import TIMES
from tests.processes import environment, free_ports, janitor, records, until, worker
from worker.local import embedded
from worker.local.supervise import Spec, started
from worker.redis_url import celery_options, celery_url

PASSWORD = "5ecret"
SENTINEL = """port {sentinel}
bind 127.0.0.1
dir {folder}
sentinel monitor janitor 127.0.0.1 {master} 1
sentinel auth-pass janitor {password}
sentinel down-after-milliseconds janitor 1000
sentinel failover-timeout janitor 5000
"""


def answers(port, password=None):
    def ready():
        with redis.Redis(port=port, password=password, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False

    return ready


def server(folder, port, *more):
    """A Redis as docs/how-to/operations.md describes it for a failover that loses nothing."""
    folder.mkdir()
    options = {
        "port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes", "appendfsync": "always",
        "requirepass": PASSWORD, "masterauth": PASSWORD, "min-replicas-to-write": 1, "repl-diskless-sync-delay": 0,
        "maxmemory-policy": "noeviction",
    }  # fmt: skip
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    argv = [str(embedded.find_server()), *argv, *more]
    return Spec(folder.name, argv, ready=answers(port, PASSWORD), log=folder / "log")


@pytest.fixture
def setup(tmp_path):
    """A master with two replicas, and a sentinel; `url` names the sentinel alone."""
    sentinel, master, *replicas = free_ports(4)
    config = tmp_path / "sentinel.conf"
    config.write_text(SENTINEL.format(sentinel=sentinel, master=master, folder=tmp_path, password=PASSWORD))
    with ExitStack() as stack:
        first = stack.enter_context(started(server(tmp_path / "master", master)))
        for port in replicas:
            follow = ("--replicaof", "127.0.0.1", str(master))
            stack.enter_context(started(server(tmp_path / f"replica-{port}", port, *follow)))
        old = stack.enter_context(redis.Redis(port=master, password=PASSWORD, decode_responses=True))
        until(lambda: old.info("replication").get("min_slaves_good_slaves") == 2, seconds=60, what="replication")
        argv = [str(embedded.find_server()), str(config), "--sentinel"]
        stack.enter_context(
            started(Spec("sentinel", argv, ready=answers(sentinel), log=tmp_path / "sentinel.log"))
        )
        asked = stack.enter_context(redis.Redis(port=sentinel, decode_responses=True))
        until(lambda: len(asked.sentinel_slaves("janitor")) == 2, seconds=60, what="finding the replicas")
        url = f"sentinel://:{PASSWORD}@127.0.0.1:{sentinel}/0?service=janitor"
        yield SimpleNamespace(url=url, sentinel=asked, old=old, process=first.process, master=master)


def killed(setup):
    setup.process.kill()


def asked_for(setup):
    """As docs/how-to/operations.md says: nobody tells the old master for 10 s; what it takes then is lost."""
    setup.old.client_pause(15_000, all=False)
    assert setup.sentinel.execute_command("SENTINEL", "FAILOVER", "janitor")


@pytest.mark.parametrize(
    ("lose_the_master", "count"), [(killed, 300), pytest.param(asked_for, 400, marks=pytest.mark.long)]
)
def test_a_failover_loses_nothing_that_was_accepted(setup, api, tmp_path, lose_the_master, count):
    # Given a system behind Sentinel at work
    env = environment(setup.url, api.url, JANITOR_STATE_DIR=tmp_path / "state", **TIMES)
    names = [f"ft-{n}" for n in range(count)]
    for name in (*names, "by-name", "afterwards"):
        api.create(name)
    broker, options = celery_url(setup.url), celery_options(setup.url)
    app = Celery("somebody-else", broker=broker, backend=broker, set_as_current=False)
    app.conf.update(broker_transport_options=options, result_backend_transport_options=options)
    with worker(env, tmp_path / "worker.log"):
        record = app.send_task("finetunes.delete", ["by-name"], queue="deletions").get(timeout=60)
        assert record["state"] == "deleted"
        asked = records(janitor(env, "delete", *names, "--json"))
        assert setup.old.wait(2, 5000) == 2
        until(lambda: len(api.deletes()) > 10, seconds=60, what="the first deletes")
        # When a replica becomes the master
        lose_the_master(setup)
        changed = lambda: setup.sentinel.sentinel_master("janitor")["port"] != setup.master  # noqa: E731
        until(changed, seconds=20, what="the failover")
        assert len(api.finetunes()) > 10, "the failover came too late to show anything"
        # Then everything ends, and what comes afterwards is accepted and carried out.
        done = janitor(env, "wait", *(record["id"] for record in asked), "--timeout", "60", "--json", timeout=90)
        after = app.send_task("finetunes.delete", ["afterwards"], queue="deletions").get(timeout=30)
        doctor = janitor(env, "doctor")
    assert (doctor.returncode, "min-replicas-to-write is 1" in doctor.stdout) == (0, True), doctor.stdout
    assert (after["state"], len(records(done))) == ("deleted", len(names))
    # What was finished in the last milliseconds may be forgotten: it is observed, found gone, and left alone.
    states = Counter(record["state"] for record in records(done))
    assert set(states) <= {"deleted", "not_found"}
    assert states["not_found"] <= 8
    effective = [call["finetune_id"] for call in api.deletes() if call["effective"]]
    assert sorted(effective) == sorted([*names, "by-name", "afterwards"])
