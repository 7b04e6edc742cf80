"""Redis killed, cut off, rolled back: the workers go on by themselves, and what is finished stays finished."""

import shutil
import socket
import threading
from functools import partial

import pytest

from tasks.queries import get
from tests.chaos.harness import LEASE_SECONDS, LONG, Proxy, System, assert_true
from tests.chaos.test_crashes import ask, more_deletes
from tests.processes import until
from worker import embedded
from worker.supervise import Child, Spec


@pytest.mark.parametrize("pool", ["threads", pytest.param("prefork", marks=pytest.mark.long)])
def test_redis_killed_in_the_midst_of_work(system, api, pool):
    names = [f"ft-{n}" for n in range(150)]
    for name in names:
        api.create(name)
    system.start_worker(pool=pool)
    ids = ask(system, *names)
    for _ in range(3):
        until(partial(more_deletes, api, len(api.deletes()) + 5), seconds=60, what="some deletes")
        system.kill_redis()
        threading.Event().wait(1)
        system.start_redis()
    system.wait_until_final(LEASE_SECONDS + 60)
    assert {get(system.ledger, id_).state for id_ in ids} == {"deleted"}
    assert_true(system.deletions(), api)
    assert len([call for call in api.deletes() if call["effective"]]) == len(names)


def test_what_was_in_hand_when_redis_went_is_concluded_when_it_is_back(system, api):
    # Given calls that end while Redis is away, for longer than its clients try again.
    names = [f"ft-{n}" for n in range(6)]
    for name in names:
        api.create(name)
        api.fault("slow", finetune_id=name, seconds=0.8)
    system.start_worker()
    ids = ask(system, *names)
    until(lambda: len(api.deletes()) == 6, seconds=20, what="the calls")
    system.kill_redis()
    threading.Event().wait(LEASE_SECONDS + 4)
    system.start_redis()
    system.wait_until_final(LEASE_SECONDS + 30)
    assert {get(system.ledger, id_).state for id_ in ids} == {"deleted"}
    assert len(api.deletes()) == 6


def test_a_silent_partition_between_worker_and_redis(tmp_path, api):
    with OverTcp(api, tmp_path) as system, Proxy(("127.0.0.1", system.port)) as proxy:
        names = [f"ft-{n}" for n in range(120)]
        for name in names:
            api.create(name)
        api.latency_seconds = 0.2
        system.start_worker(url=f"redis://127.0.0.1:{proxy.port}/0")
        ids = ask(system, *names)
        until(lambda: len(api.deletes()) > 10, seconds=30, what="the first deletes")
        proxy.flowing.clear()
        threading.Event().wait(60 if LONG else 6)
        seen = len(api.deletes())
        proxy.flowing.set()
        # By itself: nobody restarts anything. Celery's own reconnection takes up to its socket timeout more.
        system.wait_until_final(LEASE_SECONDS + 90)
        assert seen < len(names), "the partition came too late to show anything"
        assert {get(system.ledger, id_).state for id_ in ids} == {"deleted"}
        assert len([call for call in api.deletes() if call["effective"]]) == len(names)
        assert_true(system.deletions(), api)


def test_a_redis_that_lost_its_last_seconds_runs_no_finished_delete_again(system, api):
    names = [f"ft-{n}" for n in range(120)]
    for name in names:
        api.create(name)
    system.start_worker()
    ids = ask(system, *names)
    until(lambda: len(api.deletes()) > 20, seconds=30, what="the first deletes")
    log = system.state_dir / "appendonly.aof"
    shutil.copy(log, system.folder / "earlier.aof")
    threading.Event().wait(2)
    system.kill_redis()
    effective = {call["finetune_id"] for call in api.deletes() if call["effective"]}
    lost = len(api.deletes())
    shutil.copy(system.folder / "earlier.aof", log)
    system.start_redis()
    system.wait_until_final(LEASE_SECONDS + 60)
    again = [call["finetune_id"] for call in api.deletes()[lost:]]
    # What was in flight may be called once more; what was finished is looked at, found gone, and left alone.
    assert len(set(again) & effective) <= 8
    states = {get(system.ledger, id_).state for id_ in ids}
    assert states <= {"deleted", "not_found"}
    assert api.finetunes() == []
    assert len([call for call in api.deletes() if call["effective"]]) == len(names)


class OverTcp(System):
    """A system whose Redis listens on a port, so that something can come between."""

    def start_redis(self):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        place = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.state_dir)]
        argv = [
            str(embedded.find_server()),
            *place,
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--save",
            "",
        ]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.env["REDIS_URL"] = self.url
        self.redis = Child(Spec("redis", argv, ready=self._answers, log=self.folder / "redis.log"))
        self.redis.wait_ready(threading.Event())

    def _answers(self):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
