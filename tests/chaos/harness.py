"""What the chaos tests share: a Redis and workers that can be killed and cut off, and the verdict."""

import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, closing, suppress
from datetime import datetime, timedelta
from pathlib import Path

from redis import Redis

from tasks.ledger import Ledger
from tasks.queries import Filter, list_deletions, workers_seen
from tests.processes import KEY, environment, until
from worker import embedded
from worker.connections import connect
from worker.supervise import Child, Spec, started

LONG = os.environ.get("JANITOR_CHAOS") == "long"
# The short form shortens leases; the long one proves the defaults.
SHORT = {
    "JANITOR_LEASE": "3s", "JANITOR_CALL_DEADLINE": "2s", "JANITOR_READ_TIMEOUT": "1s",
    "JANITOR_CONNECT_TIMEOUT": "1s", "JANITOR_DISPATCH_EVERY": "300ms",
}  # fmt: skip
TIMES = {} if LONG else SHORT
LEASE_SECONDS = 30 if LONG else 3
CALL_SECONDS = 20 if LONG else 2


class System:
    """A Redis, an environment, and worker processes, all ended with it."""

    def __init__(self, api, folder, **settings):
        self.api = api
        self.folder = folder
        self.state_dir = folder / "redis"
        self.url = embedded.url(self.state_dir)
        self.env = environment(self.url, api.url, JANITOR_STATE_DIR=folder / "state", **TIMES, **settings)
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
        self.redis.wait_ready(threading.Event())

    def kill_redis(self):
        self.redis.process.kill()
        self.redis.process.wait(10)

    @property
    def store(self):
        return Redis.from_url(self.url, decode_responses=True)

    @property
    def ledger(self):
        return Ledger(connect(self.url))

    def start_worker(self, *, pool="threads", crash_at=None, url=None, wait=True):
        """A worker process; with `crash_at` one that dies at that point of its first deletion."""
        self._count += 1
        name = f"worker-{self._count}"
        options = ["-P", pool, "--without-mingle", "--without-gossip", "-n", name]
        options += ["-c", "2"] if pool == "prefork" else []
        how = ["-m", "tests.chaos.crashing", crash_at] if crash_at else ["-m", "celery", "-A", "worker", "worker"]
        env = self.env | ({"REDIS_URL": url} if url else {})
        child = Child(Spec(name, [sys.executable, *how, *options], env, log=self.folder / f"{name}.log"))
        self.workers.append(child)
        if wait:
            self.wait_for(child)
            assert crash_at or bool(children(child.process.pid)) == (pool == "prefork"), (
                "the pool that was asked for"
            )
        return child

    def wait_for(self, child):
        pids = f":{child.process.pid}/"
        until(
            lambda: child.process.poll() is not None or any(pids in seen for seen in workers_seen(self.ledger)),
            seconds=60,
            what=f"the start of {child.spec.name}",
        )

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
            open_ones = [deletion for deletion in self.deletions() if not deletion.state.is_final]
            return not open_ones

        try:
            until(over, seconds=seconds, what="the end of all deletions")
        except Exception:
            raise AssertionError([(d.finetune_id, d.state, d.message) for d in open_ones]) from None

    def assert_the_key_is_nowhere(self):
        files = [path for path in self.folder.rglob("*") if path.is_file()]
        assert [path for path in files if KEY.encode() in path.read_bytes()] == []


def children(pid):
    """The processes that a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


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


class Proxy:
    """A TCP proxy that can stop forwarding without closing anything: a silent partition."""

    def __init__(self, target):
        self.target = target
        self.flowing = threading.Event()
        self.flowing.set()
        self._closing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
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
                far = socket.create_connection(self.target)
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source, sink):
        with suppress(OSError), closing(source), closing(sink):
            while data := source.recv(65_536):
                self.flowing.wait()
                if self._closing:
                    return
                sink.sendall(data)


__all__ = ["CALL_SECONDS", "LEASE_SECONDS", "LONG", "Proxy", "System", "assert_true", "started"]
