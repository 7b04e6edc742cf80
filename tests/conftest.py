"""Shared by all tiers: one real Redis for the session, emptied for each test."""

import itertools
from datetime import timedelta

import pytest
import redis
from hypothesis import HealthCheck, settings

from tasks.claims import Terms
from tasks.ledger import Ledger
from tasks.records import NewRequest
from worker import embedded

# A busy machine fails no test: none is timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items):
    """Tests that share a worker process stay together; all others go to whoever is free."""
    for item in items:
        if "running_worker" in item.fixturenames:
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    with embedded.running(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def redis_client(redis_url):
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        yield client


class Clocked:
    """Ledgers on one Redis that see its clock shifted: time passes without waiting for it."""

    def __init__(self, client):
        self.client = client
        self.passed = timedelta(0)

    def __call__(self, **terms):
        return Ledger(self.client, Terms(**terms), skew=self.passed)

    def after(self, **duration):
        self.passed += timedelta(**duration)
        return self()


@pytest.fixture
def clocked(redis_client):
    return Clocked(redis_client)


@pytest.fixture
def ledger(clocked):
    """A ledger with one account of 8 permits and one worker process seen."""
    ledger = clocked()
    ledger.account("default", "register", max_concurrent=8)
    ledger.dispatch(["worker/0"], alive_for=timedelta(days=400))
    return ledger


_numbers = itertools.count()


def asking(finetune_id="my-finetune", **fields):
    """A request; its id is unique unless given."""
    return NewRequest(**{"id": f"request-{next(_numbers):06}", "finetune_id": finetune_id, **fields})


def outcome(claimed, state, **fields):
    """An outcome as `Run.input` makes it."""
    return {
        "id": claimed.id,
        "token": claimed.token,
        "look": claimed.kind == "look",
        "permit": claimed.permit,
        "joined": claimed.joined,
        "expected": claimed.fingerprint,
        "state": state,
        "message": "as the test says",
        "fingerprint": claimed.fingerprint,
        "looked_at": claimed.looked_at or "",
        "unclear_at": claimed.unclear_at or "",
        "last_tried": "",
        "attempts": "",
        **fields,
    }
