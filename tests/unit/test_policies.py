"""Policies: accepted whole or not at all, and every mistake named with its line."""

from datetime import timedelta
from pathlib import Path

import pytest

from tasks.cleanup.policies import UNREADABLE, Policy, PolicyError, digest_of, parse_policies, read_policies
from tasks.errors import InvalidRequest

EXAMPLE = Path(__file__).parents[2] / "docs" / "how-to" / "policies.example.toml"


def test_the_example_is_one_and_deletes_nothing_by_itself():
    tests, unused = parse_policies(EXAMPLE.read_text(encoding="utf-8"))
    assert (tests.name, tests.match, tests.older_than) == ("tests", ("test-*", "ci-*"), timedelta(days=7))
    assert (tests.keep_newest, tests.schedule, tests.mode) == (3, "0 3 * * *", "plan")
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


@pytest.mark.parametrize("text", ["policy = []\n", "", "# no policies any more\n"])
def test_no_policy_is_fine_and_does_nothing(text):
    assert parse_policies(text) == ()


def test_a_file_that_is_nested_without_end_is_a_mistake_as_well():
    with pytest.raises(PolicyError, match="not TOML: it is nested too deeply"):
        parse_policies("x = " + "[" * 5000)


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
    "\n\n[[policy]]\nname = 'A b'\n": "line 4: name: 'A b' is not accepted: give lowercase",
    "[[policy]]\nname = 'a'\nolder_than = 'soon'\n": "line 3: older_than: 'soon' is not a duration",
    "[[policy]]\nname = 'a'\nolder_than = 30\n": "line 3: older_than: 30 is not a duration: give a duration",
    "[[policy]]\nname = 'a'\nolder_than = '0d'\n": "line 3: older_than: '0d' is not accepted: give a duration",
    "[[policy]]\nname = 'a'\nunused_for = '9999d'\n": "line 3: unused_for: '9999d' is too long",
    "[[policy]]\nname = 'a'\nunused_for = '47h'\n": "line 3: unused_for: '47h' is not accepted: give 2d or more",
    f"[[policy]]\n{FINE}account = 'A'\n": "line 4: account: 'A' is not accepted: give lowercase letters",
    f"[[policy]]\n{FINE}match = []\n": "line 4: match: [] is not a list of patterns",
    f"[[policy]]\n{FINE}protect = ['']\n": "line 4: protect: '' is not a pattern",
    f"[[policy]]\n{FINE}protect = ['prod-* ']\n": "line 4: protect: 'prod-* ' is not a pattern: give letters",
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
    f"[[policy]]\n{FINE}[[policy]]\n{FINE}": "line 5: two policies have the name 'a': give each its own",
    f"[[policy]]\n{FINE}[[policy]]\nname = 'b'\nmode = 7\nolder_than = '3d'\n": "line 6: mode: 7 is not accepted",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_stops_all_with_its_line_and_the_reason(text):
    with pytest.raises(PolicyError) as raised:
        parse_policies(text)
    assert str(raised.value).startswith(MISTAKES[text])
    assert "\n" not in str(raised.value)


# Another notation, or what no id has: as plain text it would fit nothing, and so protect nothing.
NO_PATTERNS = [
    "prod-*,demo-*", "prod-*;demo-*", "prod-* demo-*", "^prod-.*$", "prod-.*", "^prod-", "prod-*$", "prod-.+",
    "prod-\\\\w*", "(prod|demo)-*", "{prod,demo}-*", "!prod-*", "[!t]*", "prod-%", "[prod-*", "~prod",
    "re:prod", "", "prod-", "prod_", "PROD-", "a\\nb",
]  # fmt: skip


@pytest.mark.parametrize("key", ["match", "protect"])
@pytest.mark.parametrize("pattern", NO_PATTERNS)
def test_another_notation_is_refused_and_not_read_as_plain_text(key, pattern):
    with pytest.raises(PolicyError, match=rf"^line 4: {key}: .* is not a pattern: give letters"):
        parse_policies(f'[[policy]]\n{FINE}{key} = ["test-*", "{pattern}"]\n')


@pytest.mark.parametrize("pattern", ["PROD-*", "prod-main", "[a-c]*", "v1.2-*", "prod-*-", "org/*", "a?c"])
def test_what_an_id_can_have_is_accepted(pattern):
    (policy,) = parse_policies(f"[[policy]]\n{FINE}protect = '{pattern}'\n")
    assert policy.protect == (pattern,)


@pytest.mark.parametrize("key", ["comment", "trigger", "type", "base_model"])
def test_what_details_say_is_selected_by_patterns_of_any_printable_text(key):
    (policy,) = parse_policies(f"[[policy]]\nname = 'a'\n{key} = ['*a test, (for Ms Müller)*', 'v[12].*']\n")
    assert policy.about == {key: ("*a test, (for Ms Müller)*", "v[12].*")}


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("[]", r"\[\] is not a list of patterns"), ("['a', 1]", "1 is not a pattern"),
        ("['']", "'' is not a pattern"), ('["a\\nb"]', "is not a pattern: give one line"),
        ("['[!a]*']", "'\\[!a\\]\\*' is not a pattern"), ("'a['", "'a\\[' is not a pattern"),
    ],
)  # fmt: skip
def test_what_is_no_pattern_for_details_is_refused(value, words):
    with pytest.raises(PolicyError, match=f"^line 4: comment: .*{words}"):
        parse_policies(f"[[policy]]\n{FINE}comment = {value}\n")


@pytest.mark.parametrize("comment", ["'*'", "['a*', '?*']"])
def test_a_pattern_for_all_comments_is_no_selection(comment):
    with pytest.raises(PolicyError, match="matches all and names no age"):
        parse_policies(f"[[policy]]\nname = 'a'\ncomment = {comment}\n")


def test_a_month_is_not_read_as_a_minute():
    with pytest.raises(PolicyError, match=r"^line 3: older_than: '6M' is not a duration"):
        parse_policies("[[policy]]\nname = 'a'\nolder_than = '6M'\n")


def test_the_file_is_named_with_what_is_wrong_in_it(tmp_path):
    file = tmp_path / "policies.toml"
    with pytest.raises(InvalidRequest, match=rf"^{file} cannot be read: No such file"):
        read_policies(file)
    file.write_text("[[policy]]\nname = 7\n")
    with pytest.raises(InvalidRequest, match=rf"^{file}: line 2: name: 7 is not accepted"):
        read_policies(file)
    file.write_bytes(b"\xff")
    with pytest.raises(InvalidRequest, match="cannot be read: it is not text"):
        read_policies(file)
    with pytest.raises(InvalidRequest, match="set JANITOR_POLICY_FILE"):
        read_policies(None)


def test_a_policy_for_a_pattern_needs_no_age():
    (policy,) = parse_policies("[[policy]]\nname = 'a'\nmatch = 'tmp-*'\n")
    assert policy.match == ("tmp-*",)


def test_workers_have_the_same_policies_if_what_is_scheduled_is_the_same(tmp_path):
    def digest(text):
        (tmp_path / "policies.toml").write_text(text)
        return digest_of(tmp_path / "policies.toml")

    one, two, unscheduled = (
        f"[[policy]]\nname = '{name}'\nolder_than = '30d'\n{more}"
        for name, more in (("a", "schedule = '0 3 * * *'\n"), ("b", "schedule = '0 3 * * *'\n"), ("c", ""))
    )
    assert digest(one + two) == digest(f"# a comment\n{two}{one}{unscheduled}")
    assert digest(one + two) != digest(one)
    assert digest("[[policy") == UNREADABLE
