"""Messages lost, doubled, or never sent: the ledger is the queue, so nothing is lost and nothing runs twice."""

import signal
import threading
import time

import pytest

from tasks.ledger.queries import get
from tests.chaos.harness import LEASE_SECONDS, LONG, System, ask, assert_true, create
from tests.processes import janitor_here, producer, until

# kombu looks each half minute for what was not acknowledged within this time.
VISIBILITY_SECONDS = 40 if LONG else 4


def test_a_wake_up_lost_after_it_left_the_queue_is_made_up_for(system, api):
    # Given a wake-up that was sent, and was lost with the worker that took it
    api.create("ft")
    doomed = system.start_worker()
    doomed.process.send_signal(signal.SIGSTOP)
    (id_,) = ask(system, "ft")
    # Its BRPOP may have taken the wake-up while it stood still; if not, it is lost here.
    system.store.delete("wakeups")
    system.kill(doomed)
    system.start_worker()
    until(lambda: get(system.ledger, id_).is_final, seconds=60, what="the deletion")
    assert len(api.deletes("ft")) == 1


def test_the_brokers_lists_deleted_outright_lose_nothing_that_was_accepted(system, api):
    names = create(api, "ft", 40)
    ask(system, *names)
    system.start_worker()
    for _ in range(10):
        system.store.delete("wakeups", "deletions", "unacked", "unacked_index", "_kombu.binding.wakeups")
        threading.Event().wait(0.1)
    system.wait_until_final(30)
    assert len(api.deletes()) == len(names)
    assert api.finetunes() == []


def test_a_wake_up_that_cannot_be_sent_is_only_a_delay(system, api):
    # Given a queue that is no list, so that every publish of a wake-up fails
    api.create("ft")
    system.start_worker()
    system.store.delete("wakeups")
    system.store.set("wakeups", "in the way")
    (id_,) = ask(system, "ft")
    threading.Event().wait(2)
    assert not get(system.ledger, id_).is_final
    system.store.delete("wakeups")
    until(lambda: get(system.ledger, id_).is_final, seconds=60, what="the deletion")
    assert len(api.deletes("ft")) == 1


def test_one_message_delivered_20_times_to_two_workers_is_one_deletion(system, api):
    api.create("ft")
    app = producer(system.url)
    result = app.send_task("finetunes.delete", ["ft"], queue="deletions")
    (raw,) = system.store.lrange("deletions", 0, -1)
    system.store.rpush("deletions", *[raw] * 19)
    system.wait_for(system.start_worker(wait=False), system.start_worker(wait=False))
    assert result.get(timeout=60)["state"] == "deleted"
    until(lambda: system.store.llen("deletions") == 0, seconds=60, what="the end of the messages")
    # And once more, after the name was used again: an old message means the old finetune.
    api.create("ft")
    system.store.rpush("deletions", *[raw] * 5)
    until(lambda: not system.store.exists("deletions", "unacked"), seconds=60, what="the end of the old messages")
    (deletion,) = system.deletions()
    assert deletion.id == result.id
    assert result.get(timeout=30)["state"] == "deleted"
    assert (len(api.deletes()), api.finetunes()) == (1, ["ft"])


def test_wake_ups_do_not_flood_the_broker_while_nobody_takes_them(system, api):
    # Given much to do, and a worker that may start at any moment
    names = [f"ft-{n}" for n in range(500 if LONG else 200)]
    ask(system, *names)
    janitor_here(system.env, "pause")
    system.start_worker()
    janitor_here(system.env, "resume")
    store, most = system.store, 0
    for _ in range(40 if LONG else 20):
        most = max(most, store.llen("wakeups"))
        threading.Event().wait(0.1)
    assert most <= 2
    system.wait_until_final(LEASE_SECONDS + 60)
    assert {deletion.state for deletion in system.deletions()} == {"not_found"}
    assert_true(system.deletions(), api)


@pytest.mark.long  # kombu looks each half minute for what was not acknowledged
def test_a_message_whose_worker_died_before_it_was_accepted_comes_again(api, tmp_path):
    api.create("ft")
    with System(api, tmp_path, JANITOR_VISIBILITY_TIMEOUT=f"{VISIBILITY_SECONDS}s") as system:
        crashing = system.start_worker(crash_at="before the accept")
        result = producer(system.url).send_task("finetunes.delete", ["ft"], queue="deletions")
        assert crashing.process.wait(20) == -signal.SIGKILL
        assert (system.deletions(), system.store.hlen("unacked")) == ([], 1)
        system.start_worker()
        assert result.get(timeout=VISIBILITY_SECONDS + 45)["state"] == "deleted"
    assert len(api.deletes("ft")) == 1


def test_a_message_that_waited_for_the_first_worker_of_its_account_is_accepted(api, tmp_path):
    api.create("ft")
    with System(api, tmp_path, ["eu"]) as system:
        result = producer(system.url).send_task("finetunes.delete", ["ft"], {"account": "eu"}, queue="deletions")
        system.start_worker()
        assert result.get(timeout=60)["account"] == "eu"


@pytest.mark.long  # a wake-up that the wrong worker takes costs seconds
def test_a_worker_without_an_accounts_key_leaves_its_work_to_the_one_that_has_it(api, tmp_path):
    names = create(api, "ft", 30)
    with System(api, tmp_path, ["eu", "us"]) as system:
        workers = [system.start_worker(account=name, wait=False) for name in ("eu", "us")]
        system.wait_for(*workers)
        began = time.monotonic()
        ask(system, *names, account="eu")
        system.wait_until_final(60)
        assert time.monotonic() - began < 30
    assert api.finetunes() == []
