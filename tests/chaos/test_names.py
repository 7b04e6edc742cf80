"""A name used again, at every stage of its deletion: the new finetune lives."""

import signal
from datetime import UTC, datetime, timedelta

import pytest

from tasks.queries import get
from tests.chaos.harness import LEASE_SECONDS
from tests.chaos.test_crashes import ask
from tests.processes import janitor, producer, records, until


def looked_at(system, id_):
    return get(system.ledger, id_).looked_at is not None


def ask_later(system, finetune_id, delay):
    (record,) = records(janitor(system.env, "delete", finetune_id, "--in", delay, "--json"))
    return record["id"]


def final(system, id_, seconds=LEASE_SECONDS + 20):
    until(lambda: get(system.ledger, id_).state.is_final, seconds=seconds, what="a final state")
    return get(system.ledger, id_)


def test_while_it_waits(system, api):
    api.create("ft")
    system.start_worker()
    id_ = ask_later(system, "ft", "2s")
    until(lambda: looked_at(system, id_), seconds=10, what="the first look")
    api.create("ft", iterations=7)
    deletion = final(system, id_)
    assert deletion.state == "superseded"
    assert "iterations" in deletion.message
    assert (api.deletes(), api.finetunes()) == ([], ["ft"])


@pytest.mark.long  # its first look comes after half a minute
def test_while_it_is_paused(system, api):
    api.create("ft")
    system.start_worker()
    janitor(system.env, "pause")
    (id_,) = ask(system, "ft")
    until(lambda: looked_at(system, id_), seconds=60, what="the first look, within a minute")
    api.create("ft")
    janitor(system.env, "resume")
    assert final(system, id_).state == "superseded"
    assert (api.deletes(), api.finetunes()) == ([], ["ft"])


@pytest.mark.parametrize("kind", ["reset", pytest.param("hang", marks=pytest.mark.long)])
def test_after_an_unclear_attempt_that_was_applied(system, api, kind):
    api.create("ft")
    api.fault(kind, finetune_id="ft", applies=True)
    api.fault("slow", call="finetune_details", finetune_id="ft", seconds=0.5, skip=1)
    system.start_worker()
    (id_,) = ask(system, "ft")
    until(lambda: api.deletes("ft"), seconds=20, what="the delete call")
    api.create("ft")
    deletion = final(system, id_)
    assert (deletion.state, deletion.evidence) == ("deleted", "read-back")
    assert (len(api.deletes()), api.finetunes()) == (1, ["ft"])


@pytest.mark.parametrize("point", ["before the call", "after the call", "before the conclusion"])
def test_after_its_worker_was_killed(system, api, point):
    api.create("ft")
    crashing = system.start_worker(crash_at=point)
    (id_,) = ask(system, "ft")
    assert crashing.process.wait(20) == -signal.SIGKILL
    api.create("ft")
    system.start_worker()
    deletion = final(system, id_)
    # Even before the call nobody can know that it was not sent: ours is gone, and what there is lives.
    assert (deletion.state, deletion.evidence) == ("deleted", "read-back")
    assert len(api.deletes()) == (0 if point == "before the call" else 1)
    assert api.finetunes() == ["ft"]


def test_between_the_request_and_its_first_look(system, api):
    # Given a request that lies two hours in the past, and a finetune trained since.
    api.create("ft", timestamp=(datetime.now(UTC) - timedelta(hours=1)).isoformat())
    asked = {"requested_at": (datetime.now(UTC) - timedelta(hours=2)).isoformat()}
    result = producer(system.url).send_task("finetunes.delete", ["ft"], asked, queue="deletions")
    system.start_worker()
    with pytest.raises(Exception, match="superseded"):
        result.get(timeout=20)
    assert (api.deletes(), api.finetunes()) == ([], ["ft"])


def test_when_nothing_tells_one_life_from_another_a_person_must_look(system, api):
    # Given a worker lost in a call that no look preceded, and an API that tells no time of training.
    system.env["JANITOR_LOOK_FIRST"] = "unclear"
    api.create("ft", timestamp=None)
    crashing = system.start_worker(crash_at="after the call")
    (id_,) = ask(system, "ft")
    assert crashing.process.wait(20) == -signal.SIGKILL
    api.create("ft", timestamp=None)
    system.start_worker()
    assert final(system, id_).state == "review"
    assert (len(api.deletes()), api.finetunes()) == (1, ["ft"])


def test_a_request_after_the_new_life_means_the_new_life(system, api):
    # Given a deletion whose finetune was replaced while it waits, and a request made after that.
    api.create("ft")
    system.start_worker()
    old = ask_later(system, "ft", "1h")
    until(lambda: looked_at(system, old), seconds=10, what="the first look")
    api.create("ft", iterations=7)
    (_,) = ask(system, "ft")
    until(lambda: api.finetunes() == [], seconds=20, what="the delete of the new life")
    assert get(system.ledger, old).state == "superseded"
    new = next(deletion for deletion in system.deletions() if deletion.id != old)
    assert (final(system, new.id).state, [call["incarnation"] for call in api.deletes()]) == ("deleted", [2])
