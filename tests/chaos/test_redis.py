"""Redis killed, cut off, rolled back, turned into a replica: the workers go on, and what is finished stays so."""

import shutil
import threading
from functools import partial

import redis

from tasks.ledger.queries import get
from tests.chaos.harness import (
    LEASE_SECONDS,
    LONG,
    OverTcp,
    Proxy,
    ask,
    assert_true,
    create,
    more_deletes,
    redis_on,
)
from tests.processes import free_ports, producer, until
from worker.local.supervise import started


def states(system, ids):
    return {get(system.ledger, id_).state for id_ in ids}


def effective(api):
    return [call["finetune_id"] for call in api.deletes() if call["effective"]]


def test_redis_killed_in_the_midst_of_work(system, api):
    names = create(api, "ft", 150)
    system.start_worker()
    ids = ask(system, *names)
    for _ in range(3):
        until(partial(more_deletes, api, len(api.deletes()) + 5), seconds=60, what="some deletes")
        system.kill_redis()
        threading.Event().wait(1)
        system.start_redis()
    system.wait_until_final(LEASE_SECONDS + 60)
    assert states(system, ids) == {"deleted"}
    assert_true(system.deletions(), api)
    assert sorted(effective(api)) == sorted(names)


def test_what_was_in_hand_when_redis_went_is_finished_when_it_is_back(system, api):
    # Given calls that end while Redis is away, for longer than its clients try again
    names = create(api, "ft", 6)
    for name in names:
        api.fault("slow", finetune_id=name, seconds=0.8)
    system.start_worker()
    ids = ask(system, *names)
    until(lambda: len(api.deletes()) == 6, seconds=60, what="the calls")
    system.kill_redis()
    threading.Event().wait(LEASE_SECONDS + 4)
    system.start_redis()
    system.wait_until_final(LEASE_SECONDS + 30)
    assert states(system, ids) == {"deleted"}
    assert len(api.deletes()) == 6


def test_a_silent_partition_between_worker_and_redis(tmp_path, api):
    with OverTcp(api, tmp_path) as system, Proxy(("127.0.0.1", system.port)) as proxy:
        names = create(api, "ft", 120)
        api.latency_seconds = 0.2
        system.start_worker(url=f"redis://127.0.0.1:{proxy.port}/0")
        ids = ask(system, *names)
        until(lambda: len(api.deletes()) > 10, seconds=60, what="the first deletes")
        proxy.flowing.clear()
        threading.Event().wait(60 if LONG else 6)
        seen = len(api.deletes())
        proxy.flowing.set()
        # By itself: nobody restarts anything. Celery's own reconnection takes up to its socket timeout more.
        system.wait_until_final(LEASE_SECONDS + 90)
        assert seen < len(names), "the partition came too late to show anything"
        assert states(system, ids) == {"deleted"}
        assert sorted(effective(api)) == sorted(names)
        assert_true(system.deletions(), api)


def test_a_redis_that_lost_its_last_seconds_runs_no_finished_delete_again(system, api):
    names = create(api, "ft", 120)
    system.start_worker()
    ids = ask(system, *names)
    until(lambda: len(api.deletes()) > 20, seconds=60, what="the first deletes")
    data = system.state_dir / "appendonlydir"  # one file until Redis 7
    data = data if data.exists() else system.state_dir / "appendonly.aof"
    copy = shutil.copytree if data.is_dir() else shutil.copy
    copy(data, system.folder / "earlier")
    threading.Event().wait(2)
    system.kill_redis()
    done, lost = set(effective(api)), len(api.deletes())
    shutil.rmtree(data) if data.is_dir() else data.unlink()
    copy(system.folder / "earlier", data)
    system.start_redis()
    system.wait_until_final(LEASE_SECONDS + 60)
    again = {call["finetune_id"] for call in api.deletes()[lost:]}
    # What was in flight may be called once more; what was finished is observed, found gone, and left alone.
    assert len(again & done) <= 8
    assert states(system, ids) <= {"deleted", "not_found"}
    assert api.finetunes() == []
    assert sorted(effective(api)) == sorted(names)


def test_master_and_replica_swap_roles_behind_one_name(tmp_path, api):
    # Given a worker that reaches the master by a name, and deletions under way
    (other,) = free_ports(1)
    with OverTcp(api, tmp_path) as system, Proxy(("127.0.0.1", system.port)) as proxy:
        follow = ("--replicaof", "127.0.0.1", str(system.port), "--repl-diskless-sync-delay", "0")
        system.env["REDIS_URL"] = by_name = f"redis://127.0.0.1:{proxy.port}/0"
        names = create(api, "ft", 150)
        api.create("afterwards")
        first = system.start_worker()
        second = redis_on(other, tmp_path / "replica", tmp_path / "replica.log", *follow)
        with started(second), redis.Redis(port=system.port) as old, redis.Redis(port=other) as new:
            until(lambda: new.info("replication")["master_link_status"] == "up", seconds=60, what="replication")
            ids = ask(system, *names)
            until(lambda: len(api.deletes()) > 10, seconds=60, what="the first deletes")
            # When the two swap roles, and the name leads to the new master; open connections stay as they are
            old.client_pause(2000, all=False)
            assert old.wait(1, 2000) == 1
            new.replicaof("NO", "ONE")
            proxy.target = ("127.0.0.1", other)
            old.replicaof("127.0.0.1", str(other))
            seen = len(api.deletes())
            # Then the same worker goes on at the new one, also for what comes by name afterwards.
            result = producer(by_name).send_task("finetunes.delete", ["afterwards"], queue="deletions")
            system.url = by_name
            system.wait_until_final(LEASE_SECONDS + 60)
            assert result.get(timeout=30)["state"] == "deleted"
            assert states(system, ids) == {"deleted"}
            assert new.info("replication")["role"] == "master"
        assert seen < len(names), "the swap came too late to show anything"
        assert first.process.poll() is None
        assert sorted(effective(api)) == sorted([*names, "afterwards"])
