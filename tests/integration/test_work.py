"""The loop of a wake-up, over a real Redis and real HTTP: what claimed-ahead work meets before its turn."""

import threading
import time
from contextlib import contextmanager
from datetime import timedelta

import pytest

from tasks.bfl import BflClient
from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.outcomes import Rules
from tasks.queries import get
from tasks.records import State
from tasks.work import Crew
from tests.conftest import asking
from tests.processes import KEY, until
from worker.sandbox import Sandbox
from worker.stopping import Stopping


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.01) as sandbox:
        yield sandbox


def crew(ledger, api, *accounts, threads, slots=1):
    clients = {account: BflClient(api.url, KEY) for account in accounts or ["default"]}
    return Crew(
        ledger=ledger, clients=clients, rules=Rules(), owner="worker", threads=threads, answer=lambda _: None,
        stopping=Stopping(), slots=slots,
    )  # fmt: skip


def asked_for(ledger, api, count, **fields):
    for n in range(count):
        api.create(f"ft-{n:03}")
    ledger.accept([asking(f"ft-{n:03}", id=f"r-{n:03}", **fields) for n in range(count)])


@contextmanager
def working(crew, account="default"):
    thread = threading.Thread(target=crew.work, args=(account,))
    thread.start()
    try:
        yield thread
    finally:
        crew.stopping.set()
        thread.join(timeout=30)


def test_first_looks_claimed_ahead_end_with_the_first_429(ledger, api):
    asked_for(ledger, api, 60, delay=timedelta(hours=1))
    api.fault("status", call="finetune_details", status=429, headers={"Retry-After": "60"}, times=None, skip=20)
    crew(ledger, api, threads=2).work("default")
    refused = [call for call in api.journal() if call["http_status"] == 429]
    assert 1 <= len(refused) <= 2


def test_a_first_look_that_comes_late_is_not_begun(ledger, api):
    # Given looks claimed ahead, and a first one that takes longer than a claim holds.
    asked_for(ledger, api, 40, delay=timedelta(hours=1))
    api.fault("slow", call="finetune_details", seconds=1.5, skip=5)
    worker = crew(ledger, api, threads=1)
    with working(worker):
        until(lambda: len(api.journal()) > 5, what="the slow call is under way", seconds=10)
        # When the account is parked meanwhile, then nothing that was claimed before is called.
        ledger.account("default", "park", reason="as the test says", probe_ms=60_000)
        until(lambda: not worker._shifts, what="the shift is over", seconds=10)
    assert len(api.journal()) == 6
    assert ledger.redis.zcard("janitor:permits:default") == 0


def test_an_api_that_deletes_another_one_is_not_asked_again_by_that_thread(ledger, api):
    asked_for(ledger, api, 30)
    api.fault("wrong_id", skip=8)
    crew(ledger, api, threads=1).work("default")
    assert [call["fault"] for call in api.deletes()][8:] == ["wrong_id"]
    assert ledger.redis.hlen("janitor:paused") == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_an_account_gets_a_thread_while_another_has_much_to_do(ledger, api, threads):
    ledger.account("other", "register", max_concurrent=8)
    asked_for(ledger, api, 400)
    api.create("theirs")
    ledger.accept([asking("theirs", id="theirs", account="other")])
    worker = crew(ledger, api, "default", "other", threads=threads)
    with working(worker):
        until(lambda: len(api.deletes()) > 10, what="the first account has all threads", seconds=10)

        # When the other's wake-ups come, as dispatch sends them
        def woken():
            worker.work("other")
            return get(ledger, "theirs").state is State.DELETED

        until(woken, what="the other account's deletion is done", seconds=3)
        assert get(ledger, "r-399").state is State.QUEUED


def test_a_single_request_does_not_wait_behind_bulk_that_was_claimed_ahead(ledger, api):
    # Given bulk work claimed ahead at an API that is quick, and then slow,
    asked_for(ledger, api, 200, bulk=True)
    api.create("single")
    worker = crew(ledger, api, threads=2)
    with working(worker):
        until(
            lambda: any(len(shift.ready) > 4 for shift in worker._shifts), what="bulk is claimed ahead", seconds=10
        )
        api.fault("slow", seconds=1.5, times=None)
        before = len(api.deletes())
        # when a single request comes, then it waits for the calls under way.
        ledger.accept([asking("single")])
        until(lambda: api.deletes("single"), what="the single request's call", seconds=8)
    names = [call["finetune_id"] for call in api.deletes()[before:]]
    assert names.index("single") <= 4


@pytest.mark.parametrize(("slots", "more_left"), [(1, True), (2, False)])
def test_a_wakeup_ends_in_time_only_where_others_may_wait_for_its_slot(ledger, api, monkeypatch, slots, more_left):
    monkeypatch.setattr("tasks.work.WORK_FOR", timedelta(seconds=0.2))
    asked_for(ledger, api, 80)
    assert crew(ledger, api, threads=2, slots=slots).work("default") is more_left
    assert (len(api.deletes()) < 80) is more_left


class Counting(Ledger):
    """A ledger that counts how often it is asked for work."""

    claims = 0

    def claim(self, *args, **kwargs):
        self.claims += 1
        return super().claim(*args, **kwargs)


def test_idle_threads_ask_ever_more_rarely_while_others_have_the_permits(redis_client, ledger, api):
    # Given all permits but one with others, for a minute, and a slow call under the one.
    asked_for(ledger, api, 20)
    others = {f"other-{n}": (time.time() + 60) * 1000 for n in range(7)}
    redis_client.zadd("janitor:permits:default", others)
    api.fault("slow", call="finetune_details", seconds=2)
    counting = Counting(redis_client)
    with working(crew(counting, api, threads=4)):
        until(api.deletes, what="the slow call is over", seconds=10)
        assert counting.claims < 20


class Leaving(Ledger):
    """A ledger that cannot be written any more once `away` is set."""

    away = False

    def conclude(self, outcomes):
        if self.away:
            raise LedgerUnavailable("as the test says")
        return super().conclude(outcomes)


def test_a_stop_while_redis_is_away_waits_once_and_not_for_each_group(redis_client, ledger, api):
    leaving = Leaving(redis_client)
    asked_for(ledger, api, 400)
    worker = crew(leaving, api, threads=8)
    with working(worker) as thread:
        until(
            lambda: any(len(shift.ready) > 20 for shift in worker._shifts),
            what="much is claimed ahead",
            seconds=10,
        )
        leaving.away = True
        worker.stopping.set()
        began = time.monotonic()
        thread.join(timeout=30)
    assert time.monotonic() - began < 6


def test_a_stop_hands_back_what_is_not_begun_before_the_calls_under_way_end(ledger, api):
    asked_for(ledger, api, 100)
    api.fault("slow", seconds=3, times=None, skip=10)
    worker = crew(ledger, api, threads=1)
    with working(worker):
        until(
            lambda: len(api.deletes()) == 11 and worker._shifts[0].ready,
            what="a slow call, and more behind it",
            seconds=10,
        )
        worker.stopping.set()
        until(lambda: ledger.redis.zcard("janitor:leases:default") == 1, what="all else is handed back", seconds=2)
    assert get(ledger, "r-099").attempts == ()
