"""Policies: whole or not at all, and every mistake told with its line."""

from datetime import timedelta
from pathlib import Path

import pytest

from tasks.policies import Policy, PolicyError, parse_policies

EXAMPLE = Path(__file__).parents[2] / "docs" / "policies.example.toml"


def test_the_example_is_one():
    tests, unused = parse_policies(EXAMPLE.read_text(encoding="utf-8"))
    assert (tests.name, tests.match, tests.older_than) == ("tests", ("test-*", "ci-*"), timedelta(days=7))
    assert (tests.keep_newest, tests.schedule, tests.mode) == (3, "0 3 * * *", "apply")
    assert (unused.unused_for, unused.max_percent, unused.mode) == (timedelta(days=60), 10, "plan")


def test_what_is_not_given_is_careful():
    (policy,) = parse_policies("[[policy]]\nname = 'a'\nolder_than = '30d'\n")
    assert policy == Policy("a", older_than=timedelta(days=30))
    assert (policy.mode, policy.grace, policy.max_deletions, policy.max_percent) == (
        "plan",
        timedelta(days=1),
        20,
        25,
    )


def test_no_policy_is_fine_and_does_nothing():
    assert parse_policies("policy = []\n") == ()


FINE = "name = 'a'\nolder_than = '30d'\n"
MISTAKES = {
    "older_than = ": "not TOML: Invalid value (at end of document)",
    "[[policies]]\n": "'policies' is not accepted: give [[policy]] tables",
    "policy = 7\n": "'policy' is not accepted: give [[policy]] tables",
    f"[[policy]]\n{FINE}older = '3d'\n": "line 4: 'older' is not known: accepted are name, account, match",
    "[[policy]]\nname = 'a'\n": "line 1: 'a' matches all and names no age: give older_than or unused_for",
    "[[policy]]\nname = 'a'\nmatch = '?*'\n": "line 1: 'a' matches all and names no age",
    "[[policy]]\nname = 'a'\nkeep_newest = 3\n": "line 1: 'a' matches all and names no age",
    "[[policy]]\nolder_than = '30d'\n": "line 1: this policy has no name",
    "\n\n[[policy]]\nname = 'A b'\n": "line 4: name: 'A b' is not a name: give lowercase",
    "[[policy]]\nname = 'a'\nolder_than = 'soon'\n": "line 3: older_than: 'soon' is not a duration",
    "[[policy]]\nname = 'a'\nolder_than = 30\n": "line 3: older_than: 30 makes no sense: give a duration",
    "[[policy]]\nname = 'a'\nolder_than = '0d'\n": "line 3: older_than: '0d' makes no sense",
    "[[policy]]\nname = 'a'\nunused_for = '9999d'\n": "line 3: unused_for: '9999d' is too long",
    f"[[policy]]\n{FINE}account = 'A'\n": "line 4: account: 'A' is not an account",
    f"[[policy]]\n{FINE}match = []\n": "line 4: match: [] is no list of patterns",
    f"[[policy]]\n{FINE}protect = ['']\n": "line 4: protect: [''] is no list of patterns",
    f"[[policy]]\n{FINE}protect = ['prod-* ']\n": "line 4: protect: ['prod-* '] is no list of patterns",
    "[[policy]]\nname = 'a'\nmatch = '[a-z0-9]*'\n": "line 1: 'a' matches all and names no age",
    f"[[policy]]\n{FINE}keep_newest = -1\n": "line 4: keep_newest: -1 is not accepted: give a whole number from 0",
    f"[[policy]]\n{FINE}max_deletions = 0\n": "line 4: max_deletions: 0 is not accepted",
    f"[[policy]]\n{FINE}max_percent = 101\n": "line 4: max_percent: 101 is not accepted",
    f"[[policy]]\n{FINE}max_percent = true\n": "line 4: max_percent: True is not accepted",
    f"[[policy]]\n{FINE}grace = 5\n": "line 4: grace: 5 is not a duration",
    f"[[policy]]\n{FINE}mode = 'delete'\n": "line 4: mode: 'delete' is not accepted: give 'plan' or 'apply'",
    f"[[policy]]\n{FINE}schedule = 'daily'\n": "line 4: schedule: 'daily' is not a cron schedule",
    f"[[policy]]\n{FINE}schedule = '0 25 * * *'\n": "line 4: schedule: '0 25 * * *' is not a cron schedule",
    f"[[policy]]\n{FINE}schedule = '0 0 30 2 *'\n": "line 4: schedule: '0 0 30 2 *' is not a cron schedule",
    f"[[policy]]\n{FINE}schedule = '0 0 0 * * *'\n": "line 4: schedule: '0 0 0 * * *' is not a cron schedule",
    f"[[policy]]\n{FINE}[[policy]]\n{FINE}": "line 5: 'a' names two policies: give each a name of its own",
    f"[[policy]]\n{FINE}[[policy]]\nname = 'b'\nmode = 7\nolder_than = '3d'\n": "line 6: mode: 7 is not accepted",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_stops_all_with_its_line_and_the_reason(text):
    with pytest.raises(PolicyError) as raised:
        parse_policies(text)
    assert str(raised.value).startswith(MISTAKES[text])
    assert "\n" not in str(raised.value)


def test_a_policy_for_a_pattern_needs_no_age():
    (policy,) = parse_policies("[[policy]]\nname = 'a'\nmatch = 'tmp-*'\n")
    assert policy.match == ("tmp-*",)
