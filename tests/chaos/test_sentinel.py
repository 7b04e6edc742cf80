"""Redis behind Sentinel: the master changes under load, and everything still ends in a record."""

import re
from collections import Counter
from contextlib import ExitStack
from types import SimpleNamespace

import pytest
import redis
import trustme
from celery import Celery

from tests.chaos.harness import TIMES
from tests.processes import ROOT, environment, free_ports, janitor_here, records, until, worker
from worker.local import embedded
from worker.local.supervise import NotReady, Spec, started
from worker.redis_url import backend_tls, celery_url

DOCUMENT = (ROOT / "docs/how-to/operations.md").read_text(encoding="utf-8")
PASSWORD = "5ecret"
SENTINEL = """bind 127.0.0.1
dir {folder}
sentinel monitor janitor 127.0.0.1 {master} 1
sentinel auth-pass janitor {password}
sentinel down-after-milliseconds janitor 1000
sentinel failover-timeout janitor 5000
"""


def certificate(folder):
    """How a server is told to use TLS alone, with a certificate of the address that the sentinel hands out."""
    authority, ca, key = trustme.CA(), folder / "ca.crt", folder / "redis.pem"
    authority.cert_pem.write_to_path(ca)
    authority.issue_cert("127.0.0.1", "localhost").private_key_and_cert_chain_pem.write_to_path(key)
    return {
        "port": 0, "tls-replication": "yes", "tls-auth-clients": "no",
        "tls-cert-file": key, "tls-key-file": key, "tls-ca-cert-file": ca,
    }  # fmt: skip


def client(port, tls, **options):
    tls = {"ssl": True, "ssl_ca_certs": tls["tls-ca-cert-file"]} if tls else {}
    return redis.Redis(port=port, decode_responses=True, **options, **tls)


def answers(port, tls, password=None):
    def ready():
        with client(port, tls, password=password, socket_timeout=1) as asked:
            try:
                return bool(asked.ping())
            except redis.RedisError:
                return False

    return ready


def server(folder, port, tls, *more):
    """A Redis as docs/how-to/operations.md describes it for a failover that loses nothing."""
    folder.mkdir()
    options = {
        "tls-port" if tls else "port": port, **tls, "bind": "127.0.0.1", "dir": folder, "save": "",
        "appendonly": "yes", "appendfsync": "always", "requirepass": PASSWORD, "masterauth": PASSWORD,
        "min-replicas-to-write": 1, "repl-diskless-sync-delay": 0, "maxmemory-policy": "noeviction",
    }  # fmt: skip
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    argv = [str(embedded.find_server()), *argv, *more]
    return Spec(folder.name, argv, ready=answers(port, tls, PASSWORD), log=folder / "log")


@pytest.fixture
def setup(request, tmp_path):
    """A master with two replicas, and a sentinel; `url` names it and one that is gone. param: the scheme."""
    tls = certificate(tmp_path) if request.param == "sentinels" else {}
    gone, sentinel, master, *replicas = free_ports(5)
    config = tmp_path / "sentinel.conf"
    lines = [f"{name} {value}\n" for name, value in {"tls-port" if tls else "port": sentinel, **tls}.items()]
    config.write_text("".join(lines) + SENTINEL.format(master=master, folder=tmp_path, password=PASSWORD))
    with ExitStack() as stack:
        try:
            first = stack.enter_context(started(server(tmp_path / "master", master, tls)))
        except NotReady as error:
            # The words of Valkey, and of Redis, which does not know the option then.
            if re.search(r"TLS support|>>> 'tls-", str(error)):
                pytest.skip(f"{embedded.find_server()} is built without TLS")
            raise
        for port in replicas:
            follow = ("--replicaof", "127.0.0.1", str(master))
            stack.enter_context(started(server(tmp_path / f"replica-{port}", port, tls, *follow)))
        old = stack.enter_context(client(master, tls, password=PASSWORD))
        until(lambda: old.info("replication").get("min_slaves_good_slaves") == 2, seconds=60, what="replication")
        argv = [str(embedded.find_server()), str(config), "--sentinel"]
        ready = answers(sentinel, tls)
        stack.enter_context(started(Spec("sentinel", argv, ready=ready, log=tmp_path / "sentinel.log")))
        asked = stack.enter_context(client(sentinel, tls))
        until(lambda: len(asked.sentinel_slaves("janitor")) == 2, seconds=60, what="finding the replicas")
        url = f"{request.param}://:{PASSWORD}@127.0.0.1:{gone},127.0.0.1:{sentinel}/0?service=janitor"
        url += f"&ssl_ca_certs={tls['tls-ca-cert-file']}" if tls else ""
        yield SimpleNamespace(url=url, sentinel=asked, old=old, process=first.process, master=master)


