"""The log of a worker: one event a line, each line says what it is about, and no secret is in it."""

import json
from contextlib import suppress
from typing import Any

import pytest

from tests.processes import KEY, environment, janitor_here, producer, records, worker

COMMENT = "portrait-of-a-named-customer"
ABOUT = {"deletion", "finetune", "account"}


@pytest.fixture(scope="module")
def told(redis_url, api, tmp_path_factory):
    """What a worker at DEBUG wrote over deletions that met faults: its text, its events, the records."""
    folder = tmp_path_factory.mktemp("logs")
    env = environment(redis_url, api.url, JANITOR_STATE_DIR=folder, JANITOR_LOG_LEVEL="DEBUG")
    env["PYTHONUNBUFFERED"] = "1"  # the banner, on stdout, comes when it is printed
    faults: list[dict[str, Any]] = [
        {"kind": "status", "status": 500},
        {"kind": "status", "status": 422, "times": None},
        {"kind": "status", "status": 403, "times": None},
        {"kind": "reset"},
        {"kind": "not_json"},
        {"kind": "cut", "call": "finetune_details"},
    ]
    names = [f"ft-{n}" for n in range(len(faults))]
    for name, fault in zip(names, faults, strict=True):
        api.create(name, finetune_comment=COMMENT)
        api.fault(finetune_id=name, **fault)
    api.create("by-name", finetune_comment=COMMENT)
    with worker(env, folder / "log", "-l", "DEBUG"):
        done = janitor_here(env, "delete", *names, "--wait", "--timeout", "40", "--json")
        app = producer(redis_url)
        app.send_task("finetunes.delete", ["by-name"], {"reason": "it left"}, queue="deletions").get(timeout=60)
        with suppress(Exception):
            app.send_task("finetunes.delete", [["a list"]], queue="deletions").get(timeout=60)
    text = (folder / "log").read_text()
    events = []
    for line in text.splitlines():
        with suppress(ValueError):
            events.append(json.loads(line))
    return text, [event for event in events if isinstance(event, dict)], records(done)


def test_every_event_is_one_line_of_json(told):
    text, events, _ = told
    # Two things that Celery prints past all logging are not: its banner, and that it stops.
    lines = text.splitlines()
    start = next(n for n, line in enumerate(lines) if " ready." in line)
    others = {line for line in lines[start:] if not (line.startswith("{") and line.endswith("}"))}
    assert others <= {"", "worker: Warm shutdown (MainProcess)"}
    assert len(events) > 50
    assert all({"event", "level", "timestamp"} <= set(event) for event in events)
    assert {"debug", "info"} <= {event["level"] for event in events}


def test_each_line_about_a_deletion_says_which(told):
    _, events, done = told
    finished = [event for event in events if event["event"] == "deletion.finished"]
    assert {event["deletion"] for event in finished} >= {record["id"] for record in done}
    assert all(set(event) >= ABOUT | {"seconds", "state", "message"} for event in finished)
    calls = [event for event in events if event["event"] == "api.call" and event["call"] == "/v1/delete_finetune"]
    assert all(set(event) >= ABOUT | {"seconds"} for event in calls)
    # An answer of 500, then one of success: two attempts at the same finetune.
    assert [event["http_status"] for event in calls if event["finetune"] == "ft-0"] == [500, 200]


def test_what_was_bound_does_not_outlive_the_deletion(told):
    _, events, done = told
    finetunes = {record["id"]: record["finetune_id"] for record in done}
    assert all(
        event["finetune"] == finetunes[event["deletion"]] for event in events if event.get("deletion") in finetunes
    )
    assert not [event for event in events if event["logger"] == "tasks.maintenance" and "deletion" in event]


@pytest.mark.parametrize("secret", [KEY, COMMENT, "x-key", "learning_rate"])
def test_no_key_and_no_details_are_in_it(told, secret):
    text, _, done = told
    assert {record["state"] for record in done} == {"deleted", "failed"}
    assert secret not in text
