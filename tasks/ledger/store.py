"""`Ledger`: every change of state, each one atomic script. The scripts are in `lua/`, the keys in `keys.py`."""

import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, TypeVar

import redis
from pydantic import TypeAdapter

from tasks.errors import NotInReview, UnknownDeletion
from tasks.ledger import server
from tasks.ledger.inputs import finish_input, in_milliseconds, progress_input, request_input
from tasks.ledger.keys import keys
from tasks.ledger.redis_errors import Client
from tasks.ledger.scripts import Scripts
from tasks.ledger.types import (
    Accepted,
    Act,
    Claim,
    Claimed,
    Finish,
    Finished,
    Maintained,
    Progress,
    Terms,
    Verdict,
    Withdrawn,
)  # fmt: skip
from tasks.records import NewRequest
from tasks.text import finetune_key

T = TypeVar("T")
BATCH = 500  # requests, cancels, touches in one script
# The process that finished a deletion writes its Celery result; after this another one does.
_RESULT_WITHIN = timedelta(seconds=5)
_RESULT_AGAIN = timedelta(seconds=60)
_WAKEUP = timedelta(seconds=5)  # after this a wake-up counts as lost
_CLAIMED, _MAINTAINED = TypeAdapter(Claimed), TypeAdapter(Maintained)


