"""What can happen at a step of a scenario, by name."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

from tasks.api.incarnations import incarnation_of
from tasks.ledger.holds import hold, release
from tasks.ledger.types import Act
from tasks.records import NewRequest, from_ms
from tests.explorer.books import ACCOUNT, check
from tests.explorer.model import Asked
from tests.explorer.stage import Stage, Worker
from tests.explorer.world import ELSEWHERE, HOME

NAME = "0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10"


class Events:
    """Each public method is an event."""

    def __init__(self, stage: Stage) -> None:
        self.world = stage.world
        self.stage = stage
        self.model = stage.model
        self.saved: int | None = None  # how many requests there were

    def ask(self, id_: str, *, name: str = NAME, **options: Any) -> None:
        """delay, ago: seconds; cleanup, retry_of."""
        at = self.world.now - round(options.get("ago", 0) * 1000)
        old = self.model.asked.get(options.get("retry_of", ""))
        if options.get("retry_of") and (
            not old or self.stage.record(old.id).get("state") not in ("failed", "review")
        ):
            return
        is_cleanup = bool(options.get("cleanup"))
        meant = old.meant if old else self.world.present(name, at)
        if is_cleanup and not meant:
            return
        self.model.asked[id_] = Asked(
            id_, name.lower(), old.at if old else at, meant,
            # A retry of a cleanup's deletion is one of the cleanup, too.
            is_cleanup=is_cleanup or bool(old and old.is_cleanup), retry_of=options.get("retry_of", ""),
        )  # fmt: skip
        requested_at = from_ms(self.world.redis_ms() - round(options["ago"] * 1000)) if "ago" in options else None
        delay = timedelta(seconds=options["delay"]) if "delay" in options else None
        seen: dict[str, Any] = {}
        if is_cleanup and meant:
            text = incarnation_of(self.world.details(meant), name).to_text()
            seen = {"incarnation": text, "observed_at": from_ms(self.world.redis_ms()), "vantage": HOME}
        source = "cleanup:plan" if is_cleanup else "name"
        self.stage.ledger.accept([NewRequest(
            id_, name, source=source, delay=delay, requested_at=requested_at, retry_of=options.get("retry_of"), **seen,
        )])  # fmt: skip
        self.wake()

    def cancel(self, id_: str) -> None:
        """Invariant 8: it changes no other record."""
        if id_ not in self.model.asked:
            return
        answer = self._alone(
            {id_}, lambda: self.stage.ledger.cancel([id_], Act("test", "command"), nonce=f"nonce-{id_}")
        )
        (word,), due = answer
        self.stage.note(f"  cancel answered {word}")
        asked = self.model.asked[id_]
        asked.is_cancelled = asked.is_cancelled or word == "cancelled"
        if word == "requested":
            asked.forbidden_at = self.world.ticks
        asked.is_withdrawn = asked.is_withdrawn or word in ("cancelled", "requested")
        self.stage.write_results(due)
        self.wake()

    def keep(self, action: str) -> None:
        """touch or protect; changes only deletions of the cleanup."""
        cleanups = {one.id for one in self.model.asked.values() if one.is_cleanup}
        until = self.world.redis_ms() + 86_400_000 if action == "protect" else None
        self._alone(cleanups, lambda: self.stage.ledger.keep(action, ACCOUNT, [NAME], until))

    def hold(self) -> None:
        """Against every deletion, until `release`: those there are end, or are withdrawn."""
        hold(self.stage.ledger, ACCOUNT, NAME, None, Act("test", "command", "test"))
        self.model.held_at, self.model.was_held = self.world.ticks, True
        self.wake()

    def release(self) -> None:
        release(self.stage.ledger, ACCOUNT, NAME, Act("test", "command"))
        self.model.held_at = None

    def _alone(self, own: set[str], what: Callable[[], Any]) -> Any:
        before = self.stage.books().records
        answer = what()
        after = self.stage.books().records
        changed = {id_ for id_ in before if before[id_] != after[id_]}
        check(8, changed <= own, f"{changed - own} changed, too")
        return answer

    def remove(self) -> None:
        self.world.remove(NAME)

    def create(self) -> None:
        if not self.world.present(NAME):
            self.world.create(NAME)

    def reuse(self) -> None:
        self.remove()
        self.world.now += 1
        self.create()

    def pause(self) -> None:
        self.stage.ledger.account(ACCOUNT, "pause", reason="test")
        self.model.paused_at = self.model.paused_at or self.world.now

    def resume(self) -> None:
        self.stage.ledger.account(ACCOUNT, "resume")
        self.model.paused_at = None
        self.wake()

    def kill(self, number: int | str, vantage: str = HOME) -> None:
        """The process dies; another one starts."""
        worker = self._worker(number)
        if worker.label != "idle" or vantage != HOME:
            worker.kill()
            self.stage.start(worker.name[0], vantage)

    def move_house(self, number: int | str) -> None:
        """The process ends and starts again with a key of another project."""
        self.stop(number, ELSEWHERE)

    def stop(self, number: int | str, vantage: str = HOME) -> None:
        """The process is told to stop; another one starts."""
        worker = self._worker(number)
        worker.is_stopping = True
        self.stage.start(worker.name[0], vantage)

    def freeze(self, number: int | str, seconds: float) -> None:
        worker = self._worker(number)
        worker.frozen_until = self.world.now + round(seconds * 1000)

    def suspend(self, number: int | str, seconds: float) -> None:
        """Frozen, and its clock stands still as well; not between the mark and the call, where nothing could tell."""
        worker = self._worker(number)
        if worker.label != "mark answered" and "delete" not in worker.label:
            self.freeze(number, seconds)
            worker.lost_ms += round(seconds * 1000)
            self.world.is_suspended = True

    def redis_clock(self, seconds: float) -> None:
        self.world.redis_skew += round(seconds * 1000)
        self.world.steps_of_clocks += abs(round(seconds * 1000))

    def api_clock(self, seconds: float) -> None:
        self.world.api_skew += round(seconds * 1000)
        self.world.steps_of_clocks += abs(round(seconds * 1000))

    def wait(self, seconds: float) -> None:
        """Time passes for everybody."""
        self.world.advance(self.world.now + round(seconds * 1000))

    def fault(self, name: str) -> None:
        self.world.faults.append(name)

    def slow(self, *seconds: float) -> None:
        self.world.slow += seconds

    def unclear_observation(self, fault: str = "500") -> None:
        self.world.observation_faults.append(fault)

    def broken_details(self) -> None:
        """Details answers 405 for a while, and the list goes on."""
        self.world.observation_faults += ["405"] * 3

    def become(self, kind: str) -> None:
        """The API tells something else from now on."""
        self.world.kind = kind

    def cut(self) -> None:
        self.world.is_cut = True

    def script(self, fault: str) -> None:
        self.stage.script_faults.append(fault)

    def save(self) -> None:
        """What a replica has."""
        client = self.stage.redis
        client.swapdb(0, 1)
        client.flushdb()  # an earlier copy
        client.swapdb(0, 1)
        for name in client.keys("*"):  # type: ignore[union-attr] # redis-py's stubs
            client.copy(name, name, destination_db=1, replace=True)
        self.saved = len(self.model.asked)

    def roll_back(self) -> None:
        """The replica takes over: what was written since is lost. Accepted requests that are lost are a named limit."""
        if self.saved != len(self.model.asked):
            return
        self.saved = None
        self.model.is_rolled_back = True
        self.stage.redis.swapdb(0, 1)
        self.model.states = {id_: d["state"] for id_, d in self.stage.books().records.items()}

    def _worker(self, number: int | str) -> Worker:
        """By number; `busy` is one that has a claim."""
        alive = self.stage.alive()
        if number == "busy":
            return next(worker for worker in alive if worker.held)
        return alive[number % len(alive)]

    def wake(self) -> None:
        for worker in self.stage.alive():
            if worker.label == "idle":
                worker.until = 0
