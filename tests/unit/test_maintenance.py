"""Maintenance: what each round does, and that nothing ends its threads."""

import json
import queue
import threading
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from structlog.testing import capture_logs

from tasks.api import errors
from tasks.errors import LedgerRefused, LedgerUnavailable
from tasks.ledger.server import free_memory
from tasks.ledger.types import Maintained, Terms
from tasks.maintenance import Maintenance
from tasks.waiting import worker_entry
from tests.conftest import accept, asking, claim

LEASE = timedelta(seconds=30)


class Clock:
    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


class FakeApi:
    def __init__(self, answer: Exception | None = None):
        self.answer = answer
        self.calls = 0

    def my_finetunes(self):
        self.calls += 1
        if self.answer:
            raise self.answer


def maintenance(ledger, *accounts, **more):
    woken: list[str] = []
    written: list[str] = []
    allowed: list[bool] = []

    def wake(account):
        woken.append(account)
        return True

    def consume(is_allowed):
        allowed.append(is_allowed)
        return 0

    usual: dict[str, Any] = {
        "ledger": ledger, "readers": dict.fromkeys(accounts or ["default"], FakeApi()), "max_concurrent": 8,
        "entry": partial(worker_entry, "host:1", "0.2"), "wake": wake, "run": None,
        "write_results": written.extend, "consume": consume, "every": timedelta(seconds=1),
        "stopping": threading.Event(), "clock": Clock(),
    }  # fmt: skip
    made = Maintenance(**{**usual, **more})
    return made, woken, written, allowed


def test_wake_ups_that_nobody_reads_do_not_pile_up(ledger, clocked):
    made, woken, *_ = maintenance(ledger)
    accept(ledger, asking())
    ledger.redis.rpush("wakeups", *["unread"] * 101)
    clocked.after(minutes=1)
    made._maintain("default")
    assert woken == []
    ledger.redis.rpop("wakeups")
    clocked.after(minutes=1)
    made._maintain("default")
    assert woken == ["default"]


def test_a_runner_starts_here_if_no_wake_up_can_be_published(clocked):
    ledger, ran = clocked(), queue.SimpleQueue()
    made, *_ = maintenance(ledger, wake=lambda account: False, run=ran.put)
    made.round()
    ledger.accept([asking()], wake=False)
    made.round()
    assert ran.get(timeout=10) == "default"


def test_a_round_registers_the_account_and_wakes_it_for_what_is_due(clocked):
    ledger = clocked()
    made, woken, _, allowed = maintenance(ledger, "default", "eu")
    made.round()
    assert woken == []
    ledger.accept([asking(account="eu")], wake=False)
    made.round()
    made.round()
    assert (woken, allowed) == (["eu"], [True] * 3)
    assert ledger.redis.zrange(ledger.keys.workers, 0, -1) == ["host:1 0.2"]


def test_the_audit_log_is_pruned_once_a_day_and_told_if_redis_does_not_allow_it(clocked):
    # Given a month of the log that is old enough, and a worker that has looked today,
    ledger, clock = clocked(audit_retention=timedelta(days=1)), Clock()
    made, *_ = maintenance(ledger, clock=clock)
    made.round()
    old = ledger.keys.audit("2026-01")
    ledger.redis.rpush(old, "{}")
    made.round()
    assert ledger.redis.exists(old)
    # when the next day comes, and Redis does not allow it, then that is told once and the round goes on;
    clock.seconds += 86_400
    ledger.redis.delete, delete = refusing, ledger.redis.delete
    with capture_logs() as logs:
        made.round()
        made.round()
    assert [(one["event"], one["log_level"]) for one in logs] == [("audit.not_pruned", "warning")]
    # when Redis allows it on the day after, then the month is gone.
    ledger.redis.delete = delete
    clock.seconds += 86_400
    made.round()
    assert not ledger.redis.exists(old)


def refusing(*_keys):
    raise LedgerUnavailable("this user has no permissions")


def test_a_result_that_nobody_wrote_is_written(clocked, ledger):
    accept(ledger, asking(id="d-1", source="name"))
    ledger.cancel(["d-1"])
    made, _, written, _ = maintenance(ledger)
    made.round()
    assert written == []
    clocked.after(seconds=6)
    made.round()
    assert written == ["d-1"]


def test_expired_leases_are_reclaimed_and_logged(clocked, ledger):
    accept(ledger, asking())
    assert claim(ledger)
    clocked.after(seconds=31)
    made, woken, *_ = maintenance(ledger)
    with capture_logs() as logs:
        made.round()
    assert [line["deletions"] for line in logs if line["event"] == "leases.reclaimed"] == [1]
    assert woken == ["default"]


class FakeLedger:
    """Only `maintain`: answers with what it is told, and keeps what it was given."""

    terms = Terms(lease=LEASE)

    def __init__(self):
        self.answer = Maintained(0, wake=False)
        self.stale: list[Any] = []

    def maintain(self, account, max_concurrent, *, stale):
        self.stale.append(list(stale))
        return self.answer


