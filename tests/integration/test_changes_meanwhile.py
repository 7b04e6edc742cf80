"""What changes while a plan is applied or made: its policy, its records, the process at work."""

from dataclasses import replace

import pytest

from tasks import errors
from tasks.api.client import BflReader
from tasks.cleanup import plans
from tasks.cleanup.plans import apply_plan, get_plan, list_plans
from tasks.cleanup.policies import Policy, read_policies
from tasks.ledger.types import Act
from tests.conftest import accept, asking
from tests.integration.cleaning import DAY, OLD
from tests.processes import janitor_here
from worker.cli import cleanup

pytestmark = pytest.mark.usefixtures("same_time")
HALF = replace(OLD, max_percent=50)
POLICY = "[[policy]]\nname = 'old'\nolder_than = '30d'\nmax_percent = 50\n"
ANA = Act("ana", "command")


def test_what_the_policy_says_when_a_person_has_agreed_decides_whether_a_plan_is_applied(
    cleaner, redis_url, tmp_path, monkeypatch
):
    # Given a plan, and a policy that is edited while the question is on the screen
    file = tmp_path / "policies.toml"
    file.write_text(POLICY)
    plan = cleaner.plan(*read_policies(file))

    def edit_and_agree(*_, **__):
        file.write_text(file.read_text() + "protect = ['a']\n")
        return True

    monkeypatch.setattr(cleanup, "agree_to_plan", edit_and_agree)
    # when the person agrees, then the plan is refused.
    done = janitor_here({"REDIS_URL": redis_url}, "cleanup", "apply", plan.id, "--file", str(file))
    assert (done.returncode, f"as it was when plan {plan.id} was made" in done.stderr) == (1, True)
    assert cleaner.ledger.redis.keys(cleaner.ledger.keys.deletion("*")) == []


@pytest.fixture
def begun(cleaner, monkeypatch):
    """A plan of two whose apply died after its first part."""
    monkeypatch.setattr(plans, "BATCH", 1)
    plan, write = cleaner.plan(HALF), cleaner.ledger.accept
    with monkeypatch.context() as patch:

        def write_one_part(*given, **more):
            patch.setattr(cleaner.ledger, "accept", crash)
            return write(*given, **more)

        patch.setattr(cleaner.ledger, "accept", write_one_part)
        with pytest.raises(KeyboardInterrupt):
            apply_plan(cleaner.ledger, cleaner.intake, plan, ANA)
    return get_plan(cleaner.ledger, plan.id)


def test_a_plan_that_was_begun_is_told_as_applied_and_can_be_completed(cleaner, begun):
    # Given a request for another one meanwhile, when it is applied again, then it asks for its second deletion,
    accept(cleaner.ledger, asking("c", delay=DAY))
    assert begun.applied_at
    assert [one.created for one in apply_plan(cleaner.ledger, cleaner.intake, begun, ANA)] == [False, True]
    # and a withdrawal then does not say that nothing was written.
    plans.withdraw(cleaner.ledger, begun, ANA)
    with pytest.raises(errors.PlanRefused, match="is blocked, nothing more was written: withdrawn by ana"):
        apply_plan(cleaner.ledger, cleaner.intake, get_plan(cleaner.ledger, begun.id), ANA)


def test_the_rest_of_a_plan_that_was_begun_is_within_the_caps(cleaner, begun):
    # Given people who ask for two others meanwhile, when it is applied again, then its rest is refused.
    accept(cleaner.ledger, *[asking(name, delay=DAY) for name in "cd"])
    with pytest.raises(errors.PlanRefused, match="is refused: 2 of 6 would be deleted, besides 2"):
        apply_plan(cleaner.ledger, cleaner.intake, begun, ANA)


def test_a_person_is_asked_before_the_rest_of_a_plan_that_was_begun(
    cleaner, begun, redis_url, tmp_path, monkeypatch
):
    file, asked = tmp_path / "policies.toml", []
    file.write_text(POLICY)

    def agree_at_last(*_, **__):
        asked.append("again")
        return len(asked) > 1

    monkeypatch.setattr(cleanup, "agree_to_plan", agree_at_last)
    command = ("cleanup", "apply", begun.id, "--file", str(file))
    # Given a person who does not agree at first, then nothing more is asked for,
    codes = [janitor_here({"REDIS_URL": redis_url}, *command).returncode for _ in range(3)]
    # and once all of it is, there is no question.
    assert (codes, asked) == ([1, 0, 0], ["again", "again"])


def test_a_plan_of_nothing_is_applied_too(cleaner):
    plan = cleaner.plan(Policy("none", match=("zzz",)))
    assert apply_plan(cleaner.ledger, cleaner.intake, plan, ANA) == []
    assert get_plan(cleaner.ledger, plan.id).applied_at


def test_a_record_of_another_type_stops_no_plan(cleaner):
    # Given a key of another type among the records, as after a write by hand
    keys, plan = cleaner.ledger.keys, cleaner.plan(HALF)
    cleaner.ledger.redis.set(keys.deletion("odd"), "no hash")
    cleaner.ledger.redis.zadd(keys.finished, {"odd": cleaner.ledger.now_ms()})
    # when a plan is applied, then it is.
    assert len(apply_plan(cleaner.ledger, cleaner.intake, plan, ANA)) == 2


def test_a_run_that_outlasts_its_lease_leaves_that_of_the_next_one_alone(cleaner, clocked, monkeypatch):
    # Given a run that takes so long that another process starts it too
    policy = replace(HALF, schedule="* * * * *")
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
