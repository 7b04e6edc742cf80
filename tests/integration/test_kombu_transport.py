"""A real worker on a real Redis: hostile messages, errors past Celery's handling, a master that is replaced."""

import base64
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
import uuid
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest
import redis
from celery import signature
from kombu import Connection

from tasks.ledger import dead_letters
from tasks.ledger.keys import keys
from tests.integration.small_app import SLOTS, create
from tests.unit.test_kombu_transport import MESSAGES, encoded, plain
from worker.kombu_transport import Transport
from worker.local.embedded import find_servers
from worker.message_check import MOST_BYTES
from worker.redis_url import connect

DEAD = keys.dead_letters
ROOT = Path(__file__).parents[2]
SERVERS = find_servers()
RAW = [
    b"", b"\xff", b"{", b"5", b'"x"', b"null", b"[]", b"[" * 2000, b'{"__type__": "datetime", "__value__": 5}',
    b'{"properties": {"delivery_tag": {"__type__": "no", "__value__": 1}}}', b'"' + b"x" * MOST_BYTES + b'"',
]  # fmt: skip


def until(condition, timeout_seconds=60):
    deadline = time.monotonic() + timeout_seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {timeout_seconds}s"
        threading.Event().wait(0.05)
    return found


def free_ports(count):
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def answers(port):
    with suppress(redis.RedisError), redis.Redis(port=port, socket_timeout=1) as client:
        return client.ping()