def test_what_is_seen_unchanged_for_two_lease_lengths_on_our_own_clock_counts_as_expired():
    ledger, clock = FakeLedger(), Clock()
    made, *_ = maintenance(ledger, clock=clock)
    # Given a lease that is renewed, one that is not, and a permit, all with ends far ahead on Redis's clock,
    for seconds in range(0, 90, 30):
        clock.seconds = 1000 + seconds
        dead = [("single", "dead", 10**13), ("permit", "survey", 10**13)]
        ledger.answer = Maintained(0, wake=False, leases=(("single", "kept", 10**13 + seconds), *dead))
        made._maintain("default")
    assert ledger.stale == [[]] * 3
    # when two lease lengths have passed, then the two are given as stale.
    clock.seconds = 1061
    made._maintain("default")
    assert ledger.stale[-1] == dead


@pytest.fixture
def broker(redis_client):
    """Puts reports of use where kombu has them."""

    class Broker:
        def queue(self, priority=0):
            redis_client.lpush("touches" + (f"\x06\x16{priority}" if priority else ""), "a report")

        def take(self, *, queue="touches"):
            redis_client.delete("touches")
            body = json.dumps([{"body": '"touches"'}, "", queue])
            redis_client.hset("unacked", "tag", body)

        def acknowledge(self):
            redis_client.delete("unacked")

        def clear(self):
            redis_client.delete("touches", *(f"touches\x06\x16{n}" for n in (3, 6, 9)), "unacked")

    return Broker()


@pytest.fixture
def cleaning(clocked, ledger):
    """One due cleanup; `look()` is one look a second later, and whether a claim gets the cleanup."""
    made, *_ = maintenance(ledger)
    accept(ledger, asking(source="cleanup:plan"))

    class Cleaning:
        def look(self, times=1):
            for _ in range(times):
                clocked.after(seconds=1)
                made._look_for_reports()

        def starts(self):
            return claim(ledger) is not None

    clocked.after(seconds=1)
    return Cleaning()


def test_a_cleanup_starts_after_two_looks_without_a_report(cleaning):
    assert not cleaning.starts()
    cleaning.look()
    assert not cleaning.starts()
    cleaning.look()
    assert cleaning.starts()


@pytest.mark.parametrize("priority", [0, 3, 6, 9])
def test_a_cleanup_waits_for_a_report_of_any_priority(cleaning, broker, priority):
    broker.queue(priority)
    cleaning.look(5)
    assert not cleaning.starts()
    broker.clear()
    cleaning.look(2)
    assert cleaning.starts()


def test_a_cleanup_waits_for_a_report_that_a_worker_has_taken_and_not_acknowledged(cleaning, broker):
    broker.take()
    cleaning.look(5)
    assert not cleaning.starts()
    broker.acknowledge()
    cleaning.look(2)
    assert cleaning.starts()


def test_a_report_that_one_look_cannot_see_is_seen_by_the_next(cleaning, broker):
    # Given a report that kombu has popped and not noted yet at the time of the first look,
    cleaning.look()
    broker.take()
    cleaning.look()
    assert not cleaning.starts()


def test_a_cleanup_that_became_due_after_the_first_look_waits_for_a_third(clocked, ledger):
    made, *_ = maintenance(ledger)
    accept(ledger, asking(source="cleanup:plan", delay=timedelta(milliseconds=1500)))
    accept(ledger, asking("other", source="cleanup:plan"))
    clocked.after(milliseconds=900)
    for starts in ([], ["other"], ["my-finetune"]):
        clocked.after(milliseconds=500)
        made._look_for_reports()
        found = iter(lambda: claim(ledger), None)
        assert [one.finetune_id for one in found] == starts


def test_a_report_that_comes_in_the_midst_of_a_cleanup_stops_what_is_left_of_it(cleaning, broker, ledger):
    # Given two deletions that are due, of which one has started
    accept(ledger, asking("other", source="cleanup:plan"))
    cleaning.look(2)
    assert cleaning.starts()
    # When a report comes, then the other one waits until it is handled.
    broker.take()
    cleaning.look()
    assert not cleaning.starts()
    broker.acknowledge()
    cleaning.look(2)
    assert cleaning.starts()


def test_cleanups_wait_if_nobody_looks_for_reports_any_more(clocked, cleaning, ledger):
    # Given a moment without reports that was noted, and after which nobody has looked,
    accept(ledger, asking("other", source="cleanup:plan"))
    cleaning.look(2)
    clear_at = ledger.redis.get(ledger.keys.reports_clear)
    clocked.after(seconds=6)
    # when a process that stood still writes it once more, then no cleanup starts.
    ledger.redis.set(ledger.keys.reports_clear, clear_at)
    assert not cleaning.starts()
    cleaning.look(2)
    assert cleaning.starts()


