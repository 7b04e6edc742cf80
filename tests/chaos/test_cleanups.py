"""Cleanups under crashes: a plan is applied whole and once, and a use that is reported is never passed over."""

import signal
import sys
import threading
from datetime import UTC, datetime

import pytest

from tasks.cleanup.policies import parse_policies
from tasks.cleanup.schedule import noted
from tests.chaos.harness import LEASE_SECONDS, create, wait_final
from tests.processes import janitor_here, producer, records, until
from worker.local.supervise import Child, Spec

OLD = "[[policy]]\nname = 'old'\nolder_than = '30d'\nmax_percent = 100\ngrace = '{grace}'\n"
SCHEDULED = OLD + "schedule = '0 0 1 1 *'\nmode = 'apply'\n"


@pytest.fixture
def policies(system, api, tmp_path):
    """Writes the policy file of the system; a young finetune is there, so that not all are stale."""
    api.create("young", timestamp=datetime.now(UTC).isoformat())
    file = tmp_path / "policies.toml"
    system.env["JANITOR_POLICY_FILE"] = str(file)

    def write(text, **parts):
        file.write_text(text.format(**parts))

    return write


def planned(system):
    (plan,) = records(janitor_here(system.env, "cleanup", "plan", "--json"))
    assert not plan["blocked"]
    return plan


def names_asked_for(system):
    return sorted(deletion.finetune_id for deletion in system.deletions())


def test_a_command_killed_while_it_applies_a_plan_can_be_given_again(system, api, policies):
    # Given a plan of five, and a command that dies after a part of it
    names = create(api, "ft", 5)
    policies(OLD, grace="0s")
    plan = planned(system)
    argv = [sys.executable, "-m", "tests.chaos.crashing", "in the midst of a plan"]
    killed = Child(Spec("apply", [*argv, "janitor", "cleanup", "apply", plan["id"]], system.env))
    assert killed.process.wait(20) == -signal.SIGKILL
    assert names_asked_for(system) == names[:2]
    # When the same plan is applied again, twice, while what was accepted is carried out
    system.start_worker()
    for _ in range(2):
        assert janitor_here(system.env, "cleanup", "apply", plan["id"]).returncode == 0
    # Then each finetune was asked for once, and deleted once.
    system.wait_until_final(30)
    assert names_asked_for(system) == names
    assert {deletion.state for deletion in system.deletions()} == {"deleted"}
    assert sorted(call["finetune_id"] for call in api.deletes()) == names


def test_a_worker_killed_while_it_applies_a_scheduled_plan_leaves_it_to_the_next(system, api, policies):
    # Given a scheduled cleanup that is due, and a worker that dies in the midst of it
    names = create(api, "ft", 5)
    policies(SCHEDULED, grace="0s")
    store, keys = system.store, system.ledger.keys
    (policy,) = parse_policies(SCHEDULED.format(grace="0s"))
    store.hset(keys.policy_runs, "old", noted(policy, datetime.fromtimestamp(0, UTC)))
    crashing = system.start_worker(crash_at="in the midst of a plan")
    tick = lambda: producer(system.url).send_task("finetunes.tick", queue="wakeups", ignore_result=True)  # noqa: E731
    tick()
    assert crashing.process.wait(20) == -signal.SIGKILL
    assert (names_asked_for(system), store.zcard(keys.plans)) == (names[:2], 1)
    # When its turn has ended, ten minutes later, and beat ticks again, twice
    store.delete(keys.policy_lease("old"))
    system.start_worker()
    tick()
    until(lambda: names_asked_for(system) == names, seconds=60, what="the rest of the plan")
    tick()
    # Then it was one plan, and each finetune was asked for and deleted once.
    system.wait_until_final(30)
    assert store.zcard(keys.plans) == 1
    assert {deletion.state for deletion in system.deletions()} == {"deleted"}
    assert sorted(call["finetune_id"] for call in api.deletes()) == names


def test_a_cleanup_waits_for_a_use_that_a_killed_worker_had_taken(system, api, policies):
    # Given a cleanup's deletion in its grace
    api.create("used")
    policies(OLD, grace="3s")
    plan = planned(system)
    applied = janitor_here(system.env, "cleanup", "apply", plan["id"], "--json")
    (id_,) = (record["id"] for record in records(applied))
    # When a worker dies with a report of use in its hands
    crashing = system.start_worker(crash_at="before a use is noted")
    producer(system.url).send_task("finetunes.touch", [["used"]], queue="touches")
    assert crashing.process.wait(20) == -signal.SIGKILL
    store = system.store
    assert (store.llen("touches"), store.hlen("unacked")) == (0, 1)
    # Then the grace ends, and nothing is deleted: the report is not lost, and nobody has it yet
    system.start_worker()
    threading.Event().wait(3 + LEASE_SECONDS)
    (deletion,) = system.deletions()
    assert not deletion.is_final, deletion.message
    # And when the broker delivers it again, after the visibility timeout, the finetune is kept.
    ((tag, _),) = store.hgetall("unacked").items()
    with producer(system.url).connection() as connection:
        connection.default_channel.qos.restore_by_tag(tag)
    deletion = wait_final(system, id_)
    assert (deletion.state, deletion.cancelled_by) == ("cancelled", "cleanup")
    assert (api.deletes(), api.finetunes()) == ([], ["young", "used"])
