"""The system runs through the users of deploy/redis/users.acl, and the TLS of secure-redis.md, on a real Redis."""

import json
import os
import re
import selectors
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.request import urlopen

import pytest
import redis
import trustme
from celery import Celery, chain, chord, signature
from redis.exceptions import AuthenticationError, NoPermissionError, ResponseError

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.dead_letters import keep
from tasks.ledger.queries import get, stopped_accounts
from tasks.ledger.types import Act
from tasks.records import State
from tests.conftest import accept, asking, claim, finish
from tests.processes import (
    KEY,
    ROOT,
    environment,
    free_ports,
    janitor,
    records,
    redis_cli,
    skip_before_redis_7,
    until,
    worker,
)
from worker.app import create_app
from worker.doctor.status import status
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
        # What redis-py says of itself when it connects: from 7.2 on it is named with its subcommand.
        told = {"client", "client|setinfo"}
        return [(entry["username"], entry["object"]) for entry in entries if entry["object"] not in told]


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
    state = tmp_path_factory.mktemp("state")
    return environment(urls["worker"], api.url, JANITOR_STATE_DIR=state, JANITOR_CALLBACKS_URL=urls["callbacks"])


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
    for command in (["pause"], ["resume"], ["audit"], ["dead-letters", "list"], ["show", late["id"]], ["doctor"]):
        told = janitor(operator, *command)
        assert told.returncode == 0, (command, told.stdout, told.stderr)
    for queue in ("deletions", "touches", "wakeups"):
        keep(urls.admin, queue, "not JSON", "x")
        letter = records(janitor(operator, "dead-letters", "list", "--json"))[0]
        assert janitor(operator, "dead-letters", "requeue", letter["id"]).returncode == 0
    # What runs as http does is the ledger and a wake-up, as the command; what beat does is to send a message.
    assert janitor(operator | {"REDIS_URL": urls["http"]}, "delete", "late").returncode == 0
    create_app(Settings(), urls["beat"]).send_task("finetunes.tick", queue="wakeups", ignore_result=True)
    assert urls.refused() == []


