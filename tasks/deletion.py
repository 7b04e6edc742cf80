"""One deletion, top to bottom: observe, mark, attempt, finish.

`carry_out` takes what a runner claimed and answers with a `Finish` for the ledger; it never raises. Calls that
may be repeated are repeated under tenacity within a short budget; longer waits happen in the ledger.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import structlog

from tasks.account_stops import cool_down, park
from tasks.api import errors
from tasks.api.client import Answer, BflClient
from tasks.api.observations import Observation, Presence, observe
from tasks.api.retry import Again, NotNow, long_delay, retried
from tasks.attempts import attempt_counts, attempt_line
from tasks.errors import Cancelled, HandBack, LedgerUnavailable
from tasks.freshness import Watch, boot_seconds
from tasks.judgement import SETTLED_AFTER, Known, Stays, judge_between, sibling_deleted
from tasks.ledger.store import Ledger
from tasks.ledger.types import Claim, Findings, Finish, Progress
from tasks.records import Evidence, State, from_ms

log = structlog.get_logger()
_MOST_NOT_FOUNDS = 3
_STOOD_STILL = 1.0  # seconds by which our clock fell behind Redis's; less is how long an answer takes
_WITHDRAWN = Finish(State.CANCELLED, "withdrawn; the finetune is still there")


@dataclass(frozen=True)
class Rules:
    """What the settings say. observe_within: how long after a request the name alone identifies it."""

    observe_within: timedelta = timedelta(hours=1)
    retry_budget: timedelta = timedelta(seconds=5)


def carry_out(
    claim: Claim, *, api: BflClient, ledger: Ledger, rules: Rules, sleep: Callable[[float], None],
    on_mark: Callable[[], None] = lambda: None, clock: Callable[[], float] = boot_seconds,
) -> tuple[Finish, Progress]:  # fmt: skip
    """Carry a claim out as far as it goes now.

    sleep: waits; raises `HandBack` if the process is to stop. on_mark: told of each mark. clock: seconds.
    """
    try:
        known = Known.of(claim)
    except ValueError:
        return Finish(State.REVIEW, "what the record says of the finetune cannot be read"), Progress(0, Findings())
    run = _Run(claim, known, api, ledger, rules, sleep, on_mark, Watch(claim.now, clock), claim.not_founds)
    return run.finish(), run.progress()


@dataclass
class _Run:
    """One claim in the hands of one thread.

    marks: how many there were. made: the last one whose call was made. lines, counts: attempts that are not in the
    record yet.
    """

    claim: Claim
    known: Known
    api: BflClient
    ledger: Ledger
    rules: Rules
    sleep: Callable[[float], None]
    on_mark: Callable[[], None]
    watch: Watch
    not_founds: int
    marks: int = 0
    made: int = 0
    lines: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def finish(self) -> Finish:
        """How this claim ends; whatever goes wrong is an end, too."""
        found = self._ended()
        is_first = self.claim.kind == "observe" and found.result == "back"
        return Finish("observed", found.message, delay=SETTLED_AFTER) if is_first else found

    def _ended(self) -> Finish:
        try:
            return self._by_kind()
        except (HandBack, NotNow, LedgerUnavailable) as error:
            return Finish("back", str(error), counted=False)
        except Again as again:
            return self._later(again)
        except Exception:
            log.exception("deletion.bug")
            return self._later(Again("an internal error, see the worker's log", SETTLED_AFTER))

    def progress(self) -> Progress:
        """What the ledger has to keep."""
        return Progress(self.made, self.known.findings(), tuple(self.lines), dict(self.counts), self.not_founds)

    def _by_kind(self) -> Finish:
        if decided := sibling_deleted(self.claim):
            return decided
        if self.claim.kind == "observe":
            # While it waits: which finetune is meant? An API that does not answer is asked again later.
            found = self._look()
            unsettled = self.known.unsettled_for(self.watch.now()) or None
            return found if isinstance(found, Finish) else Finish("observed", delay=unsettled)
        if self.claim.kind == "resolve":
            return self._resolve()
        try:
            return retried(self._delete, self.rules.retry_budget, self.sleep)
        except Cancelled as end:
            kept = Finish(State.CANCELLED, str(end))
            return self._resolve(kept) if self.known.unclear_at else kept

    def _delete(self) -> Finish:
        """Observe, mark, attempt. The attempt starts while the observation is fresh, or not at all."""
        for is_last in (False, False, True):
            before = self.known
            try:
                seen = self._observe()
            except (errors.KeyRefused, errors.Refused) as error:
                return self._refused(error)
            except errors.ApiError as error:
                raise self._again(error) from None
            found = self._judged(seen)
            if isinstance(found, Finish):
                return found
            until = self.watch.fresh_until(is_last=is_last)
            if self.watch.now() > until:
                continue
            lag = self.watch.lag
            if not self._mark(until):
                if self.watch.lag - lag > _STOOD_STILL:  # its times are wrong: this observation does not count
                    self.known = before
            elif self.watch.now() <= until:
                return self._attempt(seen)
        raise Again(f"{self.api.host} answers too slowly: the observation was too old for a safe delete")

    def _attempt(self, seen: Observation) -> Finish:
        self.sleep(0)  # not if the process is to stop
        unique_id = seen.incarnation.unique_id if seen.incarnation else None
        at = self.watch.now()
        self.made = self.marks
        try:
            said = self.api.delete_finetune(self.claim.finetune_id, unique_id=unique_id)
        except errors.ApiError as error:
            self._note(at, error)
            return self._after(error, seen)
        except BaseException:  # whatever went wrong, the call may have left
            self.known = replace(self.known, unclear_at=self.watch.now())
            raise
        self._note(at, said)
        return Finish(
            State.DELETED, said.message, evidence=Evidence.RESPONSE, status=said.status, timestamp=said.timestamp
        )

    def _after(self, error: errors.ApiError, seen: Observation) -> Finish:
        """What an answer to a delete means: the rows of the table in docs/explanation/design.md."""
        match error:
            case errors.WrongFinetune():
                self.known = replace(self.known, unclear_at=self.watch.now())
                return Finish(State.REVIEW, f"{error}; the account is paused", pause=str(error))
            case errors.Unclear():
                self.known = replace(self.known, unclear_at=self.watch.now())
                return self._read_back(error)
            case errors.NotFound() if seen.presence is Presence.UNLISTED and error.from_api:
                # `finetune_details` does not work on this API, and the list lacks the name. The delete's own 404
                # is the second proof that the finetune is absent.
                found = self._judged(replace(seen, presence=Presence.ABSENT))
                return found if isinstance(found, Finish) else self._still_there(error)
            case errors.NotFound():
                return self._read_back(error)
            case errors.KeyRefused() | errors.Refused():
                return self._refused(error)
            case _:
                raise self._again(error)

    def _read_back(self, error: errors.ApiError) -> Finish:
        """The answer did not tell, so observe."""
        try:
            found = self._judged(self._observe())
        except errors.Throttled as throttled:
            raise self._again(throttled) from None
        except errors.ApiError as unclear:
            raise Again(f"{error}; observed afterwards: {unclear}") from None
        return found if isinstance(found, Finish) else self._still_there(error)

    def _still_there(self, error: errors.ApiError) -> Finish:
        if isinstance(error, errors.NotFound):
            self.not_founds += 1
            if self.not_founds >= _MOST_NOT_FOUNDS and not self.known.unclear_at:
                message = f"{error}, {self.not_founds} times, and it stays visible: this key may not delete it"
                return Finish(State.FAILED, message)
        raise Again(f"{error}; it is still there", error.retry_after)

    def _resolve(self, kept: Finish = _WITHDRAWN) -> Finish:
        """No further attempt is allowed, by a cancel, a hold or the deadline: an observation decides."""
        found = self._look()
        if isinstance(found, Finish):
            return found
        if self.known.unclear_at:
            delay = self.known.unsettled_for(self.watch.now())
            return Finish("back", "waits to see whether the last attempt was applied", delay=delay, counted=False)
        if self.claim.last_try:
            return Finish(State.FAILED, "given up at its deadline; the finetune is still there")
        return kept

    def _refused(self, error: errors.ApiError) -> Finish:
        """Refused for good is `failed`, unless an earlier attempt may still be applied."""
        if isinstance(error, errors.KeyRefused):
            self._probe(error)
        if self.known.unclear_at:
            raise Again(str(error), self.known.unsettled_for(self.watch.now()))
        return Finish(State.FAILED, str(error))

    def _probe(self, error: errors.KeyRefused) -> None:
        """Is the key refused, or only this finetune? `my_finetunes` tells; a refused key parks the account."""
        self.sleep(0)
        try:
            self.api.my_finetunes()
        except errors.KeyRefused:
            park(self.ledger, self.claim.account, error)
            raise HandBack(f"the account is parked: {error}") from None
        except errors.ApiError as unclear:
            raise self._again(unclear) from None

    def _look(self) -> Finish | Stays:
        """An observation that no delete follows."""
        try:
            seen = self._observe()
            self.watch.compare(self.ledger.now_ms())
            if self.watch.now() > self.watch.fresh_until(is_last=True):
                seen = self._observe()  # our clock stood still meanwhile
            return self._judged(seen)
        except errors.KeyRefused as error:
            self._probe(error)
            raise Again(str(error)) from None
        except errors.ApiError as error:
            raise self._again(error) from None

    def _observe(self) -> Observation:
        self.sleep(0)
        try:
            with self.watch.observing():
                seen = observe(self.api, self.claim.finetune_id, lambda: self.sleep(0))
        except errors.ApiError as error:
            self.counts[f"observation:{error.http_status or type(error).__name__}"] += 1
            raise
        self.counts[f"observation:{seen.presence}"] += 1
        return seen

    def _judged(self, seen: Observation) -> Finish | Stays:
        began, ended = self.watch.observation_began, self.watch.observation_ended
        found = judge_between(self.claim, self.known, seen, (began, ended), self.rules.observe_within)
        if found is None:
            why = "it answers too slowly, or less than before"
            raise Again(f"{self.api.host} does not tell which finetune this is: {why}")
        if isinstance(found, Stays) and found.is_same and seen.presence is Presence.PRESENT:
            self.known = self.known.with_seen(seen, began)
        return found

    def _mark(self, fresh_until: datetime) -> bool:
        """Whether the call may start; False if the observation is too old by Redis's clock. Or it raises."""
        self.marks += 1
        verdict = self.ledger.mark(self.claim, self.progress(), self.marks, fresh_until)
        self.on_mark()
        self.watch.compare(verdict.now)
        if verdict.word == "go" and self.lines:  # without any, the counts come with the finish
            self.lines, self.counts = [], Counter()
        if verdict.word in ("go", "stale"):
            return verdict.word == "go"
        if verdict.word in ("cancelled", "held"):
            raise Cancelled(verdict.why or _WITHDRAWN.message)
        if verdict.word == "cooling":
            raise NotNow("the account cools down", verdict.wait)
        raise HandBack("the lease ended" if verdict.word == "lost" else f"the account is {verdict.word}")

    def _again(self, error: errors.ApiError) -> Again:
        """What to raise for an answer that asks to try again; a throttled account cools down for all workers."""
        if not isinstance(error, errors.Throttled):
            return Again(str(error), error.retry_after)
        return NotNow(str(error), cool_down(self.ledger, self.claim.account, error))

    def _later(self, again: Again) -> Finish:
        """The budget is used up: wait in the ledger, or end it if its deadline has passed."""
        deadline = from_ms(max(self.claim.due_at, self.claim.started_at)) + self.ledger.terms.give_up_after
        now, why = self.watch.now(), str(again)
        if now <= deadline or self.claim.kind == "observe":  # one that had no attempt is not given up
            return Finish("back", why, delay=long_delay(self.claim.backoffs, again.wait))
        if unsettled := self.known.unsettled_for(now):
            return Finish("back", why, delay=unsettled, last_try=True)
        if self.known.unclear_at:
            return Finish(State.REVIEW, f"given up at its deadline, the last attempt unclear: {why}")
        return Finish(State.FAILED, f"given up at its deadline: {why}")

    def _note(self, at: datetime, result: Answer | errors.ApiError) -> None:
        self.lines.append(attempt_line(at, result, self.api.vantage))
        self.counts.update(attempt_counts(result))
