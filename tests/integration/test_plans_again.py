"""What changes while a plan is applied or made: its policy, its records, the process at work."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from tasks import errors
from tasks.api.client import BflReader
from tasks.cleanup import plans
from tasks.cleanup.plans import apply_plan, get_plan, list_plans
from tasks.cleanup.policies import Policy, read_policies
from tasks.cleanup.schedule import Cleaner
from tasks.intake import Intake
from tasks.ledger.types import Act
from tasks.records import to_ms
from tests.conftest import accept, asking
from tests.processes import janitor_here
from worker.cli import cleanup
from worker.sandbox.api import Sandbox

DAY = timedelta(days=1)
OLD = Policy("old", older_than=30 * DAY, max_percent=50)
ANA = Act("ana", "command")


@pytest.fixture
def api():
    """Two stale finetunes of six."""
    with Sandbox(latency_seconds=0) as sandbox:
        for name, days in {"a": 45, "b": 31, "c": 29, "d": 3, "e": 2, "f": 1}.items():
            made = datetime.now(UTC) - timedelta(days=days, minutes=1)
            sandbox.create(name, timestamp=made.isoformat())
        yield sandbox


@pytest.fixture
def cleaner(clocked, ledger, api):
    clocked.at_ms = to_ms(datetime.now(UTC))  # ages are measured against the API's `Date`
    readers = {"default": BflReader(api.url, "sandbox-key")}
    return Cleaner(ledger, readers, 8, timedelta(0), lambda _: None, intake=Intake(ledger, lambda _: None))


def test_what_the_policy_says_when_a_person_has_agreed_decides_whether_a_plan_is_applied(
    cleaner, redis_url, tmp_path, monkeypatch
):
    # Given a plan, and a policy that is edited while the question is on the screen
    file = tmp_path / "policies.toml"
    file.write_text("[[policy]]\nname = 'old'\nolder_than = '30d'\nmax_percent = 50\n")
    plan = cleaner.plan(*read_policies(file))

    def edit_and_agree(*_, **__):
        file.write_text(file.read_text() + "protect = ['a']\n")
        return True

    monkeypatch.setattr(cleanup, "agree_to_plan", edit_and_agree)
    # when the person agrees, then the plan is refused.
    done = janitor_here({"REDIS_URL": redis_url}, "cleanup", "apply", plan.id, "--file", str(file))
    assert (done.returncode, f"as it was when plan {plan.id} was made" in done.stderr) == (1, True)
    assert cleaner.ledger.redis.keys(cleaner.ledger.keys.deletion("*")) == []


def test_a_plan_that_was_begun_is_told_as_applied_and_can_be_completed(cleaner, monkeypatch):
    # Given an apply that dies after its first part, and people who ask for others meanwhile
    monkeypatch.setattr(plans, "BATCH", 1)
    plan, write = cleaner.plan(OLD), cleaner.ledger.accept
    with monkeypatch.context() as patch:

        def write_one_part(*given, **more):
            patch.setattr(cleaner.ledger, "accept", crash)
            return write(*given, **more)

        patch.setattr(cleaner.ledger, "accept", write_one_part)
        with pytest.raises(KeyboardInterrupt):
            apply_plan(cleaner.ledger, cleaner.intake, plan, ANA)
    accept(cleaner.ledger, *[asking(name, delay=DAY) for name in "cd"])
    # when the plan is shown, then as applied, and its second deletion can still be asked for,
    begun = get_plan(cleaner.ledger, plan.id)
    assert begun.applied_at
    assert [one.created for one in apply_plan(cleaner.ledger, cleaner.intake, begun, ANA)] == [False, True]
    # and a withdrawal then does not say that nothing was written.
    plans.withdraw(cleaner.ledger, begun, ANA)
    with pytest.raises(errors.PlanRefused, match="is blocked, nothing more was written: withdrawn by ana"):
        apply_plan(cleaner.ledger, cleaner.intake, get_plan(cleaner.ledger, plan.id), ANA)


def test_a_plan_of_nothing_is_applied_too(cleaner):
    plan = cleaner.plan(Policy("none", match=("zzz",)))
    assert apply_plan(cleaner.ledger, cleaner.intake, plan, ANA) == []
    assert get_plan(cleaner.ledger, plan.id).applied_at


def test_a_record_of_another_type_stops_no_plan(cleaner):
    # Given a key of another type among the records, as after a write by hand
    keys, plan = cleaner.ledger.keys, cleaner.plan(OLD)
    cleaner.ledger.redis.set(keys.deletion("odd"), "no hash")
    cleaner.ledger.redis.zadd(keys.finished, {"odd": cleaner.ledger.now_ms()})
    # when a plan is applied, then it is.
    assert len(apply_plan(cleaner.ledger, cleaner.intake, plan, ANA)) == 2


def test_a_run_that_outlasts_its_lease_leaves_that_of_the_next_one_alone(cleaner, clocked, monkeypatch):
    # Given a run that takes so long that another process starts it too
    policy = replace(OLD, schedule="* * * * *")
    cleaner.tick(lambda: [policy])
    clocked.after(minutes=1)
    lease, listed = cleaner.ledger.keys.policy_lease(policy.name), BflReader.my_finetunes

    def list_late(reader):
        cleaner.ledger.redis.set(lease, "of the other process")
        return listed(reader)

    monkeypatch.setattr(BflReader, "my_finetunes", list_late)
    # when it ends, then the other one is still the only one at work.
    cleaner.tick(lambda: [policy])
    assert list_plans(cleaner.ledger)
    assert cleaner.ledger.redis.get(lease) == "of the other process"


def crash(*_, **__):
    raise KeyboardInterrupt
