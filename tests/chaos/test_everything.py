"""Everything at once, from a seed: faults of every row, workers and Redis killed; then the books must balance.

A part of the requests comes by name. What the broker loses of those is a named limit; what was accepted is not
lost, and its result agrees with its record.
"""

import random
import signal
import threading
from collections import Counter
from contextlib import suppress

import pytest

from tests.chaos.harness import LEASE_SECONDS, LONG, assert_true
from tests.processes import janitor, producer, records, until

DELETIONS, BY_NAME, WORKER_KILLS, REDIS_KILLS, ALL_KILLS = (1000, 100, 30, 5, 3) if LONG else (80, 20, 2, 1, 1)
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


@pytest.mark.timeout(3600 if LONG else 300)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_books_balance(system, api, seed):
    dice = random.Random(seed)
    by_name, by_command = _prepare(api, dice)
    expected = by_name | by_command
    for _ in range(3):
        system.start_worker(wait=False)
    asking = threading.Thread(target=_ask, args=(system, list(by_command), dice))
    asking.start()
    sending = threading.Thread(target=_send, args=(system, list(by_name)))
    sending.start()
    _rage(system, dice)
    asking.join(300)
    sending.join(300)
    system.wait_until_final(LEASE_SECONDS * 3 + (1500 if LONG else 120))
    deletions = system.deletions()
    asked_for = Counter(deletion.finetune_id for deletion in deletions)
    assert set(by_command) <= set(asked_for) <= set(expected)
    # A worker lost at the wrong instant makes any answer an unclear one, never another outcome but these. What was
    # asked for again, because Redis went away before the answer, may have been removed by the first request.
    wrong = {
        (deletion.finetune_id, deletion.state, deletion.message)
        for deletion in deletions
        if deletion.state not in expected[deletion.finetune_id] | {"review"}
        and not (deletion.state in ("not_found", "deleted") and asked_for[deletion.finetune_id] > 1)
    }
    assert wrong == set()
    assert sum(deletion.state == "review" for deletion in deletions) <= len(deletions) // 50
    assert_true([deletion for deletion in deletions if asked_for[deletion.finetune_id] == 1], api)
    assert_true(deletions, api, one_name_one_life=False)
    _assert_results_agree(system, deletions)
    system.assert_the_key_is_nowhere()
    print(f"{len(deletions)} deletions of {len(asked_for)} finetunes, {len(api.deletes())} delete calls")


def _prepare(api, dice):
    """What may become of each finetune: of those asked for by name, and of the others."""
    by_name, by_command = {}, {}
    for n in range(DELETIONS + BY_NAME):
        name = f"ft-{n}"
        fault, ends = dice.choice(FAULTS)
        if fault != "unknown":
            api.create(name)
        if isinstance(fault, dict):
            api.fault(finetune_id=name, **fault)
        (by_name if n < BY_NAME else by_command)[name] = ends
    return by_name, by_command


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


def _send(system, names):
    """Send by name; while Redis is away, again and again."""
    app = producer(system.url)
    for name in names:
        while True:
            with suppress(Exception):
                # The same id, so that a message whose answer was lost is the same request.
                app.send_task(
                    "finetunes.delete", [name], queue="deletions", task_id=f"by-name-{name}", retry=False
                )
                break
            threading.Event().wait(0.5)


def _assert_results_agree(system, deletions):
    app = producer(system.url)
    for deletion in deletions:
        if deletion.source != "name":
            continue
        result = app.AsyncResult(deletion.id)
        # A result that could not be written is due again after a minute.
        until(result.ready, seconds=150, what=f"the result of {deletion.finetune_id}")
        assert result.successful() == deletion.is_done, (deletion, result.result)


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
            system.start_worker(wait=False)
