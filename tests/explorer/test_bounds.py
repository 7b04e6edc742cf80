"""What does not grow (invariants 12 and 13), and what no clock changes (15)."""

import math

import pytest

from tasks.ledger import Ledger
from tasks.ledger.types import Act
from tasks.records import NewRequest
from tests.explorer.books import ACCOUNT
from tests.explorer.events import NAME
from tests.explorer.explorer import Scenario, play

MOST_COMMANDS = 900  # of one script
MANY = 100


@pytest.fixture
def ledger(explored_redis):
    explored_redis.flushall()
    ledger = Ledger(explored_redis)
    ledger.maintain(ACCOUNT, 8)
    return ledger


def commands(ledger, what):
    """How many commands Redis has carried out for `what`, those within scripts included."""

    def total():
        return sum(row["calls"] for row in ledger.redis.info("commandstats").values())

    before = total()
    what()
    return total() - before - 1


def siblings(ledger, count, start=0):
    ledger.accept([NewRequest(f"r{n:04}", NAME) for n in range(start, start + count)])


@pytest.mark.parametrize(
    "name", ["claim", "cancel", "hold", "maintain", "touch", "accept", "housekeep", "reclaim"]
)
def test_a_script_does_no_more_work_for_more_siblings(ledger, name):
    """Given 100 siblings, then 400, when a script runs, then its commands stay within one bound."""
    scripts = {
        "claim": lambda: ledger.claim(ACCOUNT, f"a:{next(calls)}"),
        "hold": lambda: ledger.hold(ACCOUNT, NAME, Act("test", "command", "test"), {"until_ms": 1}),
        "cancel": lambda: ledger.cancel(["r0003"]),
        "maintain": lambda: ledger.maintain(ACCOUNT, 8),
        "touch": lambda: ledger.keep("touch", ACCOUNT, [NAME]),
        "accept": lambda: ledger.accept([NewRequest("cleanup", NAME, source="cleanup:plan")]),
        "housekeep": lambda: ledger.housekeep(["process"], ledger.terms.lease),
        "reclaim": lambda: ledger.maintain(ACCOUNT, 8, stale=[["single", "r0000", ends]]),
    }
    calls = iter(range(2, 100))
    siblings(ledger, MANY)
    first = ledger.claim(ACCOUNT, "a:1")
    ends = int(ledger.redis.zscore(ledger.keys.leases(ACCOUNT, "single"), first.claim.id))
    ledger.claim(ACCOUNT, "b:1")
    if name == "reclaim":
        assert commands(ledger, scripts[name]) <= MOST_COMMANDS
        return
    few = commands(ledger, scripts[name])
    siblings(ledger, 3 * MANY, start=MANY)
    assert max(few, commands(ledger, scripts[name])) <= MOST_COMMANDS


@pytest.mark.parametrize("blocked", [19, 60, 200])
def test_what_can_run_behind_blocked_ones_is_claimed_soon(ledger, blocked):
    """Given m deletions of a busy finetune in front of another one, when it is claimed, then within m/20 + 1 claims."""
    siblings(ledger, blocked + 1)
    ledger.claim(ACCOUNT, "a:1")
    ledger.accept([NewRequest("free", "another-finetune")])
    claims = [ledger.claim(ACCOUNT, f"b:{n}").claim for n in range(1, math.floor(blocked / 20) + 2)]
    assert [claim.id for claim in claims if claim] == ["free"]


@pytest.mark.parametrize("seconds", [600.0, -600.0])
@pytest.mark.parametrize("ago", [0.0, 10.0, 3000.0])
def test_no_clock_changes_what_siblings_hear_of_each_other(explored_redis, seconds, ago):
    """Given two requests, when Redis's clock is set at any step, then one is deleted by the other."""
    for step in range(1, 16):
        events = ((0, "ask", "r1"), (0, "ask", "r2", {"ago": ago}), (step, "redis_clock", seconds))
        ended = play(explored_redis, Scenario("created", events, workers=1)).stage.books().records
        assert {d["state"] for d in ended.values()} == {"deleted"}, step
        assert "sibling" in [d["evidence"] for d in ended.values()], step
