"""One deletion, top to bottom: claimed, looked at, attempted, concluded.

`Run.run()` takes what a worker claimed and answers with an `Outcome` for the ledger; it never raises. Calls that
may be repeated are repeated under tenacity within a short budget; what needs longer waits in the ledger.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import structlog

from tasks import errors
from tasks.backoff import Again, long_delay, retried
from tasks.bfl import Answer, BflClient
from tasks.claims import Claimed
from tasks.gate import Cancelled, Gate, HandBack, NotNow
from tasks.incarnations import fingerprint
from tasks.ledger import Ledger
from tasks.looking import Look, Other, look, other_incarnation, too_late_to_know
from tasks.outcomes import Outcome, Rules
from tasks.records import Evidence, State, from_ms

log = structlog.get_logger()

SETTLED_AFTER = timedelta(seconds=30)  # what an attempt did not remove by then, it did not remove


class Run:
    """One claimed deletion in the hands of one thread.

    sleep: waits some seconds, raises `HandBack` when the process is to stop. clock: monotonic seconds; began: when
    the claim was asked for. checked: whether the claim counts as a check.
    """

    def __init__(
        self,
        claimed: Claimed,
        *,
        api: BflClient,
        ledger: Ledger,
        rules: Rules,
        sleep: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
        began: float | None = None,
        checked: bool = True,
    ) -> None:
        self.claimed = claimed
        self.api = api
        self.rules = rules
        self.sleep = sleep
        began = clock() if began is None else began
        self.gate = Gate(claimed, ledger, budget=rules.retry_budget, clock=clock, began=began, checked=checked)
        self.cancelled = bool(claimed.cancel_requested_at)
        self.waited = bool(claimed.looked_at or claimed.backoffs)
        self.fingerprint = claimed.fingerprint
        self.looked_at = claimed.looked_at
        self.unclear_at = claimed.unclear_at
        self.last_tried = bool(claimed.last_tried)
        self.attempts: list[dict[str, Any]] = []

    def run(self) -> Outcome:
        """Carry it out as far as it goes now."""
        try:
            return self._run()
        except (HandBack, NotNow, errors.LedgerUnavailable) as error:
            return Outcome(State.QUEUED, str(error))
        except Again as again:
            return self._later(again)
        except Exception:
            log.exception("deletion.bug")
            return self._later(Again("an internal error, see the worker's log", SETTLED_AFTER))

    def first_look(self) -> Outcome:
        """Look at what waits, so that it is known whom the request meant; concludes only what is clear."""
        try:
            return self._look_before() or Outcome(None)
        except errors.JanitorError as error:
            return Outcome(None, str(error), delay=SETTLED_AFTER)
        except Exception:
            log.exception("look.bug")
            return Outcome(None, "an internal error, see the worker's log", delay=SETTLED_AFTER)

    def input(self, outcome: Outcome) -> dict[str, Any]:
        """`outcome` and what was found on the way, as the ledger's script takes it."""
        return {
            "id": self.claimed.id,
            "token": self.claimed.token,
            "look": self.claimed.kind == "look",
            "permit": self.claimed.permit,
            "joined": self.claimed.joined,
            "expected": self.claimed.fingerprint,
            "state": outcome.state,
            "status": outcome.status,
            "message": outcome.message,
            "timestamp": outcome.timestamp,
            "evidence": outcome.evidence,
            "since_ms": outcome.since_ms,
            "pause": outcome.pause,
            "delay_ms": round(outcome.delay.total_seconds() * 1000) if outcome.delay else None,
            "attempts": self._attempt_lines(),
            "fingerprint": self.fingerprint,
            "looked_at": self.looked_at or "",
            "unclear_at": self.unclear_at or "",
            "last_tried": "1" if self.last_tried else "",
        }

    def _run(self) -> Outcome:
        if self.cancelled or (self._past_deadline() and self.last_tried):
            return self._resolve()
        try:
            return retried(self._once, self.rules.retry_budget, self.sleep, self._before_sleep)
        except Cancelled:
            self.cancelled = True
            return self._resolve()

    def _once(self) -> Outcome:
        self.gate.may_start()
        if self._must_look():
            outcome = self._look_before()
            if outcome:
                return outcome
        self.gate.may_delete(self.fingerprint, self.looked_at)
        return self._attempt()

    def _must_look(self) -> bool:
        return self.rules.look_first == "always" or bool(self.fingerprint or self.unclear_at or self.waited)

    def _look_before(self) -> Outcome | None:
        """The look before the delete; None where the delete may go ahead."""
        began = self.gate.now_ms()
        try:
            found = self._look()
        except (errors.KeyRefused, errors.Refused) as error:
            return self._refused(error)
        except errors.ApiError as error:
            raise self.gate.again(error) from None
        return self._judge(found, began)

    def _judge(self, found: Look, looked_at: int) -> Outcome | None:
        other = self._other(found)
        if not found.there or (other and self.unclear_at):
            return self._gone(other)
        if other:
            return Outcome(State.SUPERSEDED, other.why, since_ms=other.since_ms)
        # After an attempt that may have been applied, a first look is always late.
        within = timedelta(0) if self.unclear_at else self.rules.first_look_within
        if too_late_to_know(found, self.fingerprint, self.claimed.asked_at, self._now(), within):
            why = "first looked at too late, and the API gives no sound timestamp: whether this is the finetune"
            return Outcome(State.REVIEW, f"{why} that was meant is not known")
        if found.details is None and self.fingerprint:
            raise Again("the details cannot be read, so whether this is the finetune that was meant is not known")
        if found.details is not None:
            self.fingerprint = fingerprint(found.details)
        self.looked_at = looked_at
        if not self._unsettled():
            self.unclear_at = 0
        return None

    def _look(self) -> Look:
        return look(self.api, self.claimed.finetune_id, self._before_another_call)

    def _before_another_call(self) -> None:
        self.sleep(0)  # not when the process is to stop
        if self.claimed.kind == "delete":
            self.gate.may_look()

    def _attempt(self) -> Outcome:
        self.sleep(0)  # not when the process is to stop
        began = self.gate.now_ms()
        try:
            answer = self.api.delete_finetune(self.claimed.finetune_id)
        except errors.ApiError as error:
            self._note(began, error)
            return self._after(error, began)
        except BaseException:
            self.unclear_at = began  # whatever went wrong here, the call may have left
            raise
        self._note(began, answer)
        return Outcome(State.DELETED, answer.message, answer.status, answer.timestamp, Evidence.RESPONSE)

    def _after(self, error: errors.ApiError, began: int) -> Outcome:
        """What a faulty answer to a delete means: one row of the table in docs/design.md each."""
        match error:
            case errors.WrongFinetune():
                return Outcome(State.REVIEW, f"{error}; the account is paused", pause=str(error))
            case errors.Unclear():
                self.unclear_at = began
                return self._read_back(error)
            case errors.NotFound():
                return self._read_back(error)
            case errors.KeyRefused() | errors.Refused():
                return self._refused(error)
            case _:
                raise self.gate.again(error)

    def _probe(self, error: errors.KeyRefused) -> None:
        self._before_another_call()
        self.gate.probe(self.api, error)

    def _refused(self, error: errors.ApiError) -> Outcome:
        """Refused for good is `failed`, unless an earlier attempt of ours may still have been applied."""
        if isinstance(error, errors.KeyRefused):
            self._probe(error)
        if self.unclear_at:
            raise Again(str(error))
        return Outcome(State.FAILED, str(error))

    def _read_back(self, error: errors.ApiError) -> Outcome:
        """The answer did not tell, so look: gone, or another's by now, is `deleted` after an unclear attempt."""
        self._before_another_call()
        try:
            found = self._look()
        except errors.Throttled as throttled:
            raise self.gate.again(throttled) from None
        except errors.ApiError as unclear:
            raise Again(f"{error}; looking afterwards: {unclear}") from None
        other = self._other(found)
        if not found.there or (self.unclear_at and other):
            return self._gone(other)
        raise Again(f"{error}; it is still there", error.retry_after)

    def _resolve(self) -> Outcome:
        """No further attempt is allowed, by a cancel or the deadline: a look decides what became of the last."""
        if self.cancelled and not self.unclear_at:
            return Outcome(State.QUEUED, "withdrawn on request")
        self._before_another_call()
        try:
            found = self._look()
        except errors.KeyRefused as error:
            self._probe(error)
            raise Again(str(error)) from None
        except errors.ApiError as error:
            raise self.gate.again(error) from None
        other = self._other(found)
        if not found.there or (self.unclear_at and other):
            return self._gone(other)
        if other and not self.cancelled:
            return Outcome(State.SUPERSEDED, other.why, since_ms=other.since_ms)
        unsettled = self._unsettled()
        if unsettled:
            return Outcome(State.QUEUED, "waits to see whether the last attempt was applied", delay=unsettled)
        if self.cancelled:
            return Outcome(State.CANCELLED, "withdrawn on request; it is still there")
        return Outcome(State.FAILED, "given up at its deadline; it is still there")

    def _later(self, again: Again) -> Outcome:
        """The budget is used up: wait in the ledger, or end it where its deadline has passed."""
        if not self._past_deadline():
            return Outcome(State.QUEUED, str(again), delay=long_delay(self.claimed.backoffs, again.wait))
        self.last_tried = True
        unsettled = self._unsettled()
        if unsettled:
            return Outcome(State.QUEUED, str(again), delay=unsettled)
        if self.unclear_at:
            return Outcome(State.REVIEW, f"given up at its deadline, the last attempt unclear: {again}")
        return Outcome(State.FAILED, f"given up at its deadline: {again}")

    def _gone(self, other: Other | None = None) -> Outcome:
        if self.unclear_at:
            message = "gone when looked at after an attempt of ours"
            since = max(other.since_ms, self.unclear_at) if other else None
            return Outcome(State.DELETED, message, evidence=Evidence.READ_BACK, since_ms=since)
        return Outcome(State.NOT_FOUND, "the API does not know it")

    def _before_sleep(self) -> None:
        self.gate.leave(self._attempt_lines(), self.unclear_at)
        self.waited = True
        self.attempts.clear()

    def _other(self, found: Look) -> Other | None:
        return other_incarnation(found, self.fingerprint, self.looked_at, self.claimed.asked_at, self._now())

    def _now(self) -> datetime:
        return from_ms(self.gate.now_ms())

    def _past_deadline(self) -> bool:
        return self.gate.now_ms() > self.claimed.deadline

    def _unsettled(self) -> timedelta | None:
        """How long until a look tells for sure whether the last unclear attempt was applied."""
        left = SETTLED_AFTER - timedelta(milliseconds=self.gate.now_ms() - self.unclear_at)
        return left if self.unclear_at and left > timedelta(0) else None

    def _note(self, at: int, result: Answer | errors.ApiError) -> None:
        failed = isinstance(result, errors.ApiError)
        self.attempts.append({
            "at": at, "sent": not isinstance(result, errors.NotSent), "http_status": result.http_status,
            "error": type(result).__name__ if failed else None, "seconds": round(result.seconds, 3),
            "message": result.detail if isinstance(result, errors.ApiError) else result.message,
        })  # fmt: skip

    def _attempt_lines(self) -> str:
        return "\n".join(json.dumps(attempt) for attempt in self.attempts)
