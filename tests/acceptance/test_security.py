"""The system runs through the users of deploy/redis/users.acl, and the TLS of secure-redis.md, on a real Redis."""

import os
import re
import selectors
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any
from urllib.request import urlopen

import pytest
import redis
import trustme
from celery import Celery
from redis.exceptions import AuthenticationError, NoPermissionError

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tests.processes import KEY, ROOT, environment, free_ports, janitor, records, skip_before_redis_7, worker
from worker.app import create_app
from worker.local import embedded
from worker.local.supervise import Spec, started
from worker.redis_url import celery_url, connect
from worker.sandbox.api import Sandbox
from worker.settings import Settings

DOCUMENT = (ROOT / "docs" / "how-to" / "secure-redis.md").read_text(encoding="utf-8")
ACL = (ROOT / "deploy" / "redis" / "users.acl").read_text(encoding="utf-8")
USERS = dict(re.findall(r"^user (\w+) (on .*)$", ACL, re.MULTILINE))


@pytest.fixture(scope="module")
def api():
    with Sandbox(keys={KEY}, latency_seconds=0) as sandbox:
        yield sandbox


class Urls(dict[str, str]):
    """The URL of each role; `refused` tells what Redis would not let them do."""

    def __init__(self, admin, urls):
        super().__init__(urls)
        self.admin = admin

    def refused(self):
        entries = self.admin.acl_log()
        self.admin.acl_log_reset()
        return [(entry["username"], entry["object"]) for entry in entries if entry["object"] != "client"]


@pytest.fixture(scope="module")
def urls(tmp_path_factory):
    """A Redis that knows these users and nobody else; the URL of each."""
    skip_before_redis_7()
    state = tmp_path_factory.mktemp("redis")
    with embedded.running(state) as url, redis.Redis.from_url(url, decode_responses=True) as admin:
        for name, rules in USERS.items():
            admin.execute_command("ACL", "SETUSER", name, "reset", *rules.split())
        assert "\nuser default off\n" in ACL
        admin.execute_command("ACL", "SETUSER", "default", "off")  # who is in stays in
        at = embedded.socket_path(state)
        yield Urls(admin, {name: f"unix://{name}:{name.upper()}_PASSWORD@{at}?db=0" for name in USERS})


@pytest.fixture(scope="module")
def env(urls, api, tmp_path_factory):
    return environment(urls["worker"], api.url, JANITOR_STATE_DIR=tmp_path_factory.mktemp("state"))


@pytest.fixture(scope="module")
def operator(env, urls):
    """A person: Redis, and no key."""
    return {name: value for name, value in env.items() if name != "BFL_API_KEY"} | {"REDIS_URL": urls["operator"]}


@pytest.fixture(scope="module")
def app(urls):
    url = celery_url(urls["producer"])
    return Celery("somebody-else", broker=url, backend=url, set_as_current=False)


@pytest.fixture(scope="module")
def running_worker(env, tmp_path_factory):
    with worker(env, tmp_path_factory.mktemp("log") / "log") as child:
        yield child


@pytest.mark.usefixtures("running_worker")
def test_everybody_can_do_their_work_within_these_lines(urls, env, api, app, operator):
    urls.refused()  # what other tests tried to do
    for name in ("by-name", "one", "two", "by-command", "late"):
        api.create(name)
    record = app.send_task("finetunes.delete", ["by-name"], queue="deletions").get(timeout=60)
    assert record["state"] == "deleted"
    ids = app.send_task("finetunes.delete_many", [["one", "two"]], queue="deletions").get(timeout=60)
    assert [app.AsyncResult(id_).get(timeout=60)["state"] for id_ in ids] == ["deleted"] * 2
    with pytest.raises(Exception, match="not_found"):
        app.send_task("finetunes.delete", ["never-there"], queue="deletions").get(timeout=60)
    done = janitor(operator, "delete", "by-command", "--wait", "--timeout", "20", "--json")
    assert (done.returncode, len(done.stderr.splitlines())) == (0, 1), done.stderr  # "accepted", and no warning
    (late,) = records(janitor(operator, "delete", "late", "--in", "1h", "--json"))
    assert app.send_task("finetunes.cancel", [late["id"]], queue="deletions").get(timeout=60) == "cancelled"
    listed = {one["finetune_id"] for one in records(janitor(operator, "list", "--json"))}
    assert {"by-name", "one", "two", "never-there", "by-command", "late"} <= listed
    for command in (["pause"], ["resume"], ["dead-letters", "list"], ["show", late["id"]], ["doctor"]):
        told = janitor(operator, *command)
        assert told.returncode == 0, (command, told.stdout, told.stderr)
    # What runs as http does is the ledger and a wake-up, as the command; what beat does is to send a message.
    assert janitor(operator | {"REDIS_URL": urls["http"]}, "delete", "late").returncode == 0
    create_app(Settings(), urls["beat"]).send_task("finetunes.tick", queue="wakeups", ignore_result=True)
    assert urls.refused() == []


