"""An API and a ledger that follow a script, and a clock that moves only when it is told to."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from tasks.api.client import Answer, Details, Listing
from tasks.api.errors import KeyRefused, NotFound, Refused, Unclear
from tasks.api.incarnations import incarnation_of
from tasks.deletion import Rules, carry_out
from tasks.errors import HandBack
from tasks.ledger.types import Claim, Finish, Progress, Terms, Verdict
from tasks.records import to_ms

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
NOW_MS = to_ms(NOW)
OURS = "my-finetune"
HERE, ELSEWHERE = "api.test 11111111", "api.test 22222222"
ONE_SECOND = timedelta(seconds=1)

# What details tell: of the finetune that is meant, of a newer one with its name, and without a creation time.
THERE = {"created_at": "2026-02-01T10:00:00Z", "trigger_word": "TOK", "mode": "style"}
NEWER = {"created_at": "2026-03-01T11:59:30Z", "trigger_word": "NEW", "mode": "style"}
AGELESS = {"trigger_word": "TOK", "mode": "style"}
AGELESS_OTHER = {"trigger_word": "NEW", "mode": "style"}
CHANGED = {**AGELESS, "views": 8}
SEEN, SEEN_AGELESS, SEEN_CHANGED = (incarnation_of(fields, OURS).to_text() for fields in (THERE, AGELESS, CHANGED))

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
        self.stops_after: int | None = None  # calls of `sleep`, which is asked before each call of the API

    def __call__(self) -> float:
        return self.seconds

    def sleep(self, seconds: float) -> None:
        if self.stops_after == 0:
            raise HandBack("the worker is stopping")
        if self.stops_after is not None:
            self.stops_after -= 1
        self.slept += [seconds] if seconds else []
        self.seconds += seconds


class FakeApi:
    """Replays answers and raises errors; `(seconds, answer)` takes its time.

    Details and lists repeat their last answer; every delete must be in the script.
    """

    host, vantage = "api.test", HERE

    def __init__(self, clock: Clock, deletes: Iterable[Any], details: Iterable[Any], lists: Iterable[Any]) -> None:
        self.clock = clock
        self.scripts = {"delete": list(deletes), "details": list(details), "list": list(lists)}
        self.calls: Counter[str] = Counter()
        self.unique_ids: list[str | None] = []

    def delete_finetune(self, finetune_id: str, *, unique_id: str | None = None) -> Any:
        self.unique_ids.append(unique_id)
        return self._replay("delete", finetune_id)

    def finetune_details(self, finetune_id: str) -> Details:
        fields = self._replay("details", finetune_id)
        return Details(fields, NOW + timedelta(seconds=self.clock.seconds - 1000))

    def my_finetunes(self) -> Listing:
        names = self._replay("list", OURS)
        return Listing(frozenset(names), len(names))

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


HELD = "held since yesterday by ana: a lawsuit"


class FakeLedger:
    """Says `go` to every mark once its words are used up, or `stale`; remembers what it was told.

    cool: how long a cool-down lasts. slow: seconds that a mark takes. ahead: by how much Redis's clock has moved
    on more than ours. fails: raised by each mark.
    """

    def __init__(
        self, *words: str, cool: timedelta = ONE_SECOND, slow: float = 0, ahead: float = 0,
        fails: Exception | None = None,
    ) -> None:  # fmt: skip
        self.terms = Terms()
        self.words = list(words)
        self.cool = cool
        self.slow = slow
        self.ahead = ahead
        self.fails = fails
        self.clock = Clock()
        self.marks: list[tuple[int, Progress]] = []
        self.actions: list[tuple[str, dict[str, Any]]] = []

    def now_ms(self) -> int:
        return NOW_MS + round((self.clock.seconds - 1000 + self.ahead) * 1000)

    def mark(self, claim: Claim, progress: Progress, attempt: int, fresh_until: datetime) -> Verdict:
        self.marks.append((attempt, progress))
        if self.fails:
            raise self.fails
        self.clock.seconds += self.slow
        usual = "stale" if self.now_ms() > to_ms(fresh_until) else "go"
        word = self.words.pop(0) if self.words else usual
        return Verdict(word, self.cool, self.now_ms(), HELD if word == "held" else "")

    def account(self, account: str, action: str, **details: Any) -> int:
        self.actions.append((action, {"account": account, **details}))
        return round(self.cool.total_seconds() * 1000)


class Case:
    """One claimed deletion with its script: what the API will answer to deletes, details and lists."""

    def __init__(
        self,
        deletes: Sequence[Any] = (),
        details: Sequence[Any] = (THERE,),
        lists: Sequence[Any] = ([],),
        *,
        ledger: FakeLedger | None = None,
        rules: Rules | None = None,
        stops_after: int | None = None,
        **claim: Any,
    ) -> None:
        self.ledger = ledger or FakeLedger()
        self.clock = self.ledger.clock
        self.clock.stops_after = stops_after
        self.api = FakeApi(self.clock, deletes, details, lists)
        self.claim = claimed(**claim)
        self.rules = rules or Rules()
        self.finish = Finish(result="back")

    def carried_out(self) -> Case:
        collaborators: dict[str, Any] = {"api": self.api, "ledger": self.ledger}
        self.finish, self.progress = carry_out(
            self.claim, **collaborators, rules=self.rules, sleep=self.clock.sleep, clock=self.clock
        )
        return self

    @property
    def result(self) -> tuple[str, int]:
        """Its result, with the evidence if there is any, and how many deletes were sent."""
        return shown(self.finish), self.api.calls["delete"]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        """The attempts that are not in the record yet."""
        return [json.loads(line) for line in self.progress.lines]


def shown(finish: Finish) -> str:
    """The result of a finish, with its evidence if there is any: `deleted/response`."""
    return "/".join(word for word in (finish.result, finish.evidence) if word)


def claimed(
    *, asked_ago: timedelta = timedelta(minutes=1), due_ago: timedelta = timedelta(0), **fields: Any
) -> Claim:
    """A claim made at `NOW`, number 10 of the ledger's counter. What was seen before was so from `HERE`."""
    usual: dict[str, Any] = {
        "kind": "delete", "id": "deletion-1", "token": "runner:1", "lane": "single", "account": "default",
        "finetune_id": OURS, "now": NOW_MS, "accepted": 10, "asked_at": to_ms(NOW - asked_ago),
        "due_at": to_ms(NOW - due_ago),
    }  # fmt: skip
    if fields.get("incarnation"):
        usual |= {"vantage": HERE, "observed_at": NOW_MS - 60_000}
    return Claim(**{**usual, **fields})