def killed(setup):
    setup.process.kill()


def asked_for(setup):
    """As docs/how-to/operations.md says: nobody tells the old master for 10 s; what it takes then is lost."""
    setup.old.client_pause(15_000, all=False)
    assert setup.sentinel.execute_command("SENTINEL", "FAILOVER", "janitor")


@pytest.mark.parametrize(
    ("setup", "lose_the_master", "count"),
    [
        ("sentinel", killed, 200),
        pytest.param("sentinels", killed, 100, marks=pytest.mark.long),
        pytest.param("sentinel", asked_for, 400, marks=pytest.mark.long),
    ],
    indirect=["setup"],
)
def test_a_failover_loses_nothing_that_was_accepted(setup, api, tmp_path, lose_the_master, count):
    # Given a system behind Sentinel at work
    env = environment(setup.url, api.url, JANITOR_STATE_DIR=tmp_path / "state", **TIMES)
    names = [f"ft-{n}" for n in range(count)]
    for name in (*names, "by-name", "afterwards"):
        api.create(name)
    # and a producer, set as documented,
    broker = re.sub(r"\?[^;]+", "", celery_url(setup.url))
    app = Celery("somebody-else", broker=broker, backend=broker, set_as_current=False)
    (documented,) = re.findall(r"```python\n([^`]*sentinel_kwargs[^`]*)```", DOCUMENT)
    exec(re.sub("(?m)^tls = .*", f"tls = {backend_tls(setup.url)}", documented), {"app": app})
    with worker(env, tmp_path / "worker.log"):
        record = app.send_task("finetunes.delete", ["by-name"], queue="deletions").get(timeout=60)
        assert record["state"] == "deleted"
        asked = records(janitor_here(env, "delete", *names, "--json"))
        assert setup.old.wait(2, 5000) == 2
        until(lambda: len(api.deletes()) > 10, seconds=60, what="the first deletes")
        # When a replica becomes the master
        lose_the_master(setup)
        changed = lambda: setup.sentinel.sentinel_master("janitor")["port"] != setup.master  # noqa: E731
        until(changed, seconds=20, what="the failover")
        assert len(api.finetunes()) > 10, "the failover came too late to show anything"
        # Then everything ends, and what comes afterwards is accepted and carried out.
        done = janitor_here(env, "wait", *(record["id"] for record in asked), "--timeout", "60", "--json")
        after = app.send_task("finetunes.delete", ["afterwards"], queue="deletions").get(timeout=30)
        doctor = janitor_here(env, "doctor")
    assert (doctor.returncode, "min-replicas-to-write is 1" in doctor.stdout) == (0, True), doctor.stdout
    assert (after["state"], len(records(done))) == ("deleted", len(names))
    # What was finished in the last milliseconds may be forgotten: it is observed, found gone, and left alone.
    states = Counter(record["state"] for record in records(done))
    assert set(states) <= {"deleted", "not_found"}
    assert states["not_found"] <= 8
    effective = [call["finetune_id"] for call in api.deletes() if call["effective"]]
    assert sorted(effective) == sorted([*names, "by-name", "afterwards"])