@pytest.mark.usefixtures("running_worker")
def test_callbacks_are_sent_as_a_user_who_has_only_their_queues(urls, api, app):
    # Given a producer's queue, which the document has added to the line of `callbacks` alone,
    added = re.search(r"add `(~their\S+)` and\s+`(\S+)` to the line of `callbacks`", DOCUMENT).groups()
    urls.admin.execute_command(
        "ACL", "SETUSER", "callbacks", *(one.replace("theirqueue", "theirs") for one in added)
    )
    urls.refused()  # what other tests tried to do
    for name in ("linked", "chained", "one", "two"):
        api.create(name)

    def told(name, app=app):
        return signature(f"theirs.{name}", queue="theirs", app=app)

    def deletion(name, app=app):
        return signature("finetunes.delete", [name], queue="deletions", app=app)

    # when deletions with callbacks of each kind end,
    app.send_task("finetunes.delete", ["linked"], queue="deletions", link=[told("link"), told("also")])
    app.send_task("finetunes.delete", ["not-there"], queue="deletions", link_error=told("error"))
    chain(deletion("chained"), told("next")).apply_async()
    # (its producer itself writes how many parts a chord has)
    url = celery_url(urls["worker"])
    trusted = Celery("somebody-else", broker=url, backend=url, set_as_current=False)
    chord([deletion("one", trusted), deletion("two", trusted)], told("both", trusted)).apply_async()
    # then all callbacks are in that queue.
    expected = sorted(f"theirs.{name}" for name in ("link", "also", "error", "next", "both"))

    def arrived():
        return sorted(json.loads(one)["headers"]["task"] for one in urls.admin.lrange("theirs", 0, -1))

    until(lambda: arrived() == expected, seconds=60, what="the callbacks")
    assert [one for one in urls.refused() if one[0] in ("callbacks", "worker")] == []


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
        ("LPUSH", "celery-task-meta-some-id", "x"), ("SADD", "celery-task-meta-some-id", "x"),
        ("EVAL", "return 1", 0), ("CONFIG", "GET", "*"), ("CONFIG", "SET", "appendonly", "no"), ("FLUSHALL",),
        ("PUBLISH", "celery-task-meta-x", "x"), ("PUBLISH", "/0.celery.pidbox", "x"), ("CLIENT", "LIST"),
        ("SADD", "_kombu.binding.reply.celery.pidbox", "x"), ("SUBSCRIBE", "/0.celery.pidbox"), ("ACL", "LIST"),
    ],
    "callbacks": [
        ("HGETALL", "janitor:2:d:some-id"), ("LPUSH", "janitor:2:dead-letters", "x"), ("LPUSH", "deletions", "x"),
        ("SADD", "janitor:2:accounts", "x"), ("RPOP", "theirs"), ("LPUSH", "wakeups", "x"), ("KEYS", "*"),
        ("SET", "theirs", "x"), ("EVAL", "return 1", 0), ("PUBLISH", "/0.celery.pidbox", "x"), ("FLUSHALL",),
    ],
    "beat": [
        ("HGETALL", "janitor:2:d:some-id"), ("RPOP", "deletions"), ("GET", "celery-task-meta-some-id"),
        ("SET", "deletions", "x"), ("GET", "deletions"), ("SET", "janitor:2:accounts", "x"),
        ("CONFIG", "GET", "*"), ("PUBLISH", "/0.celery.pidbox", "x"), ("SET", "janitor:2:schema", 99),
    ],
    "exporter": [
        ("HSET", "janitor:2:paused", "*", "x"), ("DEL", "janitor:2:paused"), ("LPUSH", "wakeups", "x"),
        ("GET", "celery-task-meta-some-id"), ("EVAL", "return 1", 0), ("CONFIG", "GET", "*"), ("KEYS", "*"),
        ("SET", "janitor:2:schema", 99),
    ],
    "backup": [("HGETALL", "janitor:2:d:some-id"), ("SET", "x", "x"), ("FLUSHALL",), ("CONFIG", "GET", "*")],
    "flower": [
        ("HGETALL", "janitor:2:d:some-id"), ("LPUSH", "deletions", "x"), ("RPOP", "deletions"), ("DEL", "wakeups"),
        ("GET", "celery-task-meta-some-id"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("KEYS", "*"),
    ],
    "http": [("LPUSH", "deletions", "x"), ("FLUSHALL",), ("CONFIG", "GET", "*"), ("SCAN", 0)],
    "operator": [
        ("LPUSH", "celery", "x"), ("LRANGE", "deletions", 0, -1), ("DEL", "deletions"), ("RPOP", "celery"),
        ("FLUSHALL",), ("CONFIG", "SET", "appendonly", "no"), ("SCAN", 0), ("PUBLISH", "/0.celery.pidbox", "x"),
    ],
    "worker": [("FLUSHALL",), ("KEYS", "*"), ("CONFIG", "SET", "appendonly", "no"), ("GET", "somebody-elses")],
}  # fmt: skip


LOG = "janitor-audit:2:2026-11"
CHANGES: list[tuple[Any, ...]] = [
    ("LSET", LOG, 0, "x"), ("LTRIM", LOG, 1, 0), ("LREM", LOG, 0, "entry"), ("LPOP", LOG), ("RPOP", LOG),
    ("LPUSH", LOG, "x"), ("LINSERT", LOG, "BEFORE", "entry", "x"), ("LMOVE", LOG, "janitor:2:x", "LEFT", "LEFT"),
    ("RPOPLPUSH", LOG, "janitor:2:x"), ("BLPOP", LOG, 1), ("LMPOP", 1, LOG, "LEFT"), ("DEL", LOG), ("UNLINK", LOG),
    ("EXPIRE", LOG, 1), ("PEXPIREAT", LOG, 1), ("PERSIST", LOG), ("SET", LOG, "x"), ("GETDEL", LOG),
    ("RENAME", LOG, "janitor:2:x"), ("RENAME", "janitor:2:tick", LOG), ("RENAMENX", LOG, "janitor:2:x"),
    ("COPY", "janitor:2:tick", LOG, "REPLACE"), ("MOVE", LOG, 1), ("SORT", "janitor:2:dead-letters", "STORE", LOG),
    ("RESTORE", LOG, 0, "x", "REPLACE"), ("MIGRATE", "127.0.0.1", 1, LOG, 0, 1, "REPLACE"), ("HSET", LOG, "a", 1),
    ("BITOP", "NOT", LOG, "janitor:2:tick"), ("SUNIONSTORE", LOG, "janitor:2:accounts"), ("SWAPDB", 0, 1),
    ("FLUSHDB",), ("FLUSHALL",), ("DEBUG", "OBJECT", LOG), ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"),
]  # fmt: skip


