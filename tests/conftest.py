"""Shared by all tiers: one real Redis for the session, emptied for each test, and a hand-held clock."""

import itertools
from dataclasses import fields
from datetime import UTC, datetime, timedelta

import pytest
import redis
from celery.result import AsyncResult
from hypothesis import HealthCheck, settings

from tasks.ledger.queries import get_many
from tasks.ledger.store import Ledger
from tasks.ledger.types import Findings, Finish, Progress, Terms
from tasks.records import Evidence, NewRequest, from_ms, to_ms
from worker.local import embedded

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LATER = NOW + timedelta(days=365)  # no observation is too old
PERMITS = 8

# Celery's results unsubscribe when they are collected, which may be after their test's server has ended.
setattr(AsyncResult, "__del__", lambda _: None)  # noqa: B010 -- mypy lets nobody assign a method

# A busy machine fails no test: none is timed.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


# Fixtures of a module that start processes or build something.
SHARED = {"running_worker", "running", "told", "wheel"}


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items):
    """Tests that share such a fixture stay together; all others go to any process that is free."""
    for item in items:
        if SHARED & set(item.fixturenames):
            item.add_marker(pytest.mark.xdist_group(item.module.__name__))


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory):
    with embedded.running(tmp_path_factory.mktemp("redis")) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("appendonly", "no")  # nothing has to outlive the session
        yield url


@pytest.fixture
def redis_client(redis_url):
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        client.flushall()
        yield client


class Clocked:
    """Makes ledgers on one Redis, with a clock that starts at `NOW` and moves only by hand.

    `clocked(lease=...)` is a ledger with these terms, `clocked.after(seconds=5)` one five seconds later. All
    ledgers made here share the clock.
    """

    def __init__(self, client):
        self.client = client
        self.at_ms = to_ms(NOW)

    def __call__(self, **terms):
        return Ledger(self.client, Terms(**terms), now_ms=lambda: self.at_ms)

    @property
    def now(self):
        return from_ms(self.at_ms)

    def after(self, **duration):
        self.at_ms += timedelta(**duration) // timedelta(milliseconds=1)
        return self()


@pytest.fixture
def clocked(redis_client):
    return Clocked(redis_client)


def register(ledger, account="default", permits=PERMITS):
    """What the maintenance of a worker does first."""
    ledger.maintain(account, permits)
    ledger.housekeep(["worker/0"], timedelta(days=400))
    return ledger


@pytest.fixture
def ledger(clocked):
    """A ledger with one account of 8 permits and one worker process seen; `clocked.after` moves its clock."""
    return register(clocked())


_numbers = itertools.count()


def asking(finetune_id="my-finetune", **fields):
    """A request; its id is unique unless given."""
    return NewRequest(**{"id": f"request-{next(_numbers):06}", "finetune_id": finetune_id, **fields})


def accept(ledger, *requests):
    """The answers to these requests, each one word."""
    return [one.answer for one in ledger.accept(requests)[0]]


def claim(ledger, account="default", *, runner="worker-1"):
    """The deletion that a runner gets now, or None."""
    return ledger.claim(account, f"{runner}:{next(_numbers)}").claim


def claim_all(ledger, account="default", *, most=100):
    """The deletions that runners get now, one after the other, until there is no more."""
    return list(itertools.islice(iter(lambda: claim(ledger, account), None), most))


def progress(claimed, made=0, found=None, **given):
    """What a claim has led to. found: fields of `Findings`; what is not given is as it was claimed."""
    known = {field.name: getattr(claimed, field.name) for field in fields(Findings)}
    return Progress(made, Findings(**{**known, **(found or {})}), **given)


def mark(ledger, claimed, attempt=1, *, made=0, **found):
    """The word of the ledger just before an attempt. made: the last attempt before it whose call was made."""
    return ledger.mark(claimed, progress(claimed, made, found), attempt, LATER).word


def finish(ledger, claimed, result="deleted", *, attempt=0, found=None, lines=(), not_founds=0, **given):
    """Write what came of a claim; the ledger's word. given: fields of `Finish`.

    `deleted` means by the API's answer, unless an `evidence` is given.
    """
    usual = {"message": "as the test says", **({"evidence": Evidence.RESPONSE} if result == "deleted" else {})}
    outcome = Finish(**{"result": result, **usual, **given})
    found_out = progress(claimed, attempt, found, lines=lines, not_founds=not_founds)
    return ledger.finish(claimed, outcome, found_out)[0].word


def claim_and_mark(ledger):
    """A claim whose first attempt is about to start."""
    claimed = claim(ledger)
    assert mark(ledger, claimed) == "go"
    return claimed


def carry_out_one(ledger, result="deleted", *, found=None, **given):
    """Claim a deletion, make one attempt, finish it: the claim."""
    claimed = claim(ledger)
    assert mark(ledger, claimed, **(found or {})) == "go"
    assert finish(ledger, claimed, result, attempt=1, found=found, **given) == "done"
    return claimed


def states(ledger, *ids):
    """The states of these deletions; None for one without a readable record."""
    return [deletion.state if deletion else None for deletion in get_many(ledger, ids)]
