"""Shared by the tests of surveys, plans and their schedule."""

from datetime import UTC, datetime

import pytest

from tasks.records import to_ms
from tests.integration.cleaning import ago, cleaner_of
from worker.sandbox.api import Sandbox


@pytest.fixture
def same_time(clocked):
    """The hand-held clock starts at the API's time: ages are measured against the API's `Date`."""
    clocked.at_ms = to_ms(datetime.now(UTC))


@pytest.fixture
def api():
    """Two stale finetunes and four that are not."""
    with Sandbox(latency_seconds=0) as sandbox:
        for name, days in {"a": 45, "b": 31, "c": 29, "d": 3, "e": 2, "f": 1}.items():
            sandbox.create(name, timestamp=ago(days=days, minutes=1))
        yield sandbox


@pytest.fixture
def cleaner(ledger, api):
    return cleaner_of(ledger, api)
