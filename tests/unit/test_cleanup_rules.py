"""Each rule that keeps a finetune is held by a test: without the rule, that test is red."""

import subprocess
import sys
from pathlib import Path

import pytest

from tasks import cleanup

ROOT = Path(__file__).parents[2]
# Takes out one rule, then runs the tests of the selection.
WITHOUT = """
import sys, pytest
from tasks import cleanup
cleanup.KEEP = tuple(rule for rule in cleanup.KEEP if rule.__name__ != sys.argv[1])
sys.exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "--noconftest", "tests/unit/test_cleanup.py",
                      "-k", "each_rule_keeps or what_is_stale"]))
"""


def run(rule):
    argv = [sys.executable, "-c", WITHOUT, rule]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_with_all_rules_they_are_green():
    done = run("none of them")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("rule", [rule.__name__ for rule in cleanup.KEEP])
def test_without_the_rule_they_are_red(rule):
    done = run(rule)
    assert (done.returncode, "1 failed" in done.stdout) == (1, True), done.stdout
    assert f"[{rule}]" in done.stdout
