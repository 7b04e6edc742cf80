"""A simulated API and a whole system for each test."""

import pytest

from tests.chaos.harness import LONG, System
from tests.processes import KEY
from worker.sandbox.api import Sandbox


def pytest_collection_modifyitems(config, items):
    """What takes half a minute and more is left to `make chaos`."""
    long = [item for item in items if item.get_closest_marker("long") and not LONG]
    items[:] = [item for item in items if item not in long]
    config.hook.pytest_deselected(items=long)


@pytest.fixture
def api():
    with Sandbox(keys={KEY}, latency_seconds=0.05) as sandbox:
        yield sandbox


@pytest.fixture
def system(api, tmp_path):
    with System(api, tmp_path) as system:
        yield system