class Ledger:
    """The changes of state; `tasks.ledger.queries` reads.

    client: a Redis client with `decode_responses=True`; `redis` is the same one, with our errors. now_ms: a clock
    for tests instead of Redis's own. Every method raises `LedgerUnavailable` if Redis cannot be reached or refuses
    to write.
    """

    def __init__(
        self, client: redis.Redis, terms: Terms | None = None, *, now_ms: Callable[[], int] | None = None
    ) -> None:
        self.client = client
        self.redis = Client(client)
        self.keys = keys
        self.terms = terms or Terms()
        self._now_ms = now_ms
        constants = {
            "lease_ms": self.terms.lease, "permit_ms": self.terms.call_deadline, "wakeup_ms": _WAKEUP,
            "retention_ms": self.terms.retention, "first_after_ms": self.terms.first_observation_after,
            "result_within_ms": _RESULT_WITHIN, "again_ms": _RESULT_AGAIN,
            "clear_for_ms": self.terms.reports_clear_for,
        }  # fmt: skip
        self._scripts = Scripts(client, constants, now_ms)

    def check_schema(self) -> None:
        """Raise `WrongLedger` if this ledger was written by a version that this one cannot work with."""
        server.check_schema(self.redis, self.keys.schema)

    def accept(
        self, requests: Sequence[NewRequest], *, wake: bool = True, act: Act | None = None
    ) -> tuple[list[Accepted], list[str]]:
        """Write checked requests; what became of each, and the accounts to publish a wake-up for.

        act: who retries these, or applies their plan, for the audit log; None for new requests, which it does not
        record. Raises `LedgerFull` before anything is written if too little memory is free.
        """
        server.check_room(self.redis)
        accepted: list[Accepted] = []
        woken: dict[str, None] = {}
        for part in _parts(requests):
            rows = [request_input(one) for one in part]
            found = self._json("accept", requests=rows, wake=wake, act=act)
            accepted += [Accepted(one.id, answer) for one, answer in zip(part, found["answers"], strict=True)]
            woken |= dict.fromkeys(found.get("wake", ()))
        return accepted, list(woken)

    def claim(self, account: str, token: str, *, begun: bool = False) -> Claimed:
        """A deletion that can start now. token: of this claim alone; asked again, it gives the same answer.

        begun: whether a wake-up led here.
        """
        return _CLAIMED.validate_json(self._scripts.run("claim", account=account, token=token, begun=begun))

    def mark(self, claim: Claim, progress: Progress, attempt: int, fresh_until: datetime) -> Verdict:
        """Just before a delete: renew the lease and note the attempt, or say why the call may not start.

        attempt: which mark of the claim this is. fresh_until: how long the observation before it counts, on
        Redis's clock.
        """
        given = progress_input(claim, progress)
        found = self._json("mark", **given, attempt=attempt, fresh_until=fresh_until)
        return Verdict(
            found["word"], timedelta(milliseconds=found["wait_ms"]), int(found["now"]), found.get("why", "")
        )

    def finish(
        self, claim: Claim, finish: Finish, progress: Progress, next_token: str | None = None
    ) -> tuple[Finished, Claimed]:
        """Write what came of a claim, and in the same round trip claim the next deletion of its account.

        next_token: of that claim; None if nothing more is to be claimed.
        """
        calls: list[tuple[str, dict[str, Any]]] = [("finish", finish_input(claim, finish, progress))]
        if next_token:
            calls.append(("claim", {"account": claim.account, "token": next_token, "begun": False}))
        finished, *claimed = map(json.loads, self._scripts.run_all(*calls))
        return Finished(**finished), _CLAIMED.validate_python(claimed[0] if claimed else {})

    def renew(self, claims: Iterable[Claim]) -> set[str]:
        """Renew the leases of these claims; the ids of those that are no longer held."""
        held = [{"id": claim.id, "token": claim.token} for claim in claims]
        return set(self._json("renew", claims=held).get("lost", ()))

    def cancel(
        self, ids: Sequence[str], act: Act | None = None, *, nonce: str | None = None, message: str | None = None
    ) -> tuple[list[str], list[str]]:
        """`cancelled`, `requested`, `final` or `unknown` for each id, and whose Celery results are due.

        nonce: names this cancel; asked again, it gives the same answers. message: of those that end by it.
        """
        nonce = nonce or uuid.uuid4().hex
        answers: list[str] = []
        due: list[str] = []
        for part in _parts(ids):
            found = self._json("cancel", ids=list(part), act=act, nonce=nonce, message=message)
            answers += found["answers"]
            due += found.get("due", ())
        return answers, due

    def resolve(self, id_: str, found: str, how: str, act: Act) -> None:
        """Note what a person found out about a deletion in review: `deleted` or `kept`, and how that is known.

        Raises `UnknownDeletion`, and `NotInReview` if it is in another state or was resolved before.
        """
        answer = self._json("resolve", id=id_, resolution=f"{found}: {how}", act=act)
        word = answer["word"]
        if word == "unknown":
            raise UnknownDeletion(f"no deletion has the id {id_!r}")
        if word == "done":
            raise NotInReview(f"{id_} was resolved before, by {answer['who']}: `janitor show` has the note")
        if word != "resolved":
            raise NotInReview(f"{id_} is {word}: only a deletion in review can be resolved")

    def act(
        self, name: str, act: Act, *, ids: Sequence[str] | None = None, letters: Sequence[Sequence[str]] = (),
        plan: tuple[str, str] | None = None,
    ) -> list[str]:  # fmt: skip
        """Note an act on what is no record, and drop or send again dead letters, or write a plan's summary.

        See `act.lua`.
        """
        return self._json("act", kind=name, letters=list(letters), ids=ids, plan=plan, act=act) or []

    def keep(
        self, action: str, account: str, ids: Sequence[str], until_ms: int | None = None, act: Act | None = None
    ) -> Withdrawn:
        """`touch`, `protect` or `unprotect` finetunes; the cleanup deletions that were withdrawn by it."""
        withdrawn = Withdrawn([], [])
        given = {"action": action, "account": account, "until_ms": until_ms, "act": act}
        for part in _parts(list(dict.fromkeys(map(finetune_key, ids)))):
            found = self._json("keep", finetunes=part, **given)
            withdrawn.withdrawn.extend(found.get("cancelled", ()))
            withdrawn.under_way.extend(found.get("requested", ()))
        return withdrawn

    def hold(self, account: str, name: str, act: Act, told: Mapping[str, Any] | None = None) -> Any:
        """Hold a finetune, or release it without `told`, for `tasks.ledger.holds`: see `hold.lua`."""
        return self._json("hold", account=account, finetune=name, act=act, hold=told)

    def account(self, account: str, action: str, act: Act | None = None, **details: Any) -> int:
        """Cool an account down, park or unpark it, pause or resume it, or ask to probe it: see `account.lua`."""
        return int(self._scripts.run("account", account=account, action=action, act=act, **details))

    def permit(self, account: str, holder: str, max_concurrent: int, *, probe: bool = False) -> Verdict:
        """A permit for a call that no lease covers: `go`, `full`, `cooling` or `parked`. It expires by itself."""
        found = self._json("permit", account=account, holder=holder, max_concurrent=max_concurrent, probe=probe)
        return Verdict(found["word"], timedelta(milliseconds=found["wait_ms"]))

    def release(self, account: str, holder: str) -> None:
        """Give back what `permit` gave."""
        self.redis.zrem(self.keys.permits(account), holder)

    def maintain(self, account: str, max_concurrent: int, *, stale: Sequence[Sequence[Any]] = ()) -> Maintained:
        """One round of maintenance for one account.

        stale: leases and permits that were not renewed, by this process's own clock.
        """
        found = self._json("maintain", account=account, max_concurrent=max_concurrent, stale=list(stale))
        return _MAINTAINED.validate_python(found)

    def housekeep(self, processes: Sequence[str], alive_for: timedelta, most: int = 100) -> tuple[list[str], int]:
        """One round for all accounts: the ids whose Celery results are due, and how many records were pruned."""
        found = self._json("housekeep", processes=list(processes), alive_ms=alive_for, most=most)
        return list(found.get("due", ())), int(found["pruned"])

    def verify(self, account: str, findings: Sequence[Mapping[str, Any]], message: str) -> list[str]:
        """Write what a verification found; the records that turned into `review`: see `verify.lua`."""
        found = self._json("verify", account=account, findings=list(findings), message=message)
        return list(found.get("review", ()))

    def result_written(self, id_: str, *, callbacks_ran: bool = False) -> str | None:
        """The Celery result of this request is written; with `callbacks_ran` its callbacks are done too.

        Answers the state of the record now, which may have changed since it was read.
        """
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.zrem(self.keys.results, id_)
            if callbacks_ran:
                pipe.delete(self.keys.callbacks(id_))
            pipe.hget(self.keys.deletion(id_), "state")
            state: str | None = pipe.execute()[-1]
            return state

    def result_due_again(self, id_: str) -> None:
        """Look at this result again in a minute: its callbacks have yet to run."""
        self.redis.zadd(self.keys.results, {id_: self.now_ms() + in_milliseconds(_RESULT_AGAIN)}, xx=True)

    def callbacks(self, id_: str) -> dict[str, Any] | None:
        """The Celery callbacks stored with a request by name; None if there are none, or they ran."""
        stored: Any = self.redis.get(self.keys.callbacks(id_))
        return json.loads(stored) if stored else None

    def new_callbacks_nonce(self, id_: str) -> tuple[str | None, int]:
        """A secret for the message that runs the callbacks of a request, and how many such messages were read.

        The secret is None if a message is on its way already.
        """
        nonce = uuid.uuid4().hex
        if not self.redis.set(self.keys.callbacks_nonce(id_), nonce, nx=True, px=_RESULT_AGAIN):
            return None, 0
        tried: Any = self.redis.hget(self.keys.deletion(id_), "callbacks_tried")
        return nonce, int(tried or 0)

    def take_callbacks_nonce(self, id_: str, nonce: str) -> bool:
        """Whether a message proves by this nonce that it is ours; true once."""
        key = self.keys.callbacks_nonce(id_)
        if self.redis.get(key) != nonce or not self.redis.set(key, "taken", xx=True, px=_RESULT_AGAIN):
            return False
        self.redis.hincrby(self.keys.deletion(id_), "callbacks_tried", 1)
        return True

    def now_ms(self) -> int:
        """Redis's clock, in milliseconds since the epoch."""
        if self._now_ms is not None:
            return self._now_ms()
        seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    def _json(self, script: str, **given: Any) -> Any:
        return json.loads(self._scripts.run(script, **given))


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]
