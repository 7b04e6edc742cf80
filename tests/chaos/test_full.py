"""Redis is full: nothing is lost that was accepted or sent, and workers stay alive."""

from contextlib import contextmanager

import pytest

from tests.chaos.harness import ask, create, wait_final
from tests.processes import janitor_here, producer, until

MIB = 1 << 20


@contextmanager
def almost_full(store):
    """Redis has room for messages, and too little for the ledger to accept anything."""
    store.setrange("ballast", 40 * MIB, "x")  # its value is never in a buffer, which would be given back
    store.config_set("maxmemory", store.info("memory")["used_memory"] + 2 * MIB)
    try:
        yield
    finally:
        store.config_set("maxmemory", 0)


@pytest.mark.parametrize("is_quite_full", [False, True])
def test_what_is_sent_while_redis_is_full_waits_and_is_carried_out_afterwards(system, api, is_quite_full):
    # Given deletions that were accepted before Redis became full
    names, by_name, store = create(api, "before", 20), create(api, "by-name", 10), system.store
    worker = system.start_worker()
    janitor_here(system.env, "pause")
    ids = ask(system, *names)
    with almost_full(store):
        until(lambda: "redis.full" in system.log_of(worker), seconds=60, what="seeing it")
        # When requests come in
        app = producer(system.url)
        results = [app.send_task("finetunes.delete", [name], queue="deletions") for name in by_name]
        refused = janitor_here(system.env, "delete", "one-more", "--json")
        assert (refused.returncode, "give it more memory" in refused.stderr) == (3, True)
        # Then those by name stay in their queue, and what was accepted is carried out.
        if is_quite_full:
            store.config_set("maxmemory", MIB)
        assert janitor_here(system.env, "resume").returncode == 0
        assert {wait_final(system, id_).state for id_ in ids} == {"deleted"}
        assert store.llen("deletions") == len(by_name)
        assert len(system.deletions()) == len(names)
        assert worker.process.poll() is None
    # And with room again, all of it is carried out.
    assert {result.get(timeout=30)["state"] for result in results} == {"deleted"}
    assert {wait_final(system, id_).state for id_ in ids} == {"deleted"}
    assert (worker.process.poll(), api.finetunes()) == (None, [])
    assert sorted(call["finetune_id"] for call in api.deletes()) == sorted(names + by_name)


def test_a_redis_that_fills_up_in_an_instant_loses_no_message_and_no_use(system, api):
    # Given a worker that takes messages
    api.create("ft")
    store, app = system.store, producer(system.url)
    request = message(app, store, "finetunes.delete", ["ft"], "deletions")
    use = message(app, store, "finetunes.touch", [["used"]], "touches")
    worker = system.start_worker()
    # When Redis is full from one moment to the next, with messages in it
    with store.pipeline(transaction=True) as pipe:
        pipe.lpush("deletions", request)
        pipe.lpush("touches", use)
        pipe.config_set("maxmemory", MIB)
        pipe.execute()
    until(lambda: "redis.full" in system.log_of(worker), seconds=60, what="seeing it")
    store.config_set("maxmemory", 0)
    # Then both are kept once there is room.
    until(lambda: [d.finetune_id for d in system.deletions()] == ["ft"], seconds=60, what="the request")
    used = system.ledger.keys.used("default")
    until(lambda: store.hexists(used, "used"), seconds=60, what="the use")
    assert wait_final(system, system.deletions()[0].id).state == "deleted"
    assert worker.process.poll() is None


def message(app, store, task, arguments, queue):
    """A message as it lies in its queue, and no longer there."""
    app.send_task(task, arguments, queue="template")
    raw = store.rpop("template")
    return raw.replace('"template"', f'"{queue}"')
