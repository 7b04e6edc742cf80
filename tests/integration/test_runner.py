"""Runners over a real Redis and the simulated API: order, fairness between accounts, stops."""

import threading
from contextlib import contextmanager
from datetime import timedelta

import pytest

from tasks.api.client import BflClient, Timeouts
from tasks.deletion import Rules
from tasks.ledger.queries import get
from tasks.ledger.store import Ledger
from tasks.ledger.types import Terms
from tasks.runner import Runners
from tests.conftest import accept, asking, register
from tests.processes import KEY, until
from worker.sandbox.api import Sandbox

TIMEOUTS = Timeouts(timedelta(seconds=1), timedelta(seconds=2), timedelta(seconds=3))


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.01) as sandbox:
        yield sandbox


@pytest.fixture
def ledger(redis_client):
    """On Redis's own clock."""
    return register(Ledger(redis_client, Terms(call_deadline=timedelta(seconds=3))))


def runners(ledger, api, *accounts, threads, wake=lambda account: None):
    clients = {account: BflClient(api.url, KEY, TIMEOUTS) for account in accounts or ["default"]}
    return Runners(
        ledger=ledger, clients=clients, rules=Rules(), threads=threads, wake=wake, write_results=lambda ids: None,
        stopping=threading.Event(),
    )  # fmt: skip


class Woken:
    """Wake-ups start runners in threads of their own, as Celery's pool does."""

    def __init__(self):
        self.runners: Runners | None = None
        self.threads: list[threading.Thread] = []

    def __call__(self, account):
        assert self.runners
        thread = threading.Thread(target=self.runners.run, args=(account,), kwargs={"begun": True})
        thread.start()  # before it is in the list: it may be joined at once
        self.threads.append(thread)


@contextmanager
def working(ledger, api, *accounts, threads):
    wake = Woken()
    wake.runners = runners(ledger, api, *accounts, threads=threads, wake=wake)
    try:
        yield wake.runners, wake
    finally:
        wake.runners.stopping.set()
        while wake.threads:
            wake.threads.pop().join(timeout=30)


def asked_for(ledger, api, count, prefix="ft", **fields):
    requests = [asking(f"{prefix}-{n:03}", id=f"{prefix}-{n:03}", **fields) for n in range(count)]
    for request in requests:
        api.create(request.finetune_id)
    accept(ledger, *requests)
    return [request.id for request in requests]


def states(ledger, ids):
    return {get(ledger, id_).state for id_ in ids}


def test_one_runner_carries_out_all_that_is_due(ledger, api):
    ids = asked_for(ledger, api, 20)
    runners(ledger, api, threads=1).run("default", begun=True)
    assert (states(ledger, ids), api.finetunes(), len(api.deletes())) == ({"deleted"}, [], 20)
    assert ledger.redis.zcard(ledger.keys.leases("default", "single")) == 0


def test_one_wake_up_brings_as_many_runners_as_there_are_threads(ledger, api):
    ids = asked_for(ledger, api, 60)
    with working(ledger, api, threads=4) as (_, wake):
        wake("default")
        until(lambda: not api.finetunes(), what="all are deleted", seconds=60)
        until(lambda: states(ledger, ids) == {"deleted"}, what="all are final", seconds=60)
    assert max(call["at_once"] for call in api.journal()) == 4


def test_more_than_the_threads_never_run_at_once(ledger, api):
    asked_for(ledger, api, 40)
    with working(ledger, api, threads=2) as (_, wake):
        for _ in range(8):
            wake("default")
        until(lambda: not api.finetunes(), what="all are deleted", seconds=60)
    assert max(call["at_once"] for call in api.journal()) == 2


@pytest.mark.parametrize("threads", [1, 2])
def test_an_account_gets_a_thread_while_another_has_much_to_do(ledger, api, threads):
    register(ledger, "other")
    many = asked_for(ledger, api, 400)
    with working(ledger, api, "default", "other", threads=threads) as (_, wake):
        wake("default")
        until(lambda: len(api.deletes()) > 10, what="the first account has all threads", seconds=60)
        # When something is asked for in the other account, and one wake-up is sent,
        (theirs,) = asked_for(ledger, api, 1, prefix="theirs", account="other")
        wake("other")
        # then it is not behind the rest of the first account's work.
        until(lambda: get(ledger, theirs).state == "deleted", what="the other account's deletion", seconds=3)
        assert get(ledger, many[-1]).state == "queued"
        until(lambda: len(api.deletes()) > 50, what="the first account goes on", seconds=60)


def test_a_single_request_does_not_wait_behind_bulk(ledger, api):
    asked_for(ledger, api, 200, bulk=True)
    with working(ledger, api, threads=2) as (_, wake):
        wake("default")
        until(lambda: len(api.deletes()) > 10, what="bulk is under way", seconds=60)
        before = len(api.deletes())
        asked_for(ledger, api, 1, prefix="single")
        until(lambda: api.deletes("single-000"), what="the single request's call", seconds=8)
    names = [call["finetune_id"] for call in api.deletes()[before:]]
    assert names.index("single-000") <= 4


def test_an_api_that_deletes_another_one_is_not_asked_again(ledger, api):
    asked_for(ledger, api, 30)
    api.fault("wrong_id", skip=8)
    runners(ledger, api, threads=1).run("default", begun=True)
    assert [call["fault"] for call in api.deletes()][8:] == ["wrong_id"]
    assert ledger.redis.hlen(ledger.keys.paused) == 1


def test_first_observations_end_with_the_first_429(ledger, api):
    ledger = register(Ledger(ledger.client, Terms(first_observation_after=timedelta(0))))
    asked_for(ledger, api, 60, delay=timedelta(hours=1))
    api.fault("status", call="finetune_details", status=429, headers={"Retry-After": "60"}, times=None, skip=20)
    with working(ledger, api, threads=2) as (_, wake):
        wake("default")
        until(lambda: any(call["http_status"] == 429 for call in api.journal()), what="the first 429", seconds=60)
        until(lambda: all(not one.is_alive() for one in wake.threads), what="the runners end", seconds=60)
    assert 1 <= sum(call["http_status"] == 429 for call in api.journal()) <= 2


def test_a_stop_lets_the_call_end_and_leaves_the_rest_as_it_is(ledger, api):
    ids = asked_for(ledger, api, 20)
    api.fault("slow", seconds=1, skip=3)
    woken: list[str] = []
    ours = runners(ledger, api, threads=1, wake=woken.append)
    thread = threading.Thread(target=ours.run, args=("default",), kwargs={"begun": True})
    thread.start()
    until(lambda: len(api.deletes()) == 4, what="the slow call", seconds=60)
    ours.stopping.set()
    thread.join(timeout=10)
    assert not thread.is_alive()
    found = [get(ledger, id_) for id_ in ids]
    assert sorted(one.state for one in found) == ["deleted"] * 4 + ["queued"] * 16
    assert all(not one.attempts for one in found if one.state == "queued")
    assert woken[-1] == "default"


def test_a_stop_interrupts_a_wait_for_the_next_try(ledger, api):
    (id_,) = asked_for(ledger, api, 1)
    api.fault("status", status=408, headers={"Retry-After": "4"}, times=None)
    ours = runners(ledger, api, threads=1)
    thread = threading.Thread(target=ours.run, args=("default",), kwargs={"begun": True})
    thread.start()
    until(api.deletes, what="the first attempt", seconds=60)
    ours.stopping.set()
    thread.join(timeout=2)
    assert not thread.is_alive()
    assert get(ledger, id_).state == "queued"
