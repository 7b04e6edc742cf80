"""The world of the explorer: one true clock, others that may be set wrong, and an API that knows every life of a name."""

from __future__ import annotations

import heapq
import itertools
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tasks.api import errors
from tasks.api.client import Answer, Details, Listing
from tasks.api.incarnations import incarnation_of
from tasks.records import from_ms
from tasks.text import finetune_key

START = 1_780_000_000_000  # ms, the true clock
CALL_DEADLINE = 20.0  # seconds
# What the API tells of a finetune: `created` a creation time, `undated` the same without a `Date`, `uid` a unique id, `both`,
# `settings` other settings in each life, `plain` equal ones, `shifting` a field that changes at each answer, `odd` a unique id that
# does so beside a creation time, `moving` a creation time in another field in each life, `late` a unique id at once and a creation time
# later, `empty` nothing, `listed` details answers 405.
KINDS = (
    "created", "undated", "uid", "both", "settings", "plain", "shifting", "odd", "moving", "late", "empty", "listed"
)  # fmt: skip
LATE_MS = 20_000  # after which `late` tells the creation time
HOME, ELSEWHERE = "api.test 11111111", "other.test 22222222"  # vantages: the second sees no finetune


@dataclass
class Life:
    """One incarnation of a name. born, gone: true times; by: the call that removed it, None if somebody else did."""

    number: int
    name: str
    born: int
    created_at: str
    gone: int | None = None
    by: Call | None = None

    def is_there(self, at: int) -> bool:
        return self.born <= at and (self.gone is None or self.gone > at)


@dataclass
class Call:
    """One delete call. result: what its caller made of it: yes, no, unclear (also if the caller crashed)."""

    deletion: str
    worker: str
    started: int
    served_at: int  # when the API served the observation before it
    known: bool  # the record told the incarnation when the deletion was claimed
    known_life: Life | None  # the one that it told, if it can be told
    first_life: Life | None  # the first one that was seen since the claim
    seen_ago: int  # milliseconds since the record's last observation
    hit: Life | None = None
    result: str = "unclear"
    ended: int | None = None
    finish_number: int | None = None  # the ledger's counter when the claim ended under which it was made


@dataclass
class World:
    """kind: see KINDS. Times are milliseconds; `now` is true, the clocks of Redis and of the API are off by their skews."""

    kind: str
    rng: random.Random
    now: int = START
    redis_skew: int = 0
    api_skew: int = 0
    steps_of_clocks: int = 0  # how far clocks were set, in all
    is_suspended: bool = False  # the clock of a worker stood still
    lives: list[Life] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)  # of the next deletes, one each
    slow: list[float] = field(default_factory=list)  # seconds that the next observations take
    observation_faults: list[str] = field(default_factory=list)
    answers: int = 0
    ticks: int = 0  # scripts so far: what came before what
    is_cut: bool = False  # lists speak of more pages
    _timeline: list[tuple[int, int, Callable[[], None]]] = field(default_factory=list)
    _count: Any = field(default_factory=itertools.count)

    def redis_ms(self) -> int:
        return self.now + self.redis_skew

    def api_time(self) -> datetime:
        return from_ms(self.now + self.api_skew)

    def at(self, when: int, action: Callable[[], None]) -> None:
        """Do something when the true clock gets there."""
        heapq.heappush(self._timeline, (when, next(self._count), action))

    def next_time(self) -> int | None:
        return self._timeline[0][0] if self._timeline else None

    def advance(self, to: int) -> None:
        while self._timeline and self._timeline[0][0] <= to:
            when, _, action = heapq.heappop(self._timeline)
            self.now = max(self.now, when)
            action()
        self.now = max(self.now, to)

    def create(self, name: str) -> Life:
        life = Life(len(self.lives) + 1, finetune_key(name), self.now, self.api_time().isoformat())
        self.lives.append(life)
        return life

    def present(self, name: str, at: int | None = None) -> Life | None:
        """The life of a name at a true time; now if none is given."""
        when = self.now if at is None else at
        key = finetune_key(name)
        return next((life for life in self.lives if life.name == key and life.is_there(when)), None)

    def remove(self, name: str) -> None:
        """Somebody else deletes it."""
        life = self.present(name)
        if life:
            life.gone = self.now

    def told_by(self, incarnation: str) -> Life | None:
        """The life whose identity is in the text of an incarnation."""
        identity = json.loads(incarnation or "{}").get("identity", {})
        return next(
            (life for life in self.lives if identity and identity.items() <= self._identity(life).items()), None
        )

    def _identity(self, life: Life) -> dict[str, str]:
        return dict(incarnation_of(self.details(life), life.name).identity)

    def details(self, life: Life) -> dict[str, Any]:
        self.answers += 1
        fields: dict[str, Any] = {"mode": "style", "trigger_word": "TOK", "iterations": 300}
        if self.kind == "empty":
            return {"finetune_comment": "for a test"}
        if self.kind in ("created", "undated", "both", "odd"):
            fields["created_at"] = life.created_at
        if self.kind == "moving":
            fields["created_at" if life.number % 2 else "timestamp"] = life.created_at
        if self.kind == "late" and self.now >= life.born + LATE_MS:
            fields["created_at"] = life.created_at
        if self.kind in ("uid", "both", "late"):
            fields["id"] = f"uid-{life.number}"
        if self.kind == "odd":
            fields["id"] = f"answer-{self.answers}"
        if self.kind == "settings":
            fields["iterations"] = 300 + life.number
        if self.kind == "shifting":
            fields["views"] = self.answers
        return fields


