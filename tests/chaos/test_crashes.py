"""Killed at each point: the true state all the same, within lease plus 10 seconds, and one delete at most."""

import os
import signal
import threading
from functools import partial

import pytest

from tasks.queries import get
from tests.chaos.crashing import POINTS
from tests.chaos.harness import CALL_SECONDS, LEASE_SECONDS, assert_true, children
from tests.processes import janitor, producer, records, until


def ask(system, *finetune_ids, **options):
    done = janitor(system.env, "delete", *finetune_ids, "--json", **options)
    assert done.returncode == 0, done.stderr
    return [record["id"] for record in records(done)]


def more_deletes(api, before):
    return len(api.deletes()) > before


# How many delete calls the API may have seen, and on what evidence it may be known.
SEEN = {
    "after the claim": (1, "response"),
    "before the look": (1, "response"),
    "after the look": (1, "response"),
    "before the call": (1, "response"),
    "after the call": (1, "read-back"),
    "before the wait": (2, "response"),
    "in the wait": (2, "response"),
    "before the conclusion": (1, "read-back"),
    "after the conclusion": (1, "response"),
}


@pytest.mark.parametrize("point", POINTS)
def test_a_worker_killed_at_any_point_leaves_the_truth(system, api, point):
    calls, evidence = SEEN[point]
    api.create("ft")
    if "wait" in point:
        api.fault("status", finetune_id="ft", status=408)
    crashing = system.start_worker(crash_at=point)
    (id_,) = ask(system, "ft")
    assert crashing.process.wait(20) == -signal.SIGKILL
    system.start_worker()
    until(lambda: get(system.ledger, id_).state.is_final, seconds=LEASE_SECONDS + 10, what="a final state")
    deletion = get(system.ledger, id_)
    assert (deletion.state, deletion.evidence) == ("deleted", evidence)
    assert [call["effective"] for call in api.deletes("ft")].count(True) == 1
    assert len(api.deletes("ft")) == calls
    assert_true([deletion], api)


@pytest.mark.parametrize("point", ["after the call", pytest.param("before the call", marks=pytest.mark.long)])
def test_a_result_asked_for_by_name_answers_after_a_crash(system, api, point):
    api.create("ft")
    crashing = system.start_worker(crash_at=point)
    result = producer(system.url).send_task("finetunes.delete", ["ft"], queue="deletions")
    assert crashing.process.wait(20) == -signal.SIGKILL
    system.start_worker()
    assert result.get(timeout=LEASE_SECONDS + 20)["state"] == "deleted"


@pytest.mark.long  # five leases long
def test_five_crashes_in_its_call_are_a_case_for_review(system, api):
    api.create("ft")
    (id_,) = ask(system, "ft")
    for _ in range(5):
        crashing = system.start_worker(crash_at="before the call", wait=False)
        assert crashing.process.wait(LEASE_SECONDS + 30) == -signal.SIGKILL
    system.start_worker()
    until(lambda: get(system.ledger, id_).state.is_final, seconds=LEASE_SECONDS + 10, what="a final state")
    deletion = get(system.ledger, id_)
    assert (deletion.state, len(deletion.attempts)) == ("review", 5)
    assert "5 workers were lost" in (deletion.message or "")
    assert api.deletes() == []


def test_a_frozen_worker_makes_no_call_that_was_not_checked(system, api):
    names = [f"ft-{n}" for n in range(30)]
    for name in names:
        api.create(name)
    api.latency_seconds = 0.3
    frozen = system.start_worker()
    ask(system, *names)
    until(lambda: len(api.deletes()) > 4, seconds=20, what="the first deletes")
    frozen.process.send_signal(signal.SIGSTOP)
    system.start_worker()
    system.wait_until_final(LEASE_SECONDS + 40)
    concluded = len(api.journal())
    frozen.process.send_signal(signal.SIGCONT)
    # Given time to do wrong: as much as its calls could take.
    with pytest.raises(Exception, match="did not happen"):
        until(lambda: len(api.deletes()[concluded:]) > 8, seconds=CALL_SECONDS, what="a wave of calls")
    late = [call for call in api.journal()[concluded:] if call["call"] == "delete_finetune"]
    assert len({call["finetune_id"] for call in late}) == len(late), "at most the one call past its check"
    assert not [call for call in late if call["effective"]]
    assert {deletion.state for deletion in system.deletions()} == {"deleted"}
    assert api.finetunes() == []


@pytest.mark.parametrize("pool", ["threads", "prefork"])
def test_a_stop_under_load_is_bounded_and_loses_nothing(system, api, pool):
    names = [f"ft-{n}" for n in range(160)]
    for name in names:
        api.create(name)
    api.fault("slow", times=None, seconds=0.4)
    ids = ask(system, *names)
    for _ in range(5):
        child = system.start_worker(pool=pool)
        before = len(api.deletes())
        until(partial(more_deletes, api, before), seconds=20, what="some work")
        child.process.send_signal(signal.SIGTERM)
        assert child.process.wait(CALL_SECONDS + 5) == 0
        system.workers.remove(child)
    running = [deletion for deletion in system.deletions() if deletion.state == "running"]
    assert running == [], "what was held is handed back, no lease has to end"
    api.heal()
    system.start_worker(pool=pool)
    system.wait_until_final(60)
    assert {get(system.ledger, id_).state for id_ in ids} == {"deleted"}
    assert {len(deletion.attempts) for deletion in system.deletions()} == {1}
    assert len(api.deletes()) == len(names)
    assert_true(system.deletions(), api)


def test_a_stop_is_bounded_even_after_a_child_was_killed(system, api):
    # Given children in a wait between attempts, one of them killed in it.
    for n in range(4):
        api.create(f"ft-{n}")
        api.fault("status", finetune_id=f"ft-{n}", status=408, times=None)
    parent = system.start_worker(pool="prefork")
    ask(system, *(f"ft-{n}" for n in range(4)))
    until(lambda: len(api.deletes()) >= 4, seconds=20, what="the first attempts")
    os.kill(children(parent.process.pid)[0], signal.SIGKILL)
    threading.Event().wait(0.5)
    parent.process.send_signal(signal.SIGTERM)
    assert parent.process.wait(CALL_SECONDS + 5) is not None
    api.heal()
    system.start_worker()
    system.wait_until_final(LEASE_SECONDS + 60)
    assert {deletion.state for deletion in system.deletions()} == {"deleted"}