def denied(client, *command):
    with pytest.raises(NoPermissionError):
        client.execute_command(*command)
    return True


FORBIDDEN: dict[str, list[tuple[Any, ...]]] = {
    "producer": [
        ("HGETALL", "janitor:2:d:some-id"), ("HSET", "janitor:2:paused", "*", "x"), ("DEL", "janitor:2:d:some-id"),
        ("GET", "janitor:2:schema"), ("SMEMBERS", "janitor:2:accounts"), ("LPUSH", "janitor:2:dead-letters", "x"),
        ("RPOP", "deletions"), ("LRANGE", "deletions", 0, -1), ("LPUSH", "wakeups", "x"), ("KEYS", "*"),
        ("SCAN", 0), ("SET", "celery-task-meta-some-id", "x"), ("DEL", "celery-task-meta-some-id"),
        ("EVAL", "return 1", 0), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "appendonly", "no"), ("FLUSHALL",),
        ("PUBLISH", "celery-task-meta-x", "x"), ("PUBLISH", "/0.celery.pidbox", "x"), ("CLIENT", "LIST"),
        ("SADD", "_kombu.binding.reply.celery.pidbox", "x"), ("SUBSCRIBE", "/0.celery.pidbox"), ("ACL", "LIST"),
    ],
    "beat": [
        ("HGETALL", "janitor:2:d:some-id"), ("RPOP", "deletions"), ("GET", "celery-task-meta-some-id"),
        ("SET", "deletions", "x"), ("GET", "deletions"), ("SET", "janitor:2:accounts", "x"),
        ("CONFIG", "GET", "*"), ("PUBLISH", "/0.celery.pidbox", "x"),
    ],
    "exporter": [
        ("HSET", "janitor:2:paused", "*", "x"), ("DEL", "janitor:2:paused"), ("LPUSH", "wakeups", "x"),
        ("GET", "celery-task-meta-some-id"), ("EVAL", "return 1", 0), ("CONFIG", "GET", "*"), ("KEYS", "*"),
    ],
    "backup": [("HGETALL", "janitor:2:d:some-id"), ("SET", "x", "x"), ("FLUSHALL",), ("CONFIG", "GET", "*")],
    "flower": [
        ("HGETALL", "janitor:2:d:some-id"), ("LPUSH", "deletions", "x"), ("RPOP", "deletions"), ("DEL", "wakeups"),
        ("GET", "celery-task-meta-some-id"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"),
    ],
    "http": [("LPUSH", "deletions", "x"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("SCAN", 0)],
    "operator": [
        ("LPUSH", "deletions", "x"), ("LRANGE", "deletions", 0, -1), ("DEL", "deletions"), ("RPOP", "celery"),
        ("FLUSHALL",), ("CONFIG", "SET", "appendonly", "no"), ("SCAN", 0), ("PUBLISH", "/0.celery.pidbox", "x"),
    ],
    "worker": [("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "SET", "appendonly", "no"), ("GET", "somebody-elses")],
}  # fmt: skip


@pytest.mark.parametrize("role", FORBIDDEN)
def test_nobody_can_do_more_than_their_line_says(urls, role):
    assert set(FORBIDDEN) == set(USERS)
    with redis.Redis.from_url(urls[role]) as client:
        assert all(denied(client, *command) for command in FORBIDDEN[role])


def test_a_producer_can_neither_stop_a_worker_nor_read_a_record(urls, running_worker, api, app, operator):
    # Given a deletion that a producer asked for,
    api.create("theirs")
    record = app.send_task("finetunes.delete", ["theirs"], queue="deletions").get(timeout=60)
    # when it tells workers to stop, or reads the ledger, then Redis refuses that,
    with pytest.raises(Exception, match="no permissions"):
        app.control.shutdown()
    told = janitor(operator | {"REDIS_URL": urls["producer"]}, "show", record["id"])
    assert told.returncode == 3
    assert "permissions" in told.stderr
    # and the worker still works.
    assert running_worker.poll() is None
    assert app.send_task("finetunes.cancel", [record["id"]], queue="deletions").get(timeout=60)


def test_beat_sees_that_the_ledger_is_of_a_newer_version(urls, env):
    # Given a ledger of a newer version,
    key = Ledger(urls.admin).keys.schema
    before = urls.admin.get(key)
    urls.admin.set(key, 99)
    # when beat starts as its own user of Redis, then it ends with one line.
    done = janitor(env | {"REDIS_URL": urls["beat"]}, "beat")
    urls.admin.set(key, before or 1)
    assert (done.returncode, "the ledger has schema 99" in done.stderr) == (2, True)


def test_the_exporter_can_tell_everything(urls, env):
    # Given the service for Prometheus, which runs as its own user of Redis,
    urls.refused()
    (port,) = free_ports(1)

    def scraped():
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()

    spec = Spec("metrics", [sys.executable, "-m", "worker.cli", "metrics", "--port", str(port)],
                env | {"REDIS_URL": urls["exporter"]}, ready=scraped)  # fmt: skip
    with started(spec):
        # when it is asked, then the numbers of the ledger are there.
        assert 'state="scheduled"}' in scraped()
    assert urls.refused() == []


def test_a_backup_is_a_copy_of_everything(urls, tmp_path):
    # Given a ledger,
    urls.admin.set("janitor:2:tick", 1)
    server = embedded.find_server()
    cli = server.with_name(server.name.replace("server", "cli"))
    # when `redis-cli --rdb` runs as the user for it, then it writes all of it.
    place = urls["backup"].partition("@")[2].partition("?")[0]
    argv = [cli, "-s", place, "--user", "backup", "--rdb", tmp_path / "copy.rdb"]
    env = {**os.environ, "REDISCLI_AUTH": "BACKUP_PASSWORD"}
    subprocess.run(argv, env=env, check=True, capture_output=True, timeout=60)
    assert b"janitor:2:tick" in (tmp_path / "copy.rdb").read_bytes()


def test_nobody_comes_in_without_a_user(urls):
    _, _, place = urls["worker"].partition("@")
    with redis.Redis.from_url(f"unix://{place}") as client, pytest.raises(AuthenticationError):
        client.ping()
    with redis.Redis.from_url(f"unix://worker:wrong@{place}") as client, pytest.raises(AuthenticationError):
        client.ping()


class TlsFront:
    """TLS in front of a Redis whose server may be built without it; the client's side is what is tried."""

    def __init__(self, path, certificate):
        self.path = str(path)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        certificate.configure_cert(self.context)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                threading.Thread(target=self._serve, args=(near,), daemon=True).start()

    def _serve(self, plain):
        with (
            suppress(OSError),
            self.context.wrap_socket(plain, server_side=True) as near,
            socket.socket(socket.AF_UNIX) as far,
        ):
            far.connect(self.path)
            with selectors.DefaultSelector() as ready:
                ready.register(near, selectors.EVENT_READ, far)
                ready.register(far, selectors.EVENT_READ, near)
                while True:
                    for key, _ in ready.select():
                        data = key.fileobj.recv(65_536)  # type: ignore[union-attr] # one of the two sockets
                        while key.fileobj is near and near.pending():  # decrypted, and not seen by the selector
                            data += near.recv(near.pending())
                        if not data:
                            return
                        key.data.sendall(data)


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """The URL of the document for each role, with the address and the authority of this place."""
    folder = tmp_path_factory.mktemp("tls")
    (documented,) = re.findall(r"^REDIS_URL=(rediss://\S+)$", DOCUMENT, re.MULTILINE)
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.crt")
    with embedded.running(folder / "redis") as plain:
        front = TlsFront(embedded.socket_path(folder / "redis"), authority.issue_cert("localhost"))
        with redis.Redis.from_url(plain) as admin:
            admin.execute_command("ACL", "SETUSER", "worker", "reset", *USERS["worker"].split())
        url = documented.replace("redis.internal:6379", f"localhost:{front.port}")
        yield url.replace("worker@", "worker:WORKER_PASSWORD@").replace("/etc/janitor/ca.crt", f"{folder}/ca.crt")
        front.listener.close()


def test_the_whole_system_runs_over_tls(tls, api, tmp_path):
    api.create("over-tls")
    env = environment(tls, api.url, JANITOR_STATE_DIR=tmp_path)
    with worker(env, tmp_path / "log"):
        done = janitor(env, "delete", "over-tls", "--wait", "--timeout", "20", "--json")
        assert (done.returncode, records(done)[0]["state"]) == (0, "deleted")
        url = celery_url(tls)
        app = Celery("somebody-else", broker=url, backend=url, set_as_current=False)
        with pytest.raises(Exception, match="not_found"):
            app.send_task("finetunes.delete", ["never-there"], queue="deletions").get(timeout=60)
    assert "Traceback" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    "wrong",
    [
        ("localhost", "127.0.0.1"),  # a certificate of another name
        ("&ssl_ca_certs=", "&ssl_min_version=771&unknown="),  # an unknown authority
    ],
)
def test_a_certificate_that_is_not_trusted_is_refused(tls, tmp_path, wrong):
    url = tls.replace(*wrong).partition("&ssl_min")[0]
    with pytest.raises(LedgerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
        Ledger(connect(url, patient=False)).now_ms()
