"""Which scenarios are played: random ones by seed, each single event and pair of events at each step, and named ones."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from typing import Any

from tests.explorer.events import NAME
from tests.explorer.explorer import Scenario
from tests.explorer.world import KINDS

DELETE_FAULTS = (
    "500", "applied-500", "timeout", "applied-timeout", "late", "late-reset", "odd-status", "429", "503", "refused", "403",
    "404", "not-sent", "wrong-id",
)  # fmt: skip
Event = tuple[Any, ...]

# What may happen at any step. The longer a list, the rarer each of its events in random scenarios.
_EVENTS: tuple[Event, ...] = (
    ("cancel", "r1"), ("cancel", "r2"), ("remove",), ("create",), ("reuse",), ("reuse",), ("pause",), ("resume",), ("kill", 0),
    ("kill", 1), ("freeze", 0, 14.0), ("freeze", 0, 70.0), ("freeze", 1, 3.0), ("suspend", 0, 14.0), ("stop", 0), ("move_house", 0),
    ("move_house", 1), ("redis_clock", 600.0), ("redis_clock", -600.0), ("api_clock", 30.0), ("api_clock", -600.0), ("slow", 3.0),
    ("slow", 12.0), ("slow", 3.0, 3.0, 3.0), ("unclear_observation",), ("broken_details",), ("cut",), ("script", "twice"), ("script", "lost"), ("script", "lost"),
    ("script", "refused"), ("keep", "touch"), ("keep", "protect"), ("save",), ("roll_back",), ("wait", 1.5), ("wait", 40.0),
    ("wait", 4000.0),
)  # fmt: skip
_CLOCKS = ("redis_clock", "api_clock")


def random_scenario(seed: int) -> Scenario:
    """Two or three requests of one finetune, some events and some faults, all from the seed."""
    rng = random.Random(seed)
    steps = 60
    events: list[Event] = [(0, "ask", "r1", _options(rng))]
    events += [(rng.randrange(1, 40), "ask", f"r{n}", _options(rng)) for n in range(2, rng.choice((2, 3, 3, 4)))]
    if rng.random() < 0.4:
        events.append((rng.randrange(20, steps), "ask", "again", {"retry_of": rng.choice(("r1", "r2"))}))
    events += [
        (rng.choice((0, 0, rng.randrange(30))), "fault", rng.choice(DELETE_FAULTS))
        for _ in range(rng.randrange(3))
    ]
    pool = _EVENTS if rng.random() < 0.3 else tuple(event for event in _EVENTS if event[0] not in _CLOCKS)
    events += [(rng.randrange(steps), *rng.choice(pool)) for _ in range(rng.randrange(1, 6))]
    events.sort(key=lambda event: event[0])
    policy = rng.choice(("random", "random", "turns", "first"))
    return Scenario(rng.choice(KINDS), tuple(events), policy, seed, steps, twice=rng.random() < 0.2)


def _options(rng: random.Random) -> dict[str, Any]:
    options: dict[str, Any] = {"name": rng.choice((NAME, NAME.upper()))}
    what = rng.random()
    if what < 0.15:
        options["delay"] = rng.choice((20.0, 100.0, 5000.0))
    elif what < 0.3:
        options["cleanup"] = True
    elif what < 0.4:
        options["ago"] = rng.choice((10.0, 3000.0, 5000.0))
    return options


# For the exhaustive scenarios: two requests, and what happens at each step.
_SINGLE: tuple[Event, ...] = (
    ("cancel", "r1"), ("cancel", "r2"), ("remove",), ("reuse",), ("pause",), ("kill", 0), ("kill", 1), ("freeze", 0, 14.0),
    ("suspend", 0, 14.0), ("stop", 0), ("move_house", 0), ("redis_clock", 600.0), ("redis_clock", -600.0), ("slow", 3.0), ("slow", 12.0),
    ("script", "twice"), ("script", "lost"), ("ask", "r3"),
)  # fmt: skip
_FIRST_FAULTS = ("", "500", "applied-500", "late", "404")
STEPS = 24


def single_events(kind: str) -> Iterator[Scenario]:
    """Each event at each step, with each answer to the first delete."""
    for fault, event, step in itertools.product(_FIRST_FAULTS, _SINGLE, range(1, STEPS)):
        yield _small(kind, fault, [(step, *event)])


def holds(kind: str) -> Iterator[Scenario]:
    """A hold at each step, with each answer to the first delete; and again with a request after it."""
    for fault, step, more in itertools.product(_FIRST_FAULTS, range(1, STEPS), ((), (("ask", "r3"),))):
        yield _small(kind, fault, [(step, "hold"), *((step, *event) for event in more)])


def pairs_of_events(kind: str) -> Iterator[Scenario]:
    """Each pair of events at each pair of steps."""
    for fault, one, other in itertools.product(_FIRST_FAULTS, _SINGLE, _SINGLE):
        for first, second in itertools.combinations(range(1, STEPS), 2):
            yield _small(kind, fault, [(first, *one), (second, *other)])


def _small(kind: str, fault: str, events: list[Event]) -> Scenario:
    start: list[Event] = [(0, "ask", "r1"), (2, "ask", "r2")]
    if fault:
        start.insert(0, (0, "fault", fault))
    return Scenario(kind, tuple(sorted([*start, *events], key=lambda event: event[0])), "turns", steps=STEPS + 4)
