"""Killed at each point: the true state all the same, within lease plus 10 seconds, and one delete at most."""

import random
import signal
from contextlib import contextmanager
from functools import partial

import pytest

from tasks.ledger.queries import get
from tests.chaos.harness import (
    CALL_SECONDS,
    FIRST_SECONDS,
    LEASE_SECONDS,
    LONG,
    RECLAIM_SECONDS,
    System,
    ask,
    ask_later,
    assert_true,
    create,
    more_deletes,
    observe_now,
    wait_final,
    wait_observed,
)
from tests.processes import producer, until
from worker.local.supervise import NotReady

# By the point at which a worker dies: how many delete calls the API sees in all, and the evidence on record.
DELETIONS = {
    "after the claim": (1, "response"),
    "during the observation": (1, "response"),
    "after the observation": (1, "response"),
    "before the mark": (1, "response"),
    "after the mark": (1, "response"),
    "before the attempt": (1, "response"),
    "after the API applied it": (1, "read-back"),
    "in a wait between attempts": (2, "response"),
    "before it goes back to wait": (2, "response"),
    "after it went back to wait": (2, "response"),
    "before the finish": (1, "read-back"),
    "after the finish": (1, "response"),
    "in maintenance": (1, "response"),
}
OBSERVATIONS = ("after the claim to observe", "before the observation is kept", "after the observation is kept")


@contextmanager
def dying(api, folder, points):
    """A system in which a worker for each point is up, with a key for one account alone: p0, p1 and so on."""
    accounts = [f"p{n}" for n in range(len(points))]
    # A wait of 2 s is a long one here: it takes place in the ledger.
    with System(api, folder, accounts, JANITOR_RETRY_BUDGET="1s") as system:
        pairs = zip(points, accounts, strict=True)
        workers = [system.start_worker(crash_at=point, account=name, wait=False) for point, name in pairs]
        system.wait_for(*workers)
        yield system, dict(zip(accounts, workers, strict=True))


def assert_killed(system, workers, seconds=60, *, woken=None):
    """All of them die within this time. woken: the accounts that get wake-ups, all of them unless given."""
    app = producer(system.url)

    def are_dead():
        alive = [name for name, child in workers.items() if child.process.poll() is None]
        # A wake-up goes to any worker, and here only one has the key: so there have to be many. Redis serves its
        # clients in turn: in a fixed order each worker would get the same account again and again.
        for name in random.sample(alive, len(alive)):
            if woken is None or name in woken:
                app.send_task("finetunes.work", [name], queue="wakeups", ignore_result=True)
        return not alive

    until(are_dead, seconds=seconds, what="the death of all workers")
    assert {child.process.returncode for child in workers.values()} == {-signal.SIGKILL}


def test_a_worker_killed_at_any_point_of_a_deletion_leaves_the_truth(api, tmp_path):
    # Given a worker for each point, and a deletion for each
    with dying(api, tmp_path, DELETIONS) as (system, workers):
        ids = []
        for point, name in zip(DELETIONS, workers, strict=True):
            api.create(name)
            if "wait" in point:
                headers = {} if "between" in point else {"Retry-After": "2"}
                api.fault("status", finetune_id=name, status=408, headers=headers)
            # Maintenance finds what becomes due; what is due at once is woken by the command.
            ids.append(ask_later(system, name, "1s" if "maintenance" in point else "0s", account=name))
        # When they are dead and one worker takes over
        woken = {name for point, name in zip(DELETIONS, workers, strict=True) if "maintenance" not in point}
        assert_killed(system, workers, woken=woken)
        system.start_worker()
        system.wait_until_final(RECLAIM_SECONDS + 45)  # a back-off takes up to half a minute
        # Then each is deleted once, and the record says how that is known.
        deletions = [get(system.ledger, id_) for id_ in ids]
        found = {
            point: (len(api.deletes(deletion.finetune_id)), str(deletion.evidence))
            for point, deletion in zip(DELETIONS, deletions, strict=True)
        }
        assert found == DELETIONS
        assert {deletion.state for deletion in deletions} == {"deleted"}
        assert_true(deletions, api, permits=24)


def test_a_worker_killed_at_any_point_of_a_first_observation_leaves_it_to_another(api, tmp_path):
    # Given deletions that are due in an hour
    with dying(api, tmp_path, OBSERVATIONS) as (system, workers):
        ids = []
        for name in workers:
            api.create(name)
            ids.append(ask_later(system, name, "1h", account=name))
            observe_now(system, ids[-1], account=name)
        # When their workers die in their first observations, and another one takes over
        assert_killed(system, workers, FIRST_SECONDS + 30)
        system.start_worker()
        # Then each is observed and waits as before.
        for name, id_ in zip(workers, ids, strict=True):
            assert wait_observed(system, id_, account=name).incarnation
        until(lambda: {d.state for d in system.deletions()} == {"scheduled"}, seconds=60, what="waiting")
        assert api.deletes() == []


def test_a_frozen_worker_makes_no_call_that_was_not_checked(system, api):
    names = create(api, "ft", 30)
    api.latency_seconds = 0.3
    frozen = system.start_worker()
    ask(system, *names)
    until(lambda: len(api.deletes()) > 4, seconds=60, what="the first deletes")
    frozen.process.send_signal(signal.SIGSTOP)
    system.start_worker()
    system.wait_until_final(LEASE_SECONDS + 40)
    done = len(api.journal())
    frozen.process.send_signal(signal.SIGCONT)
    # Given time to do wrong: as much as its calls could take.
    with pytest.raises(NotReady):
        until(lambda: len(api.journal()[done:]) > 16, seconds=CALL_SECONDS, what="a wave of calls")
    late = [call for call in api.journal()[done:] if call["call"] == "delete_finetune"]
    assert len({call["finetune_id"] for call in late}) == len(late), "at most the one call past its check"
    assert not [call for call in late if call["effective"]]
    assert {deletion.state for deletion in system.deletions()} == {"deleted"}
    assert api.finetunes() == []


def test_a_stop_under_load_is_bounded_and_loses_nothing(system, api):
    names = create(api, "ft", 120)
    api.fault("slow", times=None, seconds=0.4)
    ids = ask(system, *names)
    for _ in range(5 if LONG else 2):
        child = system.start_worker()
        before = len(api.deletes())
        until(partial(more_deletes, api, before), seconds=60, what="some work")
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(CALL_SECONDS + 5) == 0
        system.workers.remove(child)
    running = [deletion for deletion in system.deletions() if deletion.state == "running"]
    assert running == [], "what was held is handed back, no lease has to end"
    api.heal()
    system.start_worker()
    system.wait_until_final(60)
    assert {get(system.ledger, id_).state for id_ in ids} == {"deleted"}
    assert {len(deletion.attempts) for deletion in system.deletions()} == {1}
    assert len(api.deletes()) == len(names)
    assert_true(system.deletions(), api)


@pytest.mark.long  # five leases long
@pytest.mark.timeout(400)
def test_five_crashes_in_its_call_are_a_case_for_review(system, api):
    api.create("ft")
    (id_,) = ask(system, "ft")
    for _ in range(5):
        crashing = system.start_worker(crash_at="before the attempt", wait=False)
        assert crashing.process.wait(LEASE_SECONDS + 30) == -signal.SIGKILL
    system.start_worker()
    deletion = wait_final(system, id_)
    assert (deletion.state, len(deletion.attempts)) == ("review", 5)
    assert "5 workers were lost" in (deletion.message or "")
    assert api.deletes() == []
