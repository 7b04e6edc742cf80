"""For the tests of surveys, plans and their schedule: a policy, and what they ask of a `Cleaner`."""

from datetime import UTC, datetime, timedelta

from tasks.api.client import BflReader
from tasks.cleanup.plans import apply_plan
from tasks.cleanup.policies import Policy
from tasks.cleanup.schedule import Cleaner
from tasks.intake import Intake
from tasks.ledger.types import Act

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
OLD = Policy("old", older_than=30 * DAY, max_percent=100)
TESTS = Policy("tests", comment=("*A Test*",), max_percent=100)
KEY = "sandbox-key"
UUID = "0f8fad5b-d9cb-469f-a165-70867728950e"
MIXED = "0F8fad5b-D9cb-469f-A165-70867728950e"


def ago(**duration):
    return (datetime.now(UTC) - timedelta(**duration)).isoformat()


def no_sleep(seconds):
    """Retries at once."""


def cleaner_of(ledger, api, budget=timedelta(seconds=0)):
    intake = Intake(ledger, lambda account: None)
    return Cleaner(ledger, {"default": BflReader(api.url, KEY)}, 8, budget, no_sleep, intake=intake)


def applied(cleaner, plan, by=None, policies=None):
    return apply_plan(cleaner.ledger, cleaner.intake, plan, Act(by, "command"), policies)


def proposed(plan):
    return [item.finetune_id for item in plan.items if item.action == "delete"]


def reads(api):
    return [call["finetune_id"] for call in api.journal() if call["call"] == "finetune_details"]
