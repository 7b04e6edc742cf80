"""What the chaos tests share: a Redis and workers that can be killed and cut off, and the verdict."""

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta

from redis import Redis

from tasks.ledger import Ledger
from tasks.ledger.queries import Filter, get, list_deletions, workers_seen
from tests.processes import KEY, environment, janitor_here, records, until
from worker.local import embedded
from worker.local.supervise import Child, Spec
from worker.redis_url import connect

LONG = os.environ.get("CHAOS") == "long"
# The short form shortens leases; the long one proves the defaults.
SHORT = {
    "JANITOR_LEASE": "3s", "JANITOR_CALL_DEADLINE": "2s", "JANITOR_READ_TIMEOUT": "1s",
    "JANITOR_CONNECT_TIMEOUT": "1s", "JANITOR_MAINTENANCE_EVERY": "300ms",
}  # fmt: skip
TIMES = {} if LONG else SHORT
LEASE_SECONDS = 30 if LONG else 3
CALL_SECONDS = 20 if LONG else 2
FIRST_SECONDS = 30 if LONG else 0  # until the first observation of what waits; `observe_now` brings it forward
RECLAIM_SECONDS = LEASE_SECONDS + 10  # what a killed worker held goes on within this


class System:
    """A Redis, an environment, and worker processes, all ended with it. accounts: more than `default`."""

    def __init__(self, api, folder, accounts=(), **settings):
        self.api = api
        self.folder = folder
        self.state_dir = folder / "redis"
        self.url = embedded.url(self.state_dir)
        keys = {f"BFL_API_KEY_{name.upper()}": KEY for name in accounts}
        urls = {f"BFL_API_URL_{name.upper()}": api.url for name in accounts}
        state = folder / "state"
        self.env = environment(self.url, api.url, JANITOR_STATE_DIR=state, **TIMES, **keys, **urls, **settings)
        self.workers = []
        self._stack = ExitStack()
        self._count = 0

    def __enter__(self):
        self._stack.enter_context(embedded.lock(self.state_dir))
        self.start_redis()
        return self

    def __exit__(self, *_):
        for child in self.workers:
            if child.process.poll() is None:
                os.killpg(child.process.pid, signal.SIGCONT)
                child.process.kill()
            child.stop()
        self.redis.stop()
        self._stack.close()

    def start_redis(self):
        self.redis = Child(embedded.spec(self.state_dir))
        self.redis.wait_ready()

    def kill_redis(self):
        self.redis.process.kill()
        self.redis.process.wait(10)

    @property
    def store(self):
        return Redis.from_url(self.url, decode_responses=True)

    @property
    def ledger(self):
        return Ledger(connect(self.url))

    def start_worker(self, *, crash_at=None, account=None, url=None, wait=True, before=()):
        """A worker process.

        crash_at: a point of `crashing.POINTS`, at which it dies. account: the only one that it has a key for.
        url: of Redis, if not the usual one. before: a command that starts the worker.
        """
        self._count += 1
        name = f"worker-{self._count}"
        options = ["-P", "threads", "--without-mingle", "--without-gossip", "-n", name]
        how = ["-m", "tests.chaos.crashing", crash_at] if crash_at else ["-m"]
        argv = [*before, sys.executable, *how, "celery", "-A", "worker", "worker", *options]
        env = self.env | ({"REDIS_URL": url} if url else {})
        if account:
            env = {variable: text for variable, text in env.items() if _is_for(account, variable)}
        child = Child(Spec(name, argv, env, log=self.folder / f"{name}.log"))
        self.workers.append(child)
        if wait:
            self.wait_for(child)
            assert crash_at or child.process.poll() is None, self.log_of(child)[-2000:]
        return child

    def wait_for(self, *children):
        """Until each of them takes messages, or is dead already."""

        def are_up():
            seen = [name.split()[0] for name in workers_seen(self.ledger)]
            return all(
                child.process.poll() is not None or any(one.endswith(f":{child.process.pid}") for one in seen)
                for child in children
            )

        until(are_up, seconds=60, what=f"the start of {[child.spec.name for child in children]}")

    def kill(self, child):
        child.process.kill()
        child.stop()
        self.workers.remove(child)

    def deletions(self):
        """Every deletion there is."""
        found, cursor = [], None
        while True:
            page = list_deletions(self.ledger, Filter(), limit=500, cursor=cursor)
            found += page.deletions
            cursor = page.cursor
            if cursor is None:
                return found

    def wait_until_final(self, seconds):
        open_ones = []

        def over():
            nonlocal open_ones
            open_ones = [deletion for deletion in self.deletions() if not deletion.is_final]
            return not open_ones

        try:
            until(over, seconds=seconds, what="the end of all deletions")
        except Exception:
            raise AssertionError([(d.finetune_id, d.state, d.message) for d in open_ones]) from None

    def log_of(self, child):
        return child.spec.log.read_text()

    def assert_the_key_is_nowhere(self):
        found = []
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # a temporary file that was renamed meanwhile
                if path.is_file() and KEY.encode() in path.read_bytes():
                    found.append(path)
        assert found == []