@contextmanager
def ended(argv, **options):
    process = subprocess.Popen(argv, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def servers(folder, count=1, program=SERVERS[0].path):
    """The ports of Redis servers that run inside."""
    ports = free_ports(count)
    with ExitStack() as stack:
        for port in ports:
            place = folder / str(port)
            place.mkdir()
            options = {"port": port, "bind": "127.0.0.1", "save": "", "dir": place, "logfile": place / "log"}
            argv = [program, *(str(part) for name, value in options.items() for part in (f"--{name}", value))]
            stack.enter_context(ended(argv))
            until(lambda port=port: answers(port))
        yield ports


@contextmanager
def worker(url, log):
    """A worker on `url`, which answers inside, and the app of a producer."""
    argv = [sys.executable, "-m", "celery", "-A", "tests.integration.small_app", "worker", "-P", "threads"]
    argv += ["--without-gossip", "--without-mingle", "--loglevel", "INFO"]
    app = create(url)
    with log.open("wb") as out, ended(
        argv, env={**os.environ, "SMALL_APP_REDIS_URL": url}, cwd=ROOT, stdout=out, stderr=subprocess.STDOUT
    ) as process:  # fmt: skip
        assert ask(app, "ready", timeout_seconds=40) == ["ready", None]
        yield app
        assert process.poll() is None, "the worker ended"


def send(app, *arguments, **options):
    options = {"queue": "deletions", **options}
    return app.send_task("finetunes.delete", args=arguments, **options)


def ask(app, *arguments, timeout_seconds=20, **options):
    return send(app, *arguments, **options).get(timeout=timeout_seconds, propagate=False)


def all_slots_are_free(app):
    key = f"meet:{uuid.uuid4()}"
    met = [send(app, "meet", key) for _ in range(SLOTS)]
    return [one.get(timeout=30) for one in met] == ["met"] * SLOTS


def nothing_is_left(client):
    return not client.exists("deletions", "unacked", "unacked_index")


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    with ExitStack() as stack:
        (port,) = stack.enter_context(servers(folder))
        app = stack.enter_context(worker(f"redis://127.0.0.1:{port}", folder / "worker.log"))
        yield app, stack.enter_context(redis.Redis(port=port))


@pytest.fixture
def emptied(running):
    app, client = running
    client.delete(DEAD)
    return app, client


def test_hostile_messages_become_dead_letters_and_the_worker_answers(emptied):
    app, client = emptied
    # Given every message that must be refused
    items = [*RAW, *(encoded(make()) for make, _ in MESSAGES.values())]
    # When they lie in a queue of ours, between requests that are in order
    before = send(app, "before")
    for item in items:
        client.lpush("deletions", item)
    # Then each becomes a dead letter with its reason, and none keeps a slot
    assert before.get(timeout=60) == ["before", None]
    until(lambda: client.llen(DEAD) == len(items), 60)
    until(lambda: nothing_is_left(client))
    reasons = [json.loads(entry)["reason"] for entry in client.lrange(DEAD, 0, -1)]
    assert all(reasons)
    assert all_slots_are_free(app)


def test_hostile_control_commands_end_nothing(emptied):
    app, client = emptied
    # Given what Celery's remote control cannot read, or cannot carry out
    commands = [
        b"{}", b'{"method": 5}', b'{"method": "no such"}', b'{"method": "revoke", "arguments": 5}',
        b'{"method": "revoke", "arguments": {"task_id": {}}}', b'{"method": "rate_limit", "arguments": [1]}',
        b'{"method": "ping", "reply_to": 5}',
        b'{"method": "ping", "reply_to": {"exchange": 5, "routing_key": []}}',
        *(item for item in RAW if len(item) < MOST_BYTES),
    ]  # fmt: skip
    # When it is published, as a message's body and as the whole message
    for body in commands:
        raw = plain() | {"body": base64.b64encode(body).decode(), "headers": {}}
        for item in (encoded(raw), body):
            until(lambda item=item: client.publish("/0.celery.pidbox", item))  # a bad one has it subscribe again
    # Then the worker goes on
    assert all_slots_are_free(app)
    assert app.control.ping(timeout=30, limit=1)


def test_celerys_own_revoke_changes_neither_what_is_done_nor_its_result(emptied):
    app, _ = emptied
    id_ = str(uuid.uuid4())
    # When a task is revoked before it comes, in each way that Celery has
    for method, arguments in [
        ("revoke", {"task_id": id_}), ("terminate", {"task_id": id_, "signal": "TERM"}),
        ("revoke_by_stamped_headers", {"headers": {"a": "b"}}),
        # as a worker of somebody else's does when it starts
        ("hello", {"from_node": "theirs@host", "revoked": [id_]}),
    ]:  # fmt: skip
        (reply,) = app.control.broadcast(method, arguments=arguments, reply=True, limit=1, timeout=30)
        # then the worker says that it does not do so,
        assert method == "hello" or "send finetunes.cancel" in str(reply)
    # and it goes on.
    assert app.AsyncResult(id_).state == "PENDING"
    assert ask(app, "done", task_id=id_) == ["done", None]


@pytest.mark.parametrize("what", ["exit", "interrupt", "memory", "break the backend"])
def test_whatever_gets_past_celerys_own_handling_frees_its_slot(emptied, what):
    app, client = emptied
    # Given more such tasks than there are slots
    for _ in range(SLOTS + 1):
        send(app, what)
    # Then each message is kept for a person, and the worker goes on with all its slots
    until(lambda: client.llen(DEAD) == SLOTS + 1)
    until(lambda: nothing_is_left(client))
    assert all_slots_are_free(app)


def test_what_celery_handles_itself_is_left_to_it(emptied):
    app, client = emptied
    assert isinstance(ask(app, "raise"), ValueError)
    assert ask(app, "requeue") == ["requeue", None]
    send(app, "reject")
    assert send(app, "late", expires=-5).state in ("PENDING", "REVOKED")
    until(lambda: nothing_is_left(client))
    assert client.llen(DEAD) == 0
    assert all_slots_are_free(app)


def test_a_countdown_holds_nothing_in_the_worker(emptied):
    app, _ = emptied
    # Given more requests with a countdown of an hour than there are slots
    asked = [send(app, "later", countdown=3600) for _ in range(2 * SLOTS)]
    # Then each reaches its task at once, with its time in our header
    for one in asked:
        what, eta = one.get(timeout=60)
        assert what == "later"
        assert eta.endswith("Z")


def test_callbacks_run_on_queues_of_others(emptied):
    app, client = emptied
    link = signature("theirs.report", queue="theirs")
    assert ask(app, "linked", link=link, link_error=link) == ["linked", None]
    assert until(lambda: client.llen("theirs")) == 1


def forged(*arguments, **properties):
    """A message in order but for its properties, with an id of its own."""
    raw = plain(id=str(uuid.uuid4()))
    return raw | {"body": [arguments, {}, None], "properties": raw["properties"] | properties}


def test_a_forged_place_leads_to_no_other_key(emptied):
    app, client = emptied
    # Given a message that asks to be given back to a key of the ledger
    raw = forged("requeue", delivery_info={"exchange": "", "routing_key": "janitor:2:paused"})
    # When it is given back
    client.lpush("deletions", encoded(raw))
    # Then it comes again by the queue in which it lay
    assert app.AsyncResult(raw["headers"]["id"]).get(timeout=60) == ["requeue", None]
    assert not client.exists("janitor:2:paused")


def test_a_forged_tag_acknowledges_no_other_message(emptied):
    app, client = emptied
    # Given a message that is being carried out
    first, second = forged("meet", "forged", delivery_tag="tag"), forged("short", delivery_tag="tag")
    client.lpush("deletions", encoded(first))
    until(lambda: client.get("forged"))
    # When another one with its tag is done
    client.lpush("deletions", encoded(second))
    assert app.AsyncResult(second["headers"]["id"]).get(timeout=60) == ["short", None]
    # Then the first is still noted as not acknowledged, until it is done too
    until(lambda: second["headers"]["id"].encode() not in b"".join(client.hvals("unacked")))
    assert first["headers"]["id"].encode() in b"".join(client.hvals("unacked"))
    client.incr("forged")
    assert app.AsyncResult(first["headers"]["id"]).get(timeout=60) == "met"
    until(lambda: nothing_is_left(client))


class Proxy:
    """One address in front of a server that can be replaced; connections that are open stay where they are."""

    def __init__(self, port):
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    client.close()
                    continue
                for source, sink in itertools.permutations((client, server)):
                    threading.Thread(target=self._copy, args=(source, sink), daemon=True).start()

    @staticmethod
    def _copy(source, sink):
        with suppress(OSError):
            while data := source.recv(65_536):
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_RDWR)
        source.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()


