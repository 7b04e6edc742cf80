"""An API and a ledger that follow a script, and a clock that moves only when it is told to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.bfl import Answer
from tasks.claims import Claimed, Verdict
from tasks.deletion import Run
from tasks.errors import KeyRefused, NotFound, Refused, Unclear
from tasks.gate import HandBack
from tasks.outcomes import Outcome, Rules
from tasks.records import to_ms

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_MS = to_ms(NOW)
OURS = "my-finetune"
ONE_SECOND = timedelta(seconds=1)
THERE = {"timestamp": "2026-02-01T10:00:00+00:00", "trigger_word": "TOK", "mode": "style"}
OTHER = {**THERE, "trigger_word": "NEW", "mode": "character"}
AGELESS = {"trigger_word": "TOK"}

DONE = Answer("success", "Finetune deleted", "2026-03-01T12:00:00Z", http_status=200, seconds=0.1)
GONE = NotFound("Finetune not found or access denied", http_status=404, from_api=True)
NO_PAGE = NotFound("Not Found", http_status=404)
NOT_ALLOWED = Refused("Method Not Allowed", http_status=405, from_api=True)
NO_KEY = KeyRefused("Forbidden", http_status=403, from_api=True)
RESET = Unclear("the connection broke (ConnectionResetError)")


class Unscripted(BaseException):
    """A call that the test did not foresee; no `Exception`, so that nothing under test can swallow it."""


class Clock:
    """Seconds on a monotonic clock; a sleep only moves it on."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.slept: list[float] = []
        self.stopping = False

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        if self.stopping:
            raise HandBack("the worker is stopping")
        self.slept += [seconds] if seconds else []
        self.seconds += seconds


class FakeApi:
    """Replays answers and raises errors; `(seconds, answer)` takes its time.

    Looks and lists repeat their last answer; every delete must be in the script.
    """

    def __init__(self, clock: Clock, deletes: Iterable[Any], details: Iterable[Any], lists: Iterable[Any]) -> None:
        self.clock = clock
        self.scripts = {"delete": list(deletes), "details": list(details), "list": list(lists)}
        self.calls: Counter[str] = Counter()

    def delete_finetune(self, finetune_id: str) -> Any:
        return self._replay("delete", finetune_id)

    def finetune_details(self, finetune_id: str) -> Any:
        return self._replay("details", finetune_id)

    def my_finetunes(self) -> Any:
        return self._replay("list", OURS)

    def _replay(self, kind: str, finetune_id: str) -> Any:
        self.calls[kind] += 1
        script = self.scripts[kind]
        if not script or finetune_id != OURS:
            raise Unscripted(f"{kind} of {finetune_id}, call {self.calls[kind]}")
        answer = script[0] if len(script) == 1 and kind != "delete" else script.pop(0)
        if isinstance(answer, tuple):
            seconds, answer = answer
            self.clock.seconds += seconds
        if isinstance(answer, BaseException):
            raise answer
        return answer


class FakeLedger:
    """Says `go` once its words are used up, `look` to every look; remembers what it was told."""

    def __init__(
        self,
        *words: str,
        look: str = "go",
        cool: timedelta = ONE_SECOND,
        keeps: bool = True,
        fails: Exception | None = None,
    ) -> None:
        self.words = list(words)
        self.look = look
        self.cool = cool
        self.keeps = keeps
        self.fails = fails
        self.checked: list[Claimed] = []
        self.actions: list[tuple[str, dict[str, Any]]] = []
        self.kept: list[tuple[str, int]] = []

    def check(self, calls: Sequence[Claimed], *, mark: bool = True, look: bool = False) -> list[Verdict]:
        if self.fails:
            raise self.fails
        if look:
            return [Verdict(self.look, self.cool)]
        self.checked += calls
        return [Verdict(self.words.pop(0) if self.words else "go", self.cool)]

    def wait(self, claimed: Claimed, attempts: str, unclear_at: int) -> bool:
        self.kept.append((attempts, unclear_at))
        return self.keeps

    def account(self, account: str, action: str, **details: Any) -> int:
        self.actions.append((action, {"account": account, **details}))
        return round(self.cool.total_seconds() * 1000)


class Case:
    """One claimed deletion with its script: what the API will answer to deletes, looks and lists."""

    def __init__(
        self,
        deletes: Sequence[Any] = (),
        details: Sequence[Any] = (THERE,),
        lists: Sequence[Any] = ([],),
        *,
        ledger: FakeLedger | None = None,
        rules: Rules | None = None,
        began_ago: float = 0,
        **claim: Any,
    ) -> None:
        self.clock = Clock()
        self.ledger = ledger or FakeLedger()
        self.api = FakeApi(self.clock, deletes, details, lists)
        api, fake_ledger = self.api, self.ledger
        collaborators: dict[str, Any] = {"api": api, "ledger": fake_ledger, "rules": rules or Rules()}
        began = self.clock() - began_ago
        self.run = Run(claimed(**claim), sleep=self.clock.sleep, clock=self.clock, began=began, **collaborators)
        self.outcome = Outcome(None)

    def carried_out(self) -> Case:
        self.outcome = self.run.run()
        return self

    @property
    def result(self) -> tuple[str, int]:
        """Its state, with the evidence where there is any, and how many deletes were sent."""
        words = [word for word in (self.outcome.state, self.outcome.evidence) if word]
        return "/".join(words), self.api.calls["delete"]

    @property
    def written(self) -> dict[str, Any]:
        return self.run.input(self.outcome)


def claimed(
    *, asked_ago: timedelta = timedelta(minutes=1), due_ago: timedelta = timedelta(0), **fields: Any
) -> Claimed:
    """A claim just made, of a deletion that has a week from when it is due."""
    usual: dict[str, Any] = {
        "kind": "delete",
        "id": "deletion-1",
        "token": 7,
        "finetune_id": OURS,
        "account": "default",
        "asked_at": to_ms(NOW - asked_ago),
        "due_at": to_ms(NOW - due_ago),
        "deadline": to_ms(NOW - due_ago + timedelta(days=7)),
        "claimed_at": NOW_MS,
    }
    return Claimed(**{**usual, **fields})