class OverTcp(System):
    """A system whose Redis listens on a port, so that something can come between."""

    def start_redis(self):
        if not hasattr(self, "port"):
            with socket.create_server(("127.0.0.1", 0)) as free:
                self.port = free.getsockname()[1]
            self.url = f"redis://127.0.0.1:{self.port}/0"
            self.env["REDIS_URL"] = self.url
        self.redis = Child(redis_on(self.port, self.state_dir, self.folder / "redis.log"))
        self.redis.wait_ready()


def redis_on(port, folder, log, *more):
    """A Redis on a port of the loopback interface that keeps what it answers for."""
    folder.mkdir(exist_ok=True)
    options = {"port": port, "bind": "127.0.0.1", "dir": folder, "appendonly": "yes", "appendfsync": "always"}
    argv = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    argv = [str(embedded.find_server()), *argv, "--save", "", *more]

    def answers():
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    return Spec("redis", argv, ready=answers, log=log)


class Proxy:
    """A TCP proxy. `flowing` cleared: a silent partition, nothing is closed. `target`: for new connections.

    listener: a socket that listens; one on the loopback interface unless given.
    """

    def __init__(self, target, listener=None):
        self.target = target
        self.flowing = threading.Event()
        self.flowing.set()
        self._closing = False
        self._listener = listener or socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._closing = True
        self.flowing.set()
        self._listener.close()

    def _accept(self):
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self.target)
                except OSError:  # nobody listens there just now
                    near.close()
                    continue
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with suppress(OSError), closing(source), closing(sink):
            while data := source.recv(65_536):
                self.flowing.wait()
                if self._closing:
                    return
                sink.sendall(data)


def ask(system, *finetune_ids, **options):
    """Ask by the command for these to be deleted; the ids. options: of the command, such as account."""
    more = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = janitor_here(system.env, "delete", *finetune_ids, *more, "--json")
    assert done.returncode == 0, done.stderr
    return [record["id"] for record in records(done)]


def ask_later(system, finetune_id, delay, account="default"):
    """Ask for it to be deleted after `delay`; the id."""
    return ask(system, finetune_id, **{"in": delay, "account": account})[0]


def create(api, prefix, count):
    """Finetunes; their names."""
    names = [f"{prefix}-{n}" for n in range(count)]
    for name in names:
        api.create(name)
    return names


def wait_final(system, id_, seconds=RECLAIM_SECONDS + 20):
    """The record, once it is final."""
    until(lambda: get(system.ledger, id_).is_final, seconds=seconds, what=f"a final state of {id_}")
    return get(system.ledger, id_)


def observe_now(system, *ids, account="default"):
    """Make first observations due at once, in the short form; by itself they are due after half a minute."""
    if not LONG:
        ledger = system.ledger
        ledger.redis.zadd(ledger.keys.first(account), dict.fromkeys(ids, 1), xx=True)


def wait_observed(system, id_, account="default"):
    """The record, once its finetune was observed."""

    def is_observed():
        observe_now(system, id_, account=account)
        return get(system.ledger, id_).observed_at is not None

    until(is_observed, seconds=RECLAIM_SECONDS + 40, what="an observation")
    return get(system.ledger, id_)


def more_deletes(api, before):
    return len(api.deletes()) > before


def assert_true(deletions, api, *, one_name_one_life=True, permits=8):
    """No record claims what the API's journal does not bear out."""
    journal = api.journal()
    assert max((call["at_once"] for call in journal), default=0) <= permits
    for deletion in deletions:
        calls = [call for call in journal if call["call"] == "delete_finetune"]
        calls = [call for call in calls if call["finetune_id"] == deletion.finetune_id]
        effective = [call for call in calls if call["effective"]]
        lives = [call["incarnation"] for call in effective]
        assert len(lives) == len(set(lives)), "one life ends once"
        told = (deletion.finetune_id, deletion.state, deletion.message, calls)
        if deletion.state == "deleted":
            assert effective, told
        elif one_name_one_life and deletion.state in ("not_found", "cancelled", "failed", "superseded"):
            assert not effective, told
        if one_name_one_life and deletion.finished_at:
            # The API's clock is this machine's, as Redis's is; its entry is made before the answer is sent.
            late = deletion.finished_at + timedelta(milliseconds=50)
            assert not [call for call in calls if datetime.fromisoformat(call["at"]) > late], told


def _is_for(account, variable):
    return not variable.startswith("BFL_API_") or variable.endswith(f"_{account.upper()}")
