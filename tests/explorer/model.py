"""What the explorer knows and the janitor does not: which life each request meant, and what each call did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.records import is_final
from tests.explorer.books import Books, check
from tests.explorer.world import LATE_MS, Call, Life, World

HOUR = 3_600_000
SETTLED = 30_000
_LONGEST_CALL = 21_000  # also of a worker that is frozen and does not see its end


@dataclass
class Asked:
    """One accepted request. at: true time of asking; meant: the life that was there then."""

    id: str
    name: str
    at: int
    meant: Life | None
    is_cleanup: bool = False
    retry_of: str = ""
    is_cancelled: bool = False  # `cancelled` was answered
    forbidden_at: int | None = None  # tick when a cancel forbade further attempts
    is_withdrawn: bool = False  # a cancel, a touch or a protection came


@dataclass
class Model:
    world: World
    asked: dict[str, Asked] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    ended: dict[str, int] = field(default_factory=dict)  # deletion -> the ledger's counter when it ended
    paused_at: int | None = None
    held_at: int | None = None  # tick since which nothing may be deleted
    was_held: bool = False
    is_rolled_back: bool = False  # a failover lost writes that were answered
    results: dict[str, str] = field(default_factory=dict)  # by-name requests: the Celery result that was written

    def of(self, deletion: str) -> list[Call]:
        """The calls of a deletion, and of those that it continues."""
        old = self.asked[deletion].retry_of
        return [call for call in self.world.calls if call.deletion == deletion] + (self.of(old) if old else [])

    @property
    def slack(self) -> int:
        """How much younger than its request a finetune may be by the design: tolerance, whole seconds, clocks that were set."""
        return (60_000 if self.world.kind == "undated" else 5_000) + 2_000 + self.world.steps_of_clocks

    def watch_states(self, books: Books) -> None:
        """Invariant 17: final states change only by the two exceptions."""
        for id_, d in books.records.items():
            before, after = self.states.get(id_, d["state"]), d["state"]
            late = after == "deleted" or (before, after) in (("superseded", "review"), ("deleted", "review"))
            ok = before == after or not is_final(before) or late or self.is_rolled_back
            check(17, ok, f"{id_} went from {before} to {after}")
            if is_final(after) and not is_final(before):
                self.ended[id_] = int(books.all["seq"])
            if before == "running" != after:
                self._claim_ended(id_, int(books.all["seq"]), is_lost=d.get("finished_token") != d.get("token"))
            self.states[id_] = after
        missing = self.asked.keys() - books.records.keys()
        check(1, not missing, f"no record of {missing}")

    def _claim_ended(self, id_: str, number: int, *, is_lost: bool) -> None:
        for call in self.world.calls:
            if call.deletion == id_ and call.finish_number is None:
                call.finish_number = number
                call.result = "unclear" if is_lost else call.result  # to everybody but its worker

    def start_of_call(self, d: Mapping[str, str], watcher: Any) -> None:
        """Invariants 2, 3 and 4, when a delete leaves the worker."""
        claim, now = watcher.claim, self.world.now
        asked = self.asked[claim.id]
        if not self.is_rolled_back:
            check(4, not asked.is_cancelled, f"a call for {claim.id} after `cancelled` was answered")
            check(4, not is_final(d["state"]), f"a call for {claim.id}, which is {d['state']}")
        if not self.is_rolled_back and not self.world.steps_of_clocks:
            check(3, d.get("token") == claim.token, f"a call for {claim.id} under an old token")
            others = [
                call
                for call in self.world.calls
                if call.ended is None
                and now - call.started < _LONGEST_CALL
                and call.deletion in self._siblings(asked)
            ]
            check(
                2,
                not others,
                f"a call for {claim.id} while one for {[call.deletion for call in others]} is under way",
            )
        if not self.is_rolled_back and asked.forbidden_at is not None:
            check(4, watcher.marked_at < asked.forbidden_at, f"a call for {claim.id}, marked after a cancel")
        if not self.is_rolled_back and self.held_at is not None:
            check(4, watcher.marked_at < self.held_at, f"a call for {claim.id}, marked after a hold")
        self._is_fresh(claim.id, watcher)
        paused = self.paused_at is not None and now - self.paused_at > 2_000
        check(4, not paused or self.is_rolled_back, f"a call for {claim.id} more than two seconds after the pause")

    def _is_fresh(self, id_: str, watcher: Any) -> None:
        now = self.world.now
        check(3, watcher.ended is not None, f"a call for {id_} without an observation")
        if self.world.is_suspended and self.world.steps_of_clocks:
            return  # then neither clock of the worker is right: a limit
        check(3, now - watcher.ended <= 2_000, f"the observation before a call for {id_} is too old")
        fresh = now - watcher.began <= 2_000 or watcher.observations >= 3
        check(3, fresh, f"a call for {id_} after {watcher.observations} slow observations")

    def _siblings(self, asked: Asked) -> list[str]:
        return [one.id for one in self.asked.values() if one.name == asked.name]

    def has_hit(self, call: Call, life: Life) -> None:
        """Invariant 3 and 19: a delete takes effect on the life that was meant, as far as the API lets it be known."""
        asked = self.asked[call.deletion]
        if life is asked.meant or life.born > call.served_at:
            return
        meant = f"life {asked.meant.number}" if asked.meant else "none"
        check(
            3,
            self._may_be_taken_for_it(asked, life, call),
            f"{call.deletion} hit life {life.number}, meant {meant}",
        )

    def _may_be_taken_for_it(self, asked: Asked, life: Life, call: Call) -> bool:
        """Whether the API tells too little to know better; then the design bounds the time in which a name is believed."""
        kind, within = self.world.kind, HOUR + self.slack
        # What a worker saw before its clock stood still, or before a clock was set, is not kept.
        is_first = call.first_life is life or self.world.is_suspended or self.world.steps_of_clocks > 0
        if not call.known and call.first_life is None:  # details answered 405 each time
            return call.started - asked.at <= within
        is_told = kind == "late" and call.served_at >= life.born + LATE_MS
        if is_told or kind in ("created", "undated", "both", "odd", "moving"):
            # A creation time in the future of the API's clock is not usable: then the name is believed for an hour.
            limit = HOUR if self.world.steps_of_clocks else 0
            return life.born <= asked.at + self.slack + limit and call.known_life in (None, life)
        if kind in ("uid", "late"):
            may_be_first = call.known_life is None and is_first and call.started - asked.at <= within
            return call.known_life is life or may_be_first
        if kind == "settings":
            return is_first and (call.known or call.started - asked.at <= within)
        return call.started - asked.at <= within or (kind == "plain" and call.known and call.seen_ago <= within)

    def check_outcomes(self, books: Books) -> None:
        """Invariants 5, 6, 7, 8 and 14, when everything is final."""
        records = books.records
        for id_, d in records.items():
            judge = getattr(self, f"_{d['state']}", None)
            if judge:
                judge(self.asked[id_], d, records)

    def _deleted(self, asked: Asked, d: Mapping[str, str], records: Mapping[str, Mapping[str, str]]) -> None:
        is_there = asked.meant and asked.meant.gone is None
        check(5, not is_there, f"{asked.id} is deleted ({d['evidence']}), but the life it meant is there")
        by = d.get("deleted_by", asked.id)
        # A worker that was lost after its mark may have made the call, for all that the ledger knows.
        tried = any(call.result != "no" for call in self.of(by)) or self._has_crashed(by, records)
        check(5, tried, f"{asked.id} is deleted, but no attempt may have done it")
        if d["evidence"] == "sibling":
            other = records[by]
            if not self.is_rolled_back:
                check(5, other["state"] == "deleted", f"{asked.id} is deleted by {by}, which is {other['state']}")
                check(
                    5,
                    other.get("evidence") != "sibling",
                    f"{asked.id} is deleted by {by}, which a sibling deleted",
                )

    def _has_crashed(self, id_: str, records: Mapping[str, Mapping[str, str]]) -> bool:
        old = self.asked[id_].retry_of
        return "crashes" in records[id_] or (bool(old) and self._has_crashed(old, records))

    def _not_found(self, asked: Asked, d: Mapping[str, str], records: Any) -> None:
        life = asked.meant
        if self.is_rolled_back or not life:
            return
        was_seen = bool(d.get("vantage"))
        check(14, life.gone is not None or not was_seen, f"{asked.id} is not_found, was seen, and is there")
        # A clock that was set forward ends the 30 seconds in which an attempt may still be applied: a limit of the design.
        if life.by is None or self.world.steps_of_clocks:
            return
        check(6, life.by.deletion != asked.id, f"{asked.id} is not_found and has removed it itself")
        number = life.by.finish_number
        finished_meanwhile = number is not None and int(d["accepted"]) <= number <= self.ended[asked.id]
        check(6, not finished_meanwhile, f"{asked.id} is not_found, but {life.by.deletion} removed what it meant")

    def _superseded(self, asked: Asked, d: Mapping[str, str], records: Any) -> None:
        life = asked.meant
        is_there = life and life.gone is None and not self.world.steps_of_clocks
        check(7, not is_there, f"{asked.id} is superseded, but the life it meant is there: {d['message']}")
        self._has_removed_nothing(7, asked, d)

    def _failed(self, asked: Asked, d: Mapping[str, str], records: Any) -> None:
        self._has_removed_nothing(7, asked, d)
        for call in self.of(asked.id):
            until = call.started + SETTLED
            life = asked.meant
            is_there = not life or life.gone is None or life.gone > until
            stayed = call.result == "no" or is_there or self._was_followed(life)
            check(
                7, stayed or self.world.steps_of_clocks, f"{asked.id} is failed, its last attempt was not settled"
            )

    def _cancelled(self, asked: Asked, d: Mapping[str, str], records: Any) -> None:
        is_meant = asked.is_withdrawn or asked.is_cleanup or self.was_held
        check(8, is_meant, f"{asked.id} is cancelled by nobody: {d['message']}")
        self._has_removed_nothing(8, asked, d)

    def _was_followed(self, life: Life) -> bool:
        later = [
            one for one in self.world.lives if one.name == life.name and one.born >= (life.gone or one.born + 1)
        ]
        return self.world.kind == "plain" and bool(later)

    def _has_removed_nothing(self, number: int, asked: Asked, d: Mapping[str, str]) -> None:
        # Where all lives look the same, one that followed soon was taken for it: a limit.
        hits = [call.hit for call in self.of(asked.id) if call.hit and not self._was_followed(call.hit)]
        # A clock that was set forward ends the 30 seconds in which an attempt may still be applied, too.
        if not self.is_rolled_back and not self.world.steps_of_clocks:
            check(number, not hits, f"{asked.id} is {d['state']} and has removed {[life.number for life in hits]}")


class Watcher:
    """What one worker does in the hands of `carry_out`: told by its API."""

    def __init__(self, model: Model, name: str, read: Any) -> None:
        self.model = model
        self.name = name
        self.read = read  # id -> fields of the record now
        self.claim: Any = None

    def claimed(self, claim: Any) -> None:
        self.claim = claim
        self.ended: int | None = None
        self.began = self.served = self.observations = self.marked_at = 0
        self.first_life: Life | None = None

    def observation_begins(self) -> None:
        self.began = self.model.world.now

    def observation_served(self) -> None:
        self.served = self.model.world.now

    def observation_ends(self, life: Life | None) -> None:
        self.ended = self.model.world.now
        self.observations += 1
        self.first_life = self.first_life or life

    def call_begins(self, finetune_id: str) -> Call:
        world = self.model.world
        self.model.start_of_call(self.read(self.claim.id), self)
        call = Call(
            self.claim.id, self.name, world.now, self.served, known=bool(self.claim.incarnation), known_life=world.told_by(self.claim.incarnation),
            first_life=self.first_life, seen_ago=world.redis_ms() - self.claim.observed_at,
        )  # fmt: skip
        world.calls.append(call)
        self.observations = 0
        return call

    def call_ends(self, call: Call, result: str) -> None:
        call.ended = self.model.world.now
        if call.finish_number is None:  # else nobody hears of it: the lease has ended
            call.result = result

    def list_ends(self) -> None:
        self.ended = self.model.world.now

    def has_hit(self, call: Call, life: Life) -> None:
        self.model.has_hit(call, life)