DONE = ("success", "Finetune deleted")


class Api:
    """What `carry_out` is given instead of a `BflClient`: one for each worker.

    request: sends a call: (label, serve, seconds until served, seconds in all) -> the answer; it passes control on.
    """

    def __init__(self, world: World, vantage: str, request: Callable[..., Any], watcher: Any) -> None:
        self.world = world
        self.vantage = vantage
        self.host = vantage.partition(" ")[0]
        self._request = request
        self._watcher = watcher

    def my_finetunes(self) -> Listing:
        names = self._request("my_finetunes", self._names, 0.02, 0.04)
        self._watcher.list_ends()
        return Listing(frozenset(names), len(names), "the field 'next'" if self.world.is_cut else None)

    def finetune_details(self, finetune_id: str) -> Details:
        world = self.world
        seconds = world.slow.pop(0) if world.slow else 0.04
        fault = world.observation_faults.pop(0) if world.observation_faults else ""
        self._watcher.observation_begins()
        life, date = self._request(f"details of {finetune_id}", lambda: self._show(finetune_id), 0.02, seconds)
        self._watcher.observation_ends(None if fault else life)
        if fault == "500":
            raise errors.Unclear("Internal Server Error", http_status=500)
        if world.kind == "listed" or fault == "405":
            raise errors.Refused("Method Not Allowed", http_status=405, from_api=True)
        if life is None or fault == "404":
            raise errors.NotFound("Finetune not found or access denied", http_status=404, from_api=True)
        return Details(world.details(life), None if world.kind == "undated" else date.replace(microsecond=0))

    def delete_finetune(self, finetune_id: str, *, unique_id: str | None = None) -> Answer:
        fault = self.world.faults.pop(0) if self.world.faults else ""
        call = self._watcher.call_begins(finetune_id)
        seconds = CALL_DEADLINE if fault in ("timeout", "late", "applied-timeout") else 0.04
        # `late`: the caller gives up, and the API applies it a second later. `late-reset`: it is told nothing at once.
        served_after = {"late": CALL_DEADLINE + 1, "late-reset": CALL_DEADLINE, "applied-timeout": 3.0}.get(
            fault, 0.02
        )

        def serve() -> bool:
            if fault in ("", "applied-500", "applied-timeout", "late", "late-reset", "odd-status", "wrong-id"):
                return self._apply(finetune_id, call)
            return False

        if fault == "not-sent":
            self._watcher.call_ends(call, "no")
            raise errors.NotSent(f"refused: {self.host}")
        hit = self._request(f"delete of {finetune_id}", serve, served_after, seconds, call=call)
        result, answer = self._answer(fault, hit=hit)
        self._watcher.call_ends(call, result)
        if isinstance(answer, errors.ApiError):
            raise answer
        return answer

    def _answer(self, fault: str, *, hit: bool) -> tuple[str, Answer | errors.ApiError]:
        refusals: dict[str, tuple[str, errors.ApiError]] = {
            "500": ("unclear", errors.Unclear("Internal Server Error", http_status=500)),
            "applied-500": ("unclear", errors.Unclear("Internal Server Error", http_status=500)),
            "timeout": ("unclear", errors.Unclear("read timeout")),
            "applied-timeout": ("unclear", errors.Unclear("read timeout")),
            "late": ("unclear", errors.Unclear("read timeout")),
            "late-reset": ("unclear", errors.Unclear("the connection broke")),
            "odd-status": (
                "unclear",
                errors.Unclear("the answer's status 'Pending' is not a known word", http_status=200),
            ),
            "wrong-id": ("unclear", errors.WrongFinetune("it names another finetune", http_status=200)),
            "429": ("no", errors.Throttled("slow down", http_status=429)),
            "503": ("no", errors.TryAgain("not yet", http_status=425)),
            "refused": ("no", errors.Refused("not allowed", http_status=409, from_api=True)),
            "403": ("no", errors.KeyRefused("Forbidden", http_status=403, from_api=True)),
            "404": ("no", errors.NotFound("Finetune not found or access denied", http_status=404, from_api=True)),
        }
        if fault in refusals:
            return refusals[fault]
        if not hit:
            return "no", errors.NotFound("Finetune not found or access denied", http_status=404, from_api=True)
        status, message = DONE
        return "yes", Answer(status, message, datetime.now(UTC).isoformat(), http_status=200, seconds=0.04)

    def _names(self) -> list[str]:
        self._watcher.observation_served()
        if self.vantage != HOME:
            return []
        return [life.name for life in self.world.lives if life.is_there(self.world.now)]

    def _show(self, finetune_id: str) -> tuple[Life | None, datetime]:
        life = self.world.present(finetune_id) if self.vantage == HOME else None
        self._watcher.observation_served()
        return life, self.world.api_time()

    def _apply(self, finetune_id: str, call: Call) -> bool:
        life = self.world.present(finetune_id) if self.vantage == HOME else None
        if life is None:
            return False
        life.gone, life.by, call.hit = self.world.now, call, life
        self._watcher.has_hit(call, life)
        return True
