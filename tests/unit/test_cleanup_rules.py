"""Each rule that keeps a finetune is held by a test: without the rule, that test is red."""

import pytest

from tasks.cleanup import rules
from tests.unit import test_cleanup


@pytest.mark.parametrize("rule", rules.KEEP, ids=lambda rule: rule.__name__)
def test_without_the_rule_its_test_is_red(rule, monkeypatch):
    test_cleanup.test_each_rule_keeps_what_no_other_does(rule.__name__)
    monkeypatch.setattr(rules, "KEEP", tuple(one for one in rules.KEEP if one is not rule))
    with pytest.raises(AssertionError):
        test_cleanup.test_each_rule_keeps_what_no_other_does(rule.__name__)