@pytest.mark.parametrize("role", sorted(set(USERS) - {"backup"}))
def test_no_user_can_change_or_remove_an_entry_of_the_audit_log(urls, role):
    # Given an entry, when a user tries all that could change it, by itself or in a script,
    urls.admin.delete(LOG)
    urls.admin.rpush(LOG, "entry")
    urls.admin.set("janitor:2:tick", 1)
    in_script = "return redis.call(unpack(ARGV))"
    with redis.Redis.from_url(urls[role]) as client:
        for command in CHANGES:
            for sent in (command, ("EVAL", in_script, 0, *command)):
                with pytest.raises(ResponseError):
                    client.execute_command(*sent)
        # then nothing has changed, and those who act may add one and read it.
        if role in ("worker", "http", "operator"):
            assert client.eval(in_script, 0, "RPUSH", LOG, "another") == 2
            assert client.lrange(LOG, 0, -1) == [b"entry", b"another"]
    assert urls.admin.lrange(LOG, 0, 0) == ["entry"]
    assert urls.admin.ttl(LOG) == -1


def test_without_the_right_to_the_audit_log_nobody_acts_but_an_alarm_still_stops(urls):
    # Given a user as in an older users.acl,
    older = USERS["worker"].partition(" (~janitor-audit")[0].partition(" (")[0]
    urls.admin.execute_command("ACL", "SETUSER", "older", "reset", *older.split())
    ledger = Ledger(connect(urls["worker"].replace("worker:", "older:"), patient=False))
    ledger.maintain("older", 8)
    accept(ledger, asking("a", id="older-1", account="older"))
    # when it acts, then it is told what to do, and nothing is done;
    with pytest.raises(LedgerUnavailable, match=r"nothing was done: see docs/how-to/secure-redis\.md"):
        ledger.cancel(["older-1"], Act("ana", "command"))
    assert get(ledger, "older-1").state == State.QUEUED
    # when an alarm stops the account, then it is stopped.
    assert finish(ledger, claim(ledger, "older"), State.FAILED, pause="it deleted 'b'") == "done"
    assert stopped_accounts(ledger)["older"].paused == "it deleted 'b'"
    ledger.account("older", "resume")
    urls.admin.execute_command("ACL", "DELUSER", "older")


def test_the_audit_log_is_pruned_by_who_may(urls, env, operator):
    # Given an entry that is older than three years, when an operator prunes, then Redis refuses; an admin may.
    old = "janitor-audit:2:2026-01"
    urls.admin.rpush(old, json.dumps({"at": 1, "who": "ana", "via": "command", "act": "pause"}))
    short = {"JANITOR_AUDIT_RETENTION": "1d"}
    refused = janitor(operator | short, "audit", "--prune")
    assert (refused.returncode, "permissions" in refused.stderr) == (3, True), refused.stderr
    rules = "on >ADMIN_PASSWORD allkeys allchannels +@all"
    urls.admin.execute_command("ACL", "SETUSER", "admin", "reset", *rules.split())
    admin = urls["worker"].replace("worker:WORKER", "admin:ADMIN")
    pruned = janitor(operator | short | {"REDIS_URL": admin}, "audit", "--prune")
    assert pruned.stderr.startswith("dropped: 2026-01"), pruned.stderr
    assert not urls.admin.exists(old)
    urls.admin.execute_command("ACL", "DELUSER", "admin")


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
    # Given a ledger, and the service for Prometheus, which runs as its own user of Redis,
    Ledger(urls.admin).check_schema()
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


@pytest.mark.usefixtures("running_worker")
@pytest.mark.parametrize("role", ["worker", "http", "operator"])
def test_those_who_show_the_status_may_read_all_of_it(urls, role):
    found = status(Ledger(connect(urls[role])), timedelta(minutes=1))
    assert "may not count" not in str(found.needs)
    assert len(found.workers) == 1


def test_a_backup_is_a_copy_of_everything(urls, tmp_path):
    # Given a ledger,
    urls.admin.set("janitor:2:tick", 1)
    cli = redis_cli()
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
    skip_before_redis_7()
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
