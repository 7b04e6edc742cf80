"""Workers as threads that run one at a time, on a ledger whose every script is watched.

A worker gives up control before each call to the API, while it is under way, before and between scripts, and when it sleeps.
What happens then is up to the scheduler: see `explorer.py`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from redis import Redis

from tasks.deletion import Rules, carry_out
from tasks.errors import HandBack, LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.scripts import Scripts
from tasks.ledger.types import Claim
from tests.explorer.books import ACCOUNT, Books, check, check_no_hold, check_places
from tests.explorer.model import Model, Watcher
from tests.explorer.world import HOME, Api, Call, World

PERMITS = 4
LEASE = 30_000  # ms
RULES = Rules()
_REPEATABLE = ("accept", "claim", "mark", "finish", "cancel", "renew")


class Killed(BaseException):
    """The worker dies here; no `Exception`, so that nothing under test can catch it."""


class Scripted:
    """Stands in for `Scripts`: passes control on, sends twice, loses answers, and checks the books after each script."""

    def __init__(self, scripts: Scripts, stage: Stage, worker: Worker | None) -> None:
        self.scripts = scripts
        self.stage = stage
        self.worker = worker

    def run(self, name: str, **given: Any) -> Any:
        return self.run_all((name, given))[0]

    def run_all(self, *calls: tuple[str, dict[str, Any]]) -> list[Any]:
        return [self._one(name, given) for name, given in calls]

    def _one(self, name: str, given: dict[str, Any]) -> Any:
        stage, worker = self.stage, self.worker
        if worker:
            worker.pause(f"before {name}")
        fault = stage.script_faults.pop(0) if worker and stage.script_faults else ""
        if fault == "refused":
            raise LedgerUnavailable("Redis cannot be reached")
        answer = self.scripts.run(name, **given)
        if name in _REPEATABLE and (fault == "twice" or stage.always_twice):
            answer = stage.sent_again(self.scripts, name, given, answer)
        stage.after_script()
        if fault == "lost":
            raise LedgerUnavailable("the answer was lost")
        if worker and name == "mark":
            worker.marked(answer)
            worker.pause("mark answered")
        return answer


class Worker:
    """One worker process with one runner. Its thread runs only while `step` waits for it."""

    def __init__(self, stage: Stage, name: str, vantage: str) -> None:
        self.stage = stage
        self.name = name
        self.ledger = stage.new_ledger(self)
        self.watcher = Watcher(stage.model, name, stage.record)
        self.api = Api(stage.world, vantage, self.request, self.watcher)
        self.label = "idle"
        self.until = 0  # true time before which it does not go on
        self.frozen_until = 0
        self.lost_ms = 0  # that its own clock did not count
        self.held: Claim | None = None
        self.is_killed = self.is_stopping = self.is_over = False
        self.failure: BaseException | None = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._main, daemon=True)
        self._thread.start()

    @property
    def ready_at(self) -> int:
        return max(self.until, self.frozen_until)

    def step(self) -> None:
        """Let it run until it next gives up control; raises what it raised."""
        self._go.release()
        self._back.acquire()
        if self.failure:
            raise self.failure

    def pause(self, label: str, seconds: float = 0.0) -> None:
        self.label, self.until = label, self.stage.world.now + round(seconds * 1000)
        self._back.release()
        self._go.acquire()
        if self.is_killed:
            raise Killed

    def kill(self) -> None:
        self.is_killed = True
        self.step()
        for call in self.stage.world.calls:
            if call.worker == self.name and call.ended is None:
                call.ended = self.stage.world.now

    def marked(self, answer: str) -> None:
        """A mark renews the lease."""
        claim, world = self.watcher.claim, self.stage.world
        self.watcher.marked_at = world.ticks
        if '"go"' in answer:
            ends = self.stage.redis.zscore(self.ledger.keys.leases(ACCOUNT, claim.lane), claim.id)
            check(2, ends == world.redis_ms() + LEASE, f"the lease of {claim.id} ends at {ends} after a mark")

    def clock(self) -> float:
        return (self.stage.world.now - self.lost_ms) / 1000

    def sleep(self, seconds: float) -> None:
        if self.is_stopping:
            raise HandBack("the worker is stopping")
        if seconds:
            self.pause("asleep", seconds)

    def request(
        self, label: str, serve: Callable[[], Any], served: float, seconds: float, call: Call | None = None
    ) -> Any:
        """One call to the API: served at its time, even if this worker dies meanwhile."""
        self.pause(f"before {label}") if call is None else None
        answer: list[Any] = []
        now = self.stage.world.now

        def serve_it() -> None:
            self.stage.note(f"  the API serves {label}")
            answer.append(serve())

        self.stage.world.at(now + round(served * 1000), serve_it)
        self.pause(f"{label} under way", seconds)
        return answer[0] if answer else None

    def _main(self) -> None:
        self._go.acquire()
        try:
            if not self.is_killed:
                self._work()
        except Killed:
            pass
        except BaseException as error:
            self.failure = error
        self.is_over = True
        self._back.release()

    def _work(self) -> None:
        call = 0
        while not self.is_stopping:
            call += 1
            claimed = self._again(lambda n=call: self.ledger.claim(ACCOUNT, f"{self.name}:{n}", begun=True))
            while claimed and claimed.claim:
                claim, call = claimed.claim, call + 1
                self.held = claim
                self.watcher.claimed(claim)
                check_no_hold(self.stage.books(), claim.id)
                done = carry_out(
                    claim, api=self.api, ledger=self.ledger, rules=RULES, sleep=self.sleep, clock=self.clock  # type: ignore[arg-type] # our API
                )  # fmt: skip
                self.stage.note(f"  {self.name}: {claim.id} -> {done[0].result} ({done[0].message})")
                check(20, "internal error" not in done[0].message, "the pipeline raised an exception: see the log")
                token = None if self.is_stopping else f"{self.name}:{call}"
                both = self._again(lambda c=claim, d=done, t=token: self.ledger.finish(c, *d, t))
                finished, claimed = both or (None, None)
                self.held = None
                if finished and finished.due:
                    self.stage.write_results([claim.id])
            if not self.is_stopping:
                self.pause("idle", 1.0)

    def _again(self, what: Callable[[], Any]) -> Any:
        """As a runner does: an answer that was lost is asked for again, under the same name."""
        for _ in range(5):
            try:
                return what()
            except LedgerUnavailable:
                self.pause("waits for Redis", 0.5)
        return None


class Stage:
    """One ledger, one world, some workers. trace: what happened, a line a step."""

    def __init__(self, redis: Redis, world: World, *, always_twice: bool = False) -> None:
        self.redis = redis
        self.world = world
        self.model = Model(world)
        self.script_faults: list[str] = []
        self.always_twice = always_twice
        self.trace: list[str] = []
        self.workers: list[Worker] = []
        self.ledger = self.new_ledger(None)
        self._started = 0

    def new_ledger(self, worker: Worker | None) -> Ledger:
        ledger = Ledger(self.redis, now_ms=self.world.redis_ms)
        ledger._scripts = Scripted(ledger._scripts, self, worker)  # type: ignore[assignment] # the same interface
        return ledger

    def start(self, name: str, vantage: str = HOME) -> Worker:
        """A new process: its runner has a name that was never used."""
        self._started += 1
        worker = Worker(self, f"{name}{self._started}", vantage)
        self.workers.append(worker)
        return worker

    def alive(self) -> list[Worker]:
        return [worker for worker in self.workers if not worker.is_over]

    def end(self) -> None:
        for worker in self.workers:
            if not worker.is_over:
                worker.is_killed = True
                worker._go.release()
                worker._back.acquire()

    def note(self, line: str) -> None:
        self.trace.append(f"{(self.world.now - 1_780_000_000_000) / 1000:9.2f}s {line}")

    def record(self, id_: str) -> dict[str, str]:
        return self.redis.hgetall(self.ledger.keys.deletion(id_))  # type: ignore[return-value] # redis-py's stubs

    def books(self) -> Books:
        return Books(self.ledger)

    def after_script(self) -> None:
        self.world.ticks += 1
        books = self.books()
        check_places(books, PERMITS)
        self.model.watch_states(books)

    def write_results(self, ids: list[str]) -> None:
        """Stands in for Celery's result backend."""
        if ids:
            self.model.results |= {id_: self.record(id_)["state"] for id_ in ids}
            for id_ in ids:
                self.ledger.result_written(id_)

    def sent_again(self, scripts: Scripts, name: str, given: dict[str, Any], answer: Any) -> Any:
        """Invariant 11: a script run twice has the effect and the answer of once. The second answer is the one that arrives."""
        before = self.books().all
        again = scripts.run(name, **given)
        if name == "claim" and "token" not in answer:
            return again  # nothing was claimed, so it is a new question
        if name != "accept":  # `known` instead of `accepted`, and no second wake-up
            check(11, again == answer, f"{name} answered {answer}, then {again}")
        after = self.books().all
        changed = {key: (before.get(key), after.get(key)) for key in before.keys() | after.keys()}
        changed = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
        check(11, not changed, f"{name} sent twice changes {changed}")
        return again
