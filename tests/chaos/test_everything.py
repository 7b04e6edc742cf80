"""Everything at once, from a seed: faults of every row, workers and Redis killed; then the books must balance."""

import random
import signal
import threading
from contextlib import suppress

import pytest

from tests.chaos.harness import LEASE_SECONDS, LONG, assert_true
from tests.processes import janitor, records

DELETIONS, WORKER_KILLS, REDIS_KILLS, ALL_KILLS = (2000, 30, 5, 3) if LONG else (150, 4, 1, 1)
SEEDS = range(3) if LONG else (7,)

# What the API does to the finetune's first calls, and where its deletion may end. A worker killed before it could
# write down a refusal asks once more.
FAULTS = [
    (None, {"deleted"}),
    ({"kind": "reset", "applies": True}, {"deleted"}),
    ({"kind": "reset", "applies": False}, {"deleted"}),
    ({"kind": "close", "applies": True}, {"deleted"}),
    ({"kind": "hang", "applies": True}, {"deleted"}),
    ({"kind": "hang", "applies": False}, {"deleted"}),
    ({"kind": "cut", "applies": True}, {"deleted"}),
    ({"kind": "drip", "seconds": 0.2, "applies": True}, {"deleted"}),
    ({"kind": "huge"}, {"deleted"}),
    ({"kind": "not_json"}, {"deleted"}),
    ({"kind": "missing_fields", "applies": False}, {"deleted"}),
    ({"kind": "status", "status": 500, "applies": True}, {"deleted"}),
    ({"kind": "status", "status": 503, "applies": False, "times": 2}, {"deleted"}),
    ({"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}, {"deleted"}),
    ({"kind": "status", "status": 408, "times": 2}, {"deleted"}),
    ({"kind": "status", "status": 404}, {"deleted"}),
    ({"kind": "status", "status": 403}, {"failed", "deleted"}),
    ({"kind": "status", "status": 422}, {"failed", "deleted"}),
    ({"kind": "status", "status": 302, "headers": {"Location": "/"}}, {"failed", "deleted"}),
    ("unknown", {"not_found"}),
]


@pytest.mark.timeout(3600 if LONG else 170)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_books_balance(system, api, seed):
    dice = random.Random(seed)
    expected = _prepare(api, dice)
    for pool in ("threads", "prefork", "threads"):
        system.start_worker(pool=pool, wait=False)
    asking = threading.Thread(target=_ask, args=(system, list(expected), dice))
    asking.start()
    _rage(system, dice)
    asking.join(300)
    system.wait_until_final(LEASE_SECONDS * 3 + (900 if LONG else 120))
    deletions = {deletion.finetune_id: deletion for deletion in system.deletions()}
    assert set(deletions) == set(expected)
    # A worker lost at the wrong instant makes any answer an unclear one, never another outcome but these.
    wrong = {
        name: (deletion.state, deletion.message)
        for name, deletion in deletions.items()
        if deletion.state not in expected[name] | {"review"}
    }
    assert wrong == {}
    assert sum(deletion.state == "review" for deletion in deletions.values()) <= len(deletions) // 50
    assert_true(deletions.values(), api)
    system.assert_the_key_is_nowhere()
    answered_404 = [call for call in api.deletes() if call["http_status"] == 404 and not call["fault"]]
    print(f"{len(deletions)} deletions, {len(api.deletes())} delete calls, {len(answered_404)} answered 404")


def _prepare(api, dice):
    expected = {}
    for n in range(DELETIONS):
        name = f"ft-{n}"
        fault, ends = dice.choice(FAULTS)
        if fault != "unknown":
            api.create(name)
        if isinstance(fault, dict):
            api.fault(finetune_id=name, **fault)
        expected[name] = ends
    return expected


def _ask(system, names, dice):
    """Enqueue in batches; what cannot be accepted while Redis is away is asked for again."""
    dice.shuffle(names)
    for start in range(0, len(names), 50):
        batch = names[start : start + 50]
        while True:
            done = janitor(system.env, "delete", *batch, "--json")
            if done.returncode == 0:
                assert {record["finetune_id"] for record in records(done)} == set(batch)
                break
            assert done.returncode == 3, done.stderr
            threading.Event().wait(0.5)


def _rage(system, dice):
    """Kill workers, Redis, and everything, in an order and at times that the seed decides."""
    events = ["worker"] * WORKER_KILLS + ["redis"] * REDIS_KILLS + ["all"] * ALL_KILLS
    dice.shuffle(events)
    for event in events:
        threading.Event().wait(dice.uniform(1, 4))
        victims = list(system.workers) if event == "all" else []
        if event == "worker":
            victims = [dice.choice(system.workers)]
        for victim in victims:
            with suppress(ProcessLookupError):
                victim.process.send_signal(signal.SIGKILL)
            system.kill(victim)
        if event != "worker":
            system.kill_redis()
            threading.Event().wait(dice.uniform(0.2, 1.5))
            system.start_redis()
        for _ in victims:
            system.start_worker(pool=dice.choice(["threads", "prefork"]), wait=False)