@contextmanager
def behind_one_name(folder, program):
    """A master and its replica behind one name: its URL, and what has them swap roles."""
    with ExitStack() as stack:
        one, two = stack.enter_context(servers(folder, 2, program))
        proxy = stack.enter_context(Proxy(one))
        old, new = (stack.enter_context(redis.Redis(port=port)) for port in (one, two))
        new.replicaof("127.0.0.1", one)
        until(lambda: new.info("replication")["master_link_status"] == "up")

        def swap():
            new.replicaof("NO", "ONE")
            old.replicaof("127.0.0.1", two)
            proxy.target = two

        yield f"redis://127.0.0.1:{proxy.port}", swap


WRITES = {
    "command": lambda client: client.set("key", 1),
    "script": lambda client: client.register_script("return redis.call('SET', KEYS[1], 1)")(keys=["key"]),
    "pipeline": lambda client: client.pipeline(transaction=False).set("key", 1).execute(),
    "transaction": lambda client: client.pipeline().set("key", 1).execute(),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("program", [pytest.param(server.path, id=str(server)) for server in SERVERS])
def test_a_ledger_client_follows_the_master(tmp_path, program, write):
    with behind_one_name(tmp_path, program) as (url, swap):
        workers, command = connect(url), connect(url, patient=False)
        with workers, command:
            # Given clients with open connections, one of them idle in its pool
            for client in (workers, command):
                WRITES[write](client)
                spare = [client.connection_pool.get_connection() for _ in range(2)]
                for connection in spare:
                    client.connection_pool.release(connection)
            # When master and replica swap roles
            swap()
            # Then a worker's next write arrives, and a command's does at its second try
            WRITES[write](workers)
            with pytest.raises(redis.ConnectionError, match="a read-only replica now"):
                WRITES[write](command)
            WRITES[write](command)
            for client in (workers, command):
                idle = client.connection_pool._available_connections
                assert sum(connection._sock is not None for connection in idle) == 1


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_message_that_fails_unforeseen_is_acknowledged_only_once_it_is_kept(tmp_path, monkeypatch, is_kept):
    # Given a consumer that fails, and a Redis that goes away before the dead letter is written, or does not
    def away(*_):
        raise redis.ConnectionError("gone")

    def fail(_):
        raise LookupError("unforeseen")

    if not is_kept:
        monkeypatch.setattr(dead_letters, "keep", away)
    with ExitStack() as stack:
        (port,) = stack.enter_context(servers(tmp_path))
        client = stack.enter_context(redis.Redis(port=port))
        connection = stack.enter_context(Connection(f"redis://127.0.0.1:{port}", transport=Transport))
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        channel.basic_consume("deletions", no_ack=False, callback=fail, consumer_tag="consumer")
        # When a message is delivered,
        channel.connection._callbacks["deletions"](json.loads(encoded(plain())))
        # then its slot is free, and it is a dead letter or comes again.
        assert channel.qos.can_consume()
        assert (client.llen(DEAD), client.hlen("unacked")) == ((1, 0) if is_kept else (0, 1))


def test_a_publisher_follows_the_master(tmp_path):
    with ExitStack() as stack:
        url, swap = stack.enter_context(behind_one_name(tmp_path, SERVERS[0].path))
        connection = stack.enter_context(Connection(url, transport=Transport))
        queue = stack.enter_context(closing(connection.SimpleQueue("deletions")))
        queue.put("before")
        with redis.Redis.from_url(url) as client:
            assert client.wait(1, 5000) == 1
        swap()
        # Then the error is one that kombu's retries are made for, and the next message arrives
        with pytest.raises(connection.connection_errors, match="a read-only replica now"):
            queue.put("lost")
        queue.put("again")
        with redis.Redis.from_url(url) as client:
            assert client.llen("deletions") == 2


def test_a_worker_follows_the_master(tmp_path):
    with ExitStack() as stack:
        url, swap = stack.enter_context(behind_one_name(tmp_path, SERVERS[0].path))
        app = stack.enter_context(worker(url, tmp_path / "worker.log"))
        assert ask(app, "once") == ["once", None]
        # When the roles are swapped while the worker waits for messages
        swap()
        # Then it takes messages from the new master, and writes results there
        fresh = create(url)
        assert ask(fresh, "again", timeout_seconds=40) == ["again", None]
        assert all_slots_are_free(fresh)
