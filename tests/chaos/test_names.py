"""A name used again, at every stage of its deletion: the new finetune lives."""

import signal
from datetime import UTC, datetime, timedelta

import pytest

from tasks.ledger.queries import get
from tests.chaos.harness import FIRST_SECONDS, ask, ask_later, wait_final, wait_observed
from tests.processes import janitor_here, producer, until


@pytest.mark.parametrize("waits", ["until it is due", "because it is paused"])
def test_while_it_waits(system, api, waits):
    api.create("ft")
    system.start_worker()
    if "paused" in waits:
        janitor_here(system.env, "pause")
    id_ = ask_later(system, "ft", "0s" if "paused" in waits else f"{FIRST_SECONDS + 4}s")
    assert not wait_observed(system, id_).is_final
    api.create("ft", iterations=7)
    janitor_here(system.env, "resume")
    deletion = wait_final(system, id_)
    assert deletion.state == "superseded"
    assert "creation time" in deletion.message
    assert (api.deletes(), api.finetunes()) == ([], ["ft"])


@pytest.mark.parametrize("kind", ["reset", pytest.param("hang", marks=pytest.mark.long)])
def test_after_an_unclear_attempt_that_was_applied(system, api, kind):
    api.create("ft")
    api.latency_seconds = 0.4
    api.fault(kind, finetune_id="ft", applies=True)
    system.start_worker()
    (id_,) = ask(system, "ft")
    until(lambda: api.deletes("ft"), seconds=60, what="the delete call")
    # When the name gets another finetune before anything is observed, too soon to tell which came first
    api.create("ft", timestamp=datetime.now(UTC).isoformat())
    deletion = wait_final(system, id_)
    assert (deletion.state, "may be older" in deletion.message) == ("review", True)
    assert (len(api.deletes()), api.finetunes()) == (1, ["ft"])


@pytest.mark.parametrize(
    ("point", "calls"),
    [
        ("after the mark", 0),
        pytest.param("after the API applied it", 1, marks=pytest.mark.long),
        pytest.param("before the finish", 1, marks=pytest.mark.long),
    ],
)
def test_after_its_worker_was_killed(system, api, point, calls):
    api.create("ft")
    crashing = system.start_worker(crash_at=point)
    (id_,) = ask(system, "ft")
    assert crashing.process.wait(20) == -signal.SIGKILL
    # When the name gets another finetune, clearly later
    api.create("ft", timestamp=(datetime.now(UTC) + timedelta(seconds=6)).isoformat())
    system.start_worker()
    deletion = wait_final(system, id_)
    # Even before the call nobody can know that it was not sent: ours is gone, and what there is lives.
    assert (deletion.state, deletion.evidence) == ("deleted", "read-back")
    assert (len(api.deletes()), api.finetunes()) == (calls, ["ft"])


def test_between_the_request_and_its_first_observation(system, api):
    # Given a request that lies two hours in the past, and a finetune created since
    api.create("ft", timestamp=(datetime.now(UTC) - timedelta(hours=1)).isoformat())
    asked = {"requested_at": (datetime.now(UTC) - timedelta(hours=2)).isoformat()}
    result = producer(system.url).send_task("finetunes.delete", ["ft"], asked, queue="deletions")
    system.start_worker()
    with pytest.raises(Exception, match="superseded"):
        result.get(timeout=60)
    assert (api.deletes(), api.finetunes()) == ([], ["ft"])


def test_when_nothing_tells_one_incarnation_from_another_a_person_must_look(system, api):
    # Given a worker lost after its call, and an API that tells no creation time
    api.create("ft", timestamp=None, priority="low")
    crashing = system.start_worker(crash_at="after the API applied it")
    (id_,) = ask(system, "ft")
    assert crashing.process.wait(20) == -signal.SIGKILL
    api.create("ft", timestamp=None, priority="high")
    system.start_worker()
    assert wait_final(system, id_).state == "review"
    assert (len(api.deletes()), api.finetunes()) == (1, ["ft"])


def test_a_request_after_the_new_finetune_means_the_new_one(system, api):
    # Given a deletion whose finetune was replaced while it waits, and a request made after that
    api.create("ft")
    system.start_worker()
    old = ask_later(system, "ft", f"{FIRST_SECONDS + 6}s")
    wait_observed(system, old)
    api.create("ft", iterations=7)
    (new,) = ask(system, "ft")
    assert (wait_final(system, new).state, api.finetunes()) == ("deleted", [])
    # Then the new one is gone by its own request, and the old request does not claim it.
    assert get(system.ledger, old).state == "scheduled"
    assert wait_final(system, old).state == "not_found"
    assert [call["incarnation"] for call in api.deletes()] == [2]
