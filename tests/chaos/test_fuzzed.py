"""Strangers' messages, by the hundred, against a real worker: each ends somewhere, and no slot is lost."""

import base64
import bz2
import gzip
import itertools
import json
import uuid
from collections import Counter
from copy import deepcopy

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tasks.ledger.dead_letters import list_dead_letters
from tasks.ledger.queries import get_many
from tests import holding
from tests.chaos.harness import LONG
from tests.holding import SLOTS
from tests.processes import producer, until
from tests.unit.test_kombu_transport import CHANGES, SEEDS, changed, encoded, places
from worker.message_check import check_message, read
from worker.message_fields import QUEUES, RefusedMessage

BATCHES, SIZE = (15, 150) if LONG else (1, 150)
ANSWERING = ("finetunes.delete", "finetunes.delete_many", "finetunes.cancel")
# Beside the deletions of the seeds: the other tasks, with their arguments.
OTHERS = {
    "finetunes.delete_many": [["one", "two"]], "finetunes.cancel": ["some-id"], "finetunes.touch": [["one"]],
    "finetunes.work": ["default"], "finetunes.tick": [],
}  # fmt: skip
ARGUMENTS = {
    "account": "default", "reason": "why", "requested_by": "somebody", "delay_seconds": 3600, "missing_ok": True,
    "requested_at": "2026-01-01T00:00:00Z", "due_at": "2026-01-01T00:00:00Z",
}  # fmt: skip
FIRST = SEEDS[0]
MESSAGES = [
    *SEEDS,
    *({"body": [arguments, {}, None], "headers": {"task": task}} for task, arguments in OTHERS.items()),
    *({"body": [["a"], {name: value}, None]} for name, value in ARGUMENTS.items()),
    {"headers": {"eta": "2001-01-01T00:00:00"}}, {"headers": {"eta": "2099-01-01T00:00:00+02:00"}},
    {"headers": {"expires": "2099-01-01T00:00:00Z"}}, {"headers": {"janitor_again": "forged"}},
    {"headers": {"compression": "gzip"}, "body": base64.b64encode(gzip.compress(b'[["one"], {}, null]')).decode()},
    {"headers": {"compression": "bzip2"}, "body": base64.b64encode(bz2.compress(b'[["two"], {}, {}]')).decode()},
]  # fmt: skip
MESSAGES = [FIRST | one | {"headers": FIRST["headers"] | one.get("headers", {})} for one in MESSAGES]
# What is done to the bytes: mostly nothing.
DAMAGE = st.tuples(st.sampled_from([""] * 17 + ["cut", "flip", "double"]), st.floats(0, 1))


def fuzzed(number, count):
    """So many messages as bytes: a producer's, with up to two parts changed, and some damaged."""
    made = []

    @seed(number)
    @settings(max_examples=count, database=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(MESSAGES), st.lists(CHANGES, max_size=2), DAMAGE)
    def make(raw, changes, damage):
        raw = with_own_ids(raw, f"fuzzed-{number}-{len(made)}")
        for random, what, name, value in changes:
            raw = changed(raw, random.choice([place for place in places(raw) if place]), what, name, value)
            if not raw:
                break
        made.append(damaged(encoded(raw), *damage))

    make()
    return made


def with_own_ids(raw, id_):
    raw = deepcopy(raw)
    raw["headers"]["id"] = id_
    if raw["body"][:1] == [["a"]]:
        raw["body"][0] = [id_]  # a finetune of its own
    return raw


def damaged(item, what, where):
    at = int(where * len(item))
    if what == "flip":
        return item[:at] + bytes([item[at - 1] ^ 0x55]) + item[at + 1 :]
    if what == "double":
        return item + item[at:]
    return item[:at] if what == "cut" else item


def accepted(item):
    """The message as Celery is to see it; None if it is to become a dead letter."""
    try:
        return check_message(read(item), "deletions")
    except RefusedMessage:
        return None


def ends(system, app, items, log):
    """How each message that is no dead letter ended, once all have."""
    store = system.store
    until(lambda: not store.exists(*QUEUES, "unacked"), seconds=120, what="the end of the messages")
    found = Counter()
    said = log.read_text()
    for message in filter(None, map(accepted, items)):
        headers = message["headers"]
        (deletion,) = get_many(system.ledger, [headers["id"]])
        if headers["task"] not in ANSWERING:
            found["carried out"] += 1
        elif "janitor_again" in headers:
            found["never a request"] += 1
        elif deletion:
            found["a deletion"] += 1
        elif (state := app.AsyncResult(headers["id"]).state) != "PENDING":
            found[state] += 1
        elif headers.get("ignore_result") and f'"{headers["id"]}"' in said:
            found["only in the log"] += 1
        else:
            raise AssertionError(f"nothing came of {message}")
    return found


def test_whatever_is_sent_ends_somewhere_and_no_slot_is_lost(system, api):
    app, store, found = producer(system.url), system.store, Counter()
    log = system.folder / "worker.log"
    with holding.worker(system.env, log) as child:
        for number in range(BATCHES):
            # Given messages of strangers
            items = fuzzed(number, SIZE)
            found["sent"] += len(items)
            for finetune in range(0, len(items), 2):
                api.create(f"fuzzed-{number}-{finetune}")
            # When they lie in our queues
            for item, queue in zip(items, itertools.cycle(QUEUES)):
                store.lpush(queue, item)
            # Then each is accepted, has failed with a result, or is a dead letter that says why
            found += ends(system, app, items, log)
            letters = list_dead_letters(system.ledger)
            refused = [item for item in items if accepted(item) is None]
            assert len(letters) == len(refused), [one.reason for one in letters]
            found["dead letters"] += len(letters)
            store.delete(system.ledger.keys.dead_letters)
        # And the worker answers, with each of its slots
        api.create("good")
        result = app.send_task("finetunes.delete", ["good"], queue="deletions", task_id=str(uuid.uuid4()))
        assert result.get(timeout=60)["state"] == "deleted"
        holding.hold(app, "all")
        until(lambda: holding.held(store, "all") == SLOTS, seconds=60, what="all slots are free")
        holding.let_go(store, "all")
        assert store.zcard(system.ledger.keys.results) == 0, "callbacks are owed"
        assert child.process.poll() is None
    print(json.dumps(found))
    events = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{")]
    assert [event for event in events if event["level"] in ("error", "critical")] == []