def test_a_moment_that_is_written_late_does_not_count_beside_a_report_that_was_seen(cleaning, broker, ledger):
    # Given a moment without reports, noted by a process that then stood still,
    accept(ledger, asking("other", source="cleanup:plan"))
    cleaning.look(2)
    clear_at = ledger.redis.get(ledger.keys.reports_clear)
    # and a report that another process has seen since,
    broker.take()
    cleaning.look()
    # when the first writes its moment, then no cleanup starts until the report is handled.
    ledger.redis.set(ledger.keys.reports_clear, clear_at)
    assert not cleaning.starts()
    broker.acknowledge()
    cleaning.look(2)
    assert cleaning.starts()


def test_a_report_seen_before_a_step_back_of_the_clock_holds_nothing_up(clocked, cleaning, broker, ledger):
    accept(ledger, asking("other", source="cleanup:plan"))
    broker.take()
    cleaning.look()
    broker.acknowledge()
    clocked.after(seconds=-3600)
    accept(ledger, asking("third", source="cleanup:plan"))
    cleaning.look(3)
    assert cleaning.starts()


@pytest.mark.parametrize("back", [1, 3600])
def test_a_look_of_before_a_step_back_of_the_clock_counts_for_nothing(clocked, cleaning, ledger, back):
    cleaning.look(3)
    clocked.after(seconds=-back - 3)
    accept(ledger, asking("other", source="cleanup:plan"))
    assert not cleaning.starts()


def test_other_messages_hold_no_cleanup_back(cleaning, broker):
    broker.take(queue="deletions")
    cleaning.look(2)
    assert cleaning.starts()


def test_without_a_due_cleanup_the_broker_is_not_asked(ledger):
    made, *_ = maintenance(ledger)
    made._has_reports = lambda: pytest.fail("asked")
    made._look_for_reports()


PARKED = [
    (None, True),
    (errors.KeyRefused("no", http_status=401), False),
    (errors.KeyRefused("no", http_status=403), False),
    (errors.Throttled("slower", http_status=429), True),
    (errors.Unclear("error", http_status=500), True),
    (errors.Refused("no such call", http_status=405), True),
    (errors.Unclear("the connection broke"), False),
    (errors.NotSent("refused"), False),
]


@pytest.mark.parametrize(("answer", "is_unparked"), PARKED)
def test_any_answer_but_a_refused_key_unparks_the_account(clocked, ledger, answer, is_unparked):
    ledger.account("default", "park", reason="as the test says", probe_ms=30_000)
    api = FakeApi(answer)
    made, *_ = maintenance(ledger, readers={"default": api})
    made.api_round()
    assert api.calls == 0  # it was parked just now
    clocked.after(seconds=31)
    made.api_round()
    made.api_round()
    assert api.calls == 1
    assert (ledger.redis.hget(ledger.keys.account("default"), "parked_at") is None) is is_unparked
    assert ledger.redis.zcard(ledger.keys.permits("default")) == 0


MIB = 1 << 20


@pytest.mark.parametrize(
    ("free", "allowed"),
    [
        ([None], [True]),
        ([16 * MIB], [True]),
        ([16 * MIB - 1], [False]),
        ([15 * MIB, 20 * MIB, 24 * MIB - 1, 24 * MIB, 17 * MIB], [False, False, False, True, True]),
    ],
)
def test_with_little_memory_left_no_requests_are_taken_until_there_is_half_as_much_again(
    ledger, free, allowed, monkeypatch
):
    made, _, _, told = maintenance(ledger)
    with capture_logs() as logs:
        for one in free:
            monkeypatch.setattr("tasks.maintenance.free_memory", lambda _, one=one: (one, 16 * MIB))
            made.watch_memory()
    assert told == allowed
    changes = sum(before != after for before, after in zip([True, *allowed], allowed, strict=False))
    assert [line["log_level"] for line in logs] == ["warning"] * changes


def rounds(made, count, each=lambda n: None):
    """Run the loop of a thread for so many rounds."""
    done: list[int] = []

    def once():
        each(len(done))
        done.append(1)
        if len(done) == count:
            made.stopping.set()
        made.round()

    with capture_logs() as logs:
        made._repeat("maintenance", once)
    return [line["event"] for line in logs]


def test_one_account_that_fails_stops_nothing_else_and_is_logged_once(ledger):
    made, woken, *_ = maintenance(ledger, "bad", "default", every=timedelta(0))
    usual = ledger.maintain

    def maintain(account, *given, **more):
        if account == "bad":
            raise LedgerRefused("as the test says")
        return usual(account, *given, **more)

    ledger.maintain = maintain
    ledger.accept([asking()], wake=False)

    def heal(n):
        if n == 3:
            ledger.maintain = usual

    assert rounds(made, 5, heal) == ["maintenance.fails", "maintenance.works_again"]
    assert woken == ["default"]


def test_an_outage_of_redis_is_logged_once_and_once_when_it_is_over(ledger, monkeypatch):
    made, *_ = maintenance(ledger, every=timedelta(0))

    def away(_):
        raise LedgerUnavailable("as the test says")

    def outage(n):
        monkeypatch.setattr("tasks.maintenance.free_memory", away if 1 <= n < 4 else free_memory)

    assert rounds(made, 6, outage) == ["maintenance.waits", "maintenance.goes_on"]
