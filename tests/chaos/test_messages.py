"""Messages lost, doubled, or never sent: the ledger is the queue, so nothing is lost and nothing runs twice."""

import signal
import threading
import time

from tasks.queries import get
from tests.chaos.harness import LEASE_SECONDS, System, assert_true
from tests.chaos.test_crashes import ask
from tests.processes import KEY, janitor, producer, until


def test_a_wake_up_lost_after_it_left_the_queue_is_made_up_for(system, api):
    # Given a wake-up that was sent, and was lost with the worker that took it.
    api.create("ft")
    doomed = system.start_worker()
    doomed.process.send_signal(signal.SIGSTOP)
    (id_,) = ask(system, "ft")
    # Its BRPOP may have taken the wake-up while it stood still; if not, it is lost here.
    system.store.delete("wakeups")
    system.kill(doomed)
    system.start_worker()
    until(lambda: get(system.ledger, id_).state.is_final, seconds=20, what="the deletion")
    assert len(api.deletes("ft")) == 1


def test_the_brokers_lists_deleted_outright_lose_nothing_that_was_accepted(system, api):
    names = [f"ft-{n}" for n in range(40)]
    for name in names:
        api.create(name)
    ask(system, *names)
    system.start_worker()
    for _ in range(10):
        system.store.delete("wakeups", "deletions", "unacked", "unacked_index", "_kombu.binding.wakeups")
        threading.Event().wait(0.1)
    system.wait_until_final(30)
    assert len(api.deletes()) == len(names)
    assert api.finetunes() == []


def test_a_wake_up_that_cannot_be_sent_is_only_a_delay(system, api):
    # Given a queue that is no list, so that every publish of a wake-up fails.
    api.create("ft")
    system.start_worker()
    system.store.delete("wakeups")
    system.store.set("wakeups", "in the way")
    (id_,) = ask(system, "ft")
    threading.Event().wait(2)
    assert not get(system.ledger, id_).state.is_final
    system.store.delete("wakeups")
    until(lambda: get(system.ledger, id_).state.is_final, seconds=30, what="the deletion")
    assert len(api.deletes("ft")) == 1


def test_one_message_delivered_20_times_to_two_workers_is_one_deletion(system, api):
    api.create("ft")
    app = producer(system.url)
    result = app.send_task("finetunes.delete", ["ft"], queue="deletions")
    (raw,) = system.store.lrange("deletions", 0, -1)
    system.store.rpush("deletions", *[raw] * 19)
    system.start_worker(wait=False)
    system.start_worker()
    assert result.get(timeout=20)["state"] == "deleted"
    until(lambda: system.store.llen("deletions") == 0, seconds=20, what="the end of the messages")
    # And once more, after the name was used again: an old message means the old finetune.
    api.create("ft")
    system.store.rpush("deletions", *[raw] * 5)
    until(lambda: system.store.llen("deletions") == 0, seconds=20, what="the end of the old messages")
    (deletion,) = system.deletions()
    assert [request.id for request in deletion.requests] == [result.id]
    assert result.get(timeout=5)["state"] == "deleted"
    assert (len(api.deletes()), api.finetunes()) == (1, ["ft"])


def test_wake_ups_do_not_flood_the_broker_while_nobody_takes_them(system, api):
    # Given much to do, a worker that dispatches, and no permit that could be had.
    names = [f"ft-{n}" for n in range(500)]
    ask(system, *names)
    janitor(system.env, "pause")
    system.start_worker()
    janitor(system.env, "resume")
    store, most = system.store, 0
    for _ in range(40):
        most = max(most, store.llen("wakeups") + store.hlen("unacked"))
        threading.Event().wait(0.1)
    assert most <= 5
    system.wait_until_final(LEASE_SECONDS + 60)
    assert {deletion.state for deletion in system.deletions()} == {"not_found"}
    assert_true(system.deletions(), api)


def test_a_message_that_waited_for_the_first_worker_of_its_account_is_accepted(api, tmp_path):
    api.create("ft")
    with System(api, tmp_path, BFL_API_KEY_EU=KEY, BFL_API_URL_EU=api.url) as system:
        result = producer(system.url).send_task("finetunes.delete", ["ft"], {"account": "eu"}, queue="deletions")
        system.start_worker()
        assert result.get(timeout=20)["account"] == "eu"


def test_a_worker_without_an_accounts_key_leaves_its_work_to_the_one_that_has_it(api, tmp_path):
    names = [f"ft-{n}" for n in range(30)]
    for name in names:
        api.create(name)
    with System(api, tmp_path, BFL_API_KEY_EU=KEY, BFL_API_URL_EU=api.url) as system:
        system.start_worker()
        system.env = {name: value for name, value in system.env.items() if not name.endswith("_EU")}
        system.start_worker()
        began = time.monotonic()
        janitor(system.env, "delete", *names, "--account", "eu")
        system.wait_until_final(60)
        assert time.monotonic() - began < 30
    assert api.finetunes() == []
