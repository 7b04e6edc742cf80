"""One scenario, played from the first step until everything is final, with all invariants checked."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from redis import Redis

from tasks.records import UNFINISHED
from tests.explorer.books import ACCOUNT, Violation, check, check_nothing_is_left, check_places
from tests.explorer.events import NAME, Events
from tests.explorer.stage import LEASE, PERMITS, Stage, Worker
from tests.explorer.world import World

RENEW_EVERY = 10_000  # ms
MOST_MOVES = 600  # until everything is final


class Failed(AssertionError):
    """What was violated, the scenario, and the schedule in words."""


@dataclass(frozen=True)
class Scenario:
    """events: (when, name, arguments ...), see `Events`. when: a step, or the start of a label: as soon as a worker has it, and
    the events by label before have happened. policy: who goes on at each step: `random`, `turns`, `first`.
    """

    kind: str = "created"
    events: tuple[tuple[Any, ...], ...] = ()
    policy: str = "turns"
    seed: int = 0
    steps: int = 40
    workers: int = 2
    twice: bool = False
    expect: dict[str, str] = field(default_factory=dict)  # id -> state, or state/evidence


def play(redis: Redis, scenario: Scenario) -> Play:
    """Raises `Failed`."""
    redis.flushall()
    random.seed(scenario.seed)  # the pipeline's jitter
    one = Play(redis, scenario)
    try:
        one.run()
    except Violation as violation:
        told = "\n".join(one.stage.trace)
        raise Failed(f"{violation}\n{scenario}\n{told}") from None
    finally:
        one.stage.end()
    return one


class Play:
    """The scheduler of one scenario."""

    def __init__(self, redis: Redis, scenario: Scenario) -> None:
        self.scenario = scenario
        self.rng = random.Random(scenario.seed)
        self.world = World(scenario.kind, self.rng)
        self.stage = Stage(redis, self.world, always_twice=scenario.twice)
        self.events = Events(self.stage)
        self.renewed_at = self.maintained_at = self.world.now
        self.by_label = [event for event in scenario.events if isinstance(event[0], str)]
        self.turn = 0
        self.leases_seen: dict[tuple[Any, ...], int] = {}

    def run(self) -> None:
        self.world.create(NAME)
        self.world.now += 3_600_000
        self.maintain()
        for number in range(self.scenario.workers):
            self.stage.start("AB"[number])
        for step in range(self.scenario.steps):
            for event in self.scenario.events:
                if event[0] == step:
                    self.happen(*event)
            while self.by_label and any(
                worker.label.startswith(self.by_label[0][0]) for worker in self.stage.alive()
            ):
                self.happen(*self.by_label.pop(0))
            self.move()
        check(20, not self.by_label, f"these did not happen: {self.by_label}")
        self.settle()
        self.check_end()

    def happen(self, when: int | str, name: str, *arguments: Any) -> None:
        self.stage.note(f"{when}: {name} {' '.join(map(str, arguments))}")
        options = dict(arguments[-1]) if arguments and isinstance(arguments[-1], dict) else {}
        getattr(self.events, name)(*arguments[: len(arguments) - bool(options)], **options)
        self.stage.after_script()

    def move(self) -> None:
        """One step: of one worker, or of the clocks."""
        ready = [worker for worker in self.stage.alive() if worker.ready_at <= self.world.now]
        worker = self.choose(ready)
        if worker is None:
            self.advance()
            return
        label = worker.label
        worker.step()
        self.stage.note(f"{worker.name}: {label} -> {worker.label}")

    def choose(self, ready: list[Worker]) -> Worker | None:
        if not ready:
            return None
        if self.scenario.policy == "random":
            return None if self.rng.random() < 0.1 else self.rng.choice(ready)
        if self.scenario.policy == "first":
            return ready[0]
        self.turn += 1
        return ready[self.turn % len(ready)]

    def advance(self) -> None:
        """Let time pass until something happens; if nobody does anything, until something is due."""
        now = self.world.now
        moments = [worker.ready_at for worker in self.stage.alive()]
        is_idle = all(worker.label == "idle" for worker in self.stage.alive()) and self.world.next_time() is None
        if is_idle:
            moments = [now + self.until_due()]
        moments += [at for at in [self.world.next_time()] if at is not None]
        if any(worker.held for worker in self.stage.alive()):
            moments.append(self.renewed_at + RENEW_EVERY)
        to = max(now + 1, min(moments, default=now + 1000))
        if self.scenario.policy == "random" and to - now > 1000:
            to = now + self.rng.choice([500, 1000, 10_000, to - now, to - now])
        self.world.advance(to)
        if self.world.now - self.renewed_at >= RENEW_EVERY:
            self.renew()
        if self.world.now - self.maintained_at >= 1000:
            self.maintain()
        if is_idle:
            self.events.wake()

    def until_due(self) -> int:
        """Milliseconds until the ledger has something to do."""
        books, now = self.stage.books(), self.world.redis_ms()
        scores = [
            at
            for start in ("wait:", "first:", "leases:", "queue:")
            for row in books.named(start).values()
            for at in row.values()
        ]
        scores.append(float(books.get(f"account:{ACCOUNT}").get("cool_until") or 0))
        scores += books.get("results").values()
        later = [at - now for at in scores if at > now]
        return int(min([*later, 3_600_000])) if later else 1000

    def renew(self) -> None:
        """The renewal of each process, and what must come of it (invariants 2, 10: a dead worker's lease ends)."""
        self.renewed_at = self.world.now
        for worker in self.stage.alive():
            if not worker.held or worker.frozen_until > self.world.now:
                continue
            claim, books = worker.held, self.stage.books()
            d = books.records.get(claim.id, {})
            is_ours = d.get("state") == "running" and d.get("token") == claim.token
            lost = self.stage.ledger.renew([claim])
            check(
                2,
                lost == (set() if is_ours else {claim.id}),
                f"renewal of {claim.id} answered that it lost {lost}",
            )
            before, after = (b.named(f"leases:{ACCOUNT}:") for b in (books, self.stage.books()))
            if is_ours:
                ends = after[d["running_lane"]][claim.id]
                check(2, ends == self.world.redis_ms() + LEASE, f"the renewed lease of {claim.id} ends at {ends}")
            else:
                check(2, before == after, f"the lease of another holder of {claim.id} was renewed")

    def maintain(self) -> None:
        self.maintained_at = self.world.now
        stale = [list(row) for row, since in self.leases_seen.items() if self.world.now - since >= 2 * LEASE]
        found = self.stage.ledger.maintain(ACCOUNT, PERMITS, stale=stale)
        self.leases_seen = {row: self.leases_seen.get(row, self.world.now) for row in found.leases}
        self.stage.redis.set(self.stage.ledger.keys.reports_clear, self.world.redis_ms())
        due, _ = self.stage.ledger.housekeep(["process"], timedelta(days=400))
        self.stage.write_results(due)

    def settle(self) -> None:
        """Everything is let run, with an API and workers that behave."""
        self.stage.note("from here on everything is let run")
        self.world.faults, self.world.slow, self.world.observation_faults = [], [], []
        self.stage.script_faults, self.world.is_cut = [], False
        for worker in self.stage.alive():
            worker.frozen_until = 0
        self.events.resume()
        for _ in range(MOST_MOVES):
            if self.is_over():
                break
            self.move()
        self.world.advance(self.world.now + 10_000)
        self.maintain()

    def is_over(self) -> bool:
        is_idle = all(worker.label == "idle" for worker in self.stage.alive())
        return is_idle and not any(d["state"] in UNFINISHED for d in self.stage.books().records.values())

    def check_end(self) -> None:
        books = self.stage.books()
        check_places(books, PERMITS)
        for id_, d in books.records.items():
            self.stage.note(f"{id_}: {d['state']} {d.get('evidence', '')} {d.get('message')}")
            check(17, d.get("message"), f"{id_} has no message")
        check_nothing_is_left(books)
        self.stage.model.check_outcomes(books)
        for id_, d in books.records.items():
            told = self.stage.model.results.get(id_)
            check(17, not d.get("by_name") or told == d["state"], f"{id_} is {d['state']}, its result says {told}")
        for id_, expected in self.scenario.expect.items():
            d = books.records[id_]
            ended = d["state"] if "/" not in expected else f"{d['state']}/{d.get('evidence')}"
            check(20, ended == expected, f"{id_} is {ended}, expected {expected}: {d['message']}")
