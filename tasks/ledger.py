"""The store: records of deletions and their order, in Redis. Every change of state is one atomic script.

Keys, all behind the prefix `janitor:`:

    d:<id>                   hash    one deletion
    r:<request>              string  the deletion that a joined request belongs to
    cb:<request>             string  the Celery callbacks of a by-name request, until they ran
    cb-taken:<request>       string  they are running, for a minute at most
    open:<account>           hash    finetune -> its one unfinished deletion
    wait:<account>           zset    scheduled deletions by due time
    queue:<account>:<lane>   zset    queued deletions by due time; lanes: resolve, single, bulk
    looks:<account>          zset    deletions whose first look is due, by time
    leases:<account>         zset    running deletions by the end of their lease
    permits:<account>        zset    the permits for API calls that are taken now, by expiry
    ix:<account>:<state>     zset    deletions by time of creation, for lists
    names:<account>          zset    finetune, creation and id in one member, for lists by finetune
    finished                 zset    final deletions by time of conclusion, for pruning
    outbox                   zset    by-name requests whose Celery result is still to be written
    account:<account>        hash    cool-down, parking, permits, missed wake-ups
    accounts, paused         set, hash
    poison                   list    messages that nobody could read: see tasks/poison.py
    workers                  zset    worker processes by when they count as gone
    inventory:<account>      hash    finetune -> what a survey saw of it: see tasks/inventory.py
    used:<account>           hash    finetune -> when its use was last reported
    protected:<account>      hash    finetune -> until when no cleanup may have it
    plan:<id>, plans         string, zset  cleanup plans, and their ids by time
    policy-runs, tick        hash, string  policy -> its last scheduled run; when beat was last heard
    wakeups:<account>        zset    wake-ups sent and not begun, by when they count as lost
    dispatched               string  when the last round of dispatch was
    stats:<account>          hash    counts for metrics: `source:<kind>` requests accepted,
                                     `call:<answer>:<bucket>` delete calls, `ms:<answer>` the time they took
    idempotency:<key>        string  what an HTTP client asked for under its key, as a digest

The scripts compute keys from the prefix, so Redis Cluster is not supported.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from importlib.resources import files
from typing import Any

import redis

from tasks.claims import Accepted, Claimed, Dispatched, Terms, Verdict, WakeUp
from tasks.records import TRANSITIONS, NewRequest, to_ms
from tasks.redis_errors import unavailable

PREFIX = "janitor:"
MOST_CRASHES = 5
ANSWER_WITHIN = timedelta(seconds=5)
ANSWER_AGAIN = timedelta(seconds=60)
_BATCH = 1000
_LUA = files("tasks") / "lua"
CALL_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20)  # the buckets of `stats`; longer ones are `inf`


class Ledger:
    """The changes of state; `tasks.queries` reads.

    redis: a client with `decode_responses=True`. skew: added to Redis's clock, for tests of long waits.
    Every method raises `LedgerUnavailable` where Redis cannot be reached or refuses to write.
    """

    def __init__(
        self,
        client: redis.Redis,
        terms: Terms | None = None,
        *,
        skew: timedelta = timedelta(0),
        prefix: str = PREFIX,
    ) -> None:
        self.redis = client
        self.terms = terms or Terms()
        self.skew = skew
        self.prefix = prefix
        self._scripts = {name: client.register_script(text) for name, text in _script_texts().items()}

    def accept(self, requests: Sequence[NewRequest]) -> tuple[list[Accepted], list[WakeUp]]:
        """Write checked requests, each once; answers in their order, and the wake-ups to send."""
        accepted: list[Accepted] = []
        wakeups: list[WakeUp] = []
        for start in range(0, len(requests), _BATCH):
            batch = [_request_input(request) for request in requests[start : start + _BATCH]]
            found = self._run("accept", requests=batch, nonce=uuid.uuid4().hex, **self._lives())
            answers, sent = json.loads(found)
            accepted += [Accepted(id_, bool(created), bool(known)) for id_, created, known in answers]
            wakeups += [WakeUp(*pair) for pair in sent]
        return accepted, wakeups

    def claim(
        self, account: str, owner: str, want: int, *, begun: str | None = None, looks_first: bool = False,
        ahead: int = 0, at_work: int = 0,
    ) -> tuple[list[Claimed], str]:  # fmt: skip
        """At most `want` of what can start now, each with a lease, a token and a permit; and why not more.

        looks_first: a look precedes each delete, so the claim alone marks nothing as sent. ahead: this many more,
        without permits, for the threads `at_work` to go on to.
        """
        wanted = {"account": account, "owner": owner, "want": want, "begun": begun, "looks_first": looks_first}
        more = {"ahead": ahead, "at_work": at_work, "nonce": uuid.uuid4().hex}
        now, why, *claimed = json.loads(self._run("claim", **wanted, **more, **self._holds(), **self._lives()))
        return [Claimed(*row)._replace(claimed_at=now, account=account) for row in claimed], why

    def check(self, calls: Sequence[Claimed], *, mark: bool = True, look: bool = False) -> list[Verdict]:
        """Just before calls: renew the leases, take the permits, mark the attempts as sent, or say why not.

        The fingerprint and the time of the look in each of `calls` are kept. mark: whether a delete follows. look:
        what follows is a look that decides, in whose way neither a cancel nor a pause stands.
        """
        how = {"look": look, "mark": mark}
        seen = [{"fingerprint": one.fingerprint, "looked_at": one.looked_at, **how} for one in calls]
        tokens = [token | more for token, more in zip(_tokens(calls), seen, strict=True)]
        answers = self._run("check", calls=tokens, **self._holds())
        return [Verdict(word, timedelta(milliseconds=wait_ms)) for word, wait_ms in answers]

    def renew(self, claims: Iterable[Claimed]) -> set[str]:
        """Renew the leases of `claims`; the ids of those that are lost."""
        return set(self._run("renew", calls=_tokens(claims), **self._holds()))

    def wait(self, claimed: Claimed, attempts: str, unclear_at: int) -> bool:
        """Before a wait between attempts: keep what is known, free the permit; false if it is no longer ours."""
        known = {"id": claimed.id, "token": claimed.token, "attempts": attempts, "unclear_at": unclear_at}
        return bool(self._run("wait", **known, permit=claimed.permit, **self._holds()))

    def conclude(self, outcomes: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[str]]:
        """Write outcomes: `done`, `again`, `late` or `gone` for each, and the requests whose answers are owed.

        The caller writes those answers; what it leaves undone, dispatch does after `ANSWER_WITHIN`.
        """
        words, owed = self._run(
            "conclude", outcomes=list(outcomes), answer_within_ms=_ms(ANSWER_WITHIN), **self._lives(),
            permit_ms=_ms(self.terms.call_deadline),
        )  # fmt: skip
        return list(words), list(owed)

    def cancel(self, ids: Sequence[str], *, nonce: str | None = None) -> list[tuple[str, str]]:
        """(answer, deletion id) for each: `cancelled`, `requested`, `final`, `unknown`. nonce: of this cancel."""
        answers = self._run("cancel", ids=list(ids), nonce=nonce or uuid.uuid4().hex, **self._lives())
        return [(answer, id_) for answer, id_ in answers]

    def dispatch(
        self,
        processes: Sequence[str],
        *,
        alive_for: timedelta,
        accounts: Mapping[str, int] | None = None,
        most: int = 500,
    ) -> Dispatched:
        """One round for these worker processes: take back ended leases, prune, note which wake-ups to send.

        accounts: those that these processes have keys for, each with its calls at once.
        """
        sent, owed, pruned = self._run(
            "dispatch",
            processes=list(processes),
            accounts=dict(accounts or {}),
            nonce=uuid.uuid4().hex,
            workers_ttl_ms=_ms(alive_for),
            retention_ms=_ms(self.terms.retention),
            answer_again_ms=_ms(ANSWER_AGAIN),
            most_crashes=MOST_CRASHES,
            most=most,
            **self._lives(),
        )
        return Dispatched([WakeUp(*pair) for pair in sent], list(owed), pruned)

    def account(self, account: str, action: str, **details: Any) -> Any:
        """Cool an account down, park or unpark it, pause or resume it: see `account.lua`."""
        return self._run("account", account=account, action=action, **details)

    def keep(self, action: str, account: str, ids: Sequence[str], until_ms: int | None = None) -> list[str]:
        """Note use or protection; the deletions from which a cleanup was withdrawn: see `keep.lua`."""
        withdrawn: list[str] = []
        for start in range(0, len(ids), _BATCH):
            batch = list(ids[start : start + _BATCH])
            given = {"action": action, "account": account, "ids": batch, "until_ms": until_ms}
            withdrawn += self._run("keep", **given, **self._lives())
        return withdrawn

    def permit(self, account: str, holder: str, max_concurrent: int) -> Verdict:
        """A permit for a survey's next call: `go`, `full`, `cooling` or `parked`."""
        given = {"account": account, "holder": holder, "max_concurrent": max_concurrent}
        word, wait_ms = self._run("permit", **given, **self._holds())
        return Verdict(word, timedelta(milliseconds=wait_ms))

    def release(self, account: str, holder: str) -> None:
        """Give back a permit that no deletion holds (a probe's, a survey's)."""
        with unavailable():
            self.redis.zrem(f"{self.prefix}permits:{account}", holder)

    def answered(self, request_ids: Sequence[str], *, callbacks_ran: bool = False) -> None:
        """The Celery results of these requests are written; with `callbacks_ran` their callbacks are done too."""
        with unavailable(), self.redis.pipeline(transaction=True) as pipe:
            pipe.zrem(f"{self.prefix}outbox", *request_ids)
            if callbacks_ran:
                pipe.delete(*(f"{self.prefix}cb:{id_}" for id_ in request_ids))
            pipe.execute()

    def owe_again(self, request_ids: Sequence[str]) -> None:
        """These answers are owed once more after `ANSWER_AGAIN`: their callbacks have yet to run."""
        at = self.now_ms() + _ms(ANSWER_AGAIN)
        with unavailable():
            self.redis.zadd(f"{self.prefix}outbox", dict.fromkeys(request_ids, at), xx=True)

    def take_callbacks(self, request_id: str) -> bool:
        """Whether the callbacks of this request may run now: true once within `ANSWER_AGAIN`."""
        key = f"{self.prefix}cb-taken:{request_id}"
        with unavailable():
            return bool(self.redis.set(key, 1, nx=True, px=_ms(ANSWER_AGAIN)))

    def callbacks(self, request_id: str) -> dict[str, Any] | None:
        """The callbacks stored with a by-name request, None where there are none or they ran."""
        with unavailable():
            stored = self.redis.get(f"{self.prefix}cb:{request_id}")
        return json.loads(stored) if stored else None

    def claim_key(self, key: str, digest: str) -> bool:
        """Whether this idempotency key is new, or was given for the same before; kept as long as records are."""
        name = f"{self.prefix}idempotency:{key}"
        with unavailable():
            if self.redis.set(name, digest, nx=True, px=self.terms.retention):
                return True
            return self.redis.get(name) in (digest, None)

    def now_ms(self) -> int:
        """Redis's clock, in milliseconds since the epoch."""
        with unavailable():
            seconds, micros = self.redis.time()
        return int(seconds) * 1000 + int(micros) // 1000 + _ms(self.skew)

    def _lives(self) -> dict[str, int]:
        return {
            "give_up_after_ms": _ms(self.terms.give_up_after),
            "first_look_after_ms": _ms(self.terms.first_look_after),
        }

    def _holds(self) -> dict[str, int]:
        return {"lease_ms": _ms(self.terms.lease), "permit_ms": _ms(self.terms.call_deadline)}

    def _run(self, script: str, **given: Any) -> Any:
        with unavailable():
            return self._scripts[script](
                keys=[self.prefix], args=[json.dumps({**given, "skew_ms": _ms(self.skew)})]
            )


def _tokens(claims: Iterable[Claimed]) -> list[dict[str, Any]]:
    return [{"id": claimed.id, "token": claimed.token, "permit": claimed.permit} for claimed in claims]


def _request_input(request: NewRequest) -> dict[str, Any]:
    given = {
        "id": request.id,
        "finetune_id": request.finetune_id,
        "account": request.account,
        "source": request.source,
        "requested_by": request.requested_by,
        "reason": request.reason,
        "due_at": _moment(request.due_at),
        "delay_ms": _ms(request.delay) if request.delay else None,
        "requested_at": _moment(request.requested_at),
        "missing_ok": request.missing_ok,
        "fingerprint": request.fingerprint,
        "bulk": request.bulk,
        "callbacks": json.dumps(request.callbacks) if request.callbacks else None,
    }
    return {name: value for name, value in given.items() if value is not None}


def _moment(moment: datetime | None) -> int | None:
    return to_ms(moment) if moment else None


def _ms(duration: timedelta) -> int:
    return round(duration.total_seconds() * 1000)


@cache
def _script_texts() -> dict[str, str]:
    bodies = {path.name: path.read_text(encoding="utf-8") for path in _LUA.iterdir() if path.name.endswith(".lua")}
    return {name.removesuffix(".lua"): _whole(body) for name, body in bodies.items() if name != "common.lua"}


def _whole(body: str) -> str:
    """A script as Redis runs it: what all share in front, and at its end what it has gathered is written."""
    allowed = {state: dict.fromkeys(sorted(after), 1) for state, after in TRANSITIONS.items()}
    tables = f"local NEXT = cjson.decode('{json.dumps(allowed)}')\n"
    tables += f"local CALL_SECONDS = cjson.decode('{json.dumps(CALL_SECONDS)}')\n"
    shared = tables + (_LUA / "common.lua").read_text(encoding="utf-8")
    return f"{shared}local function script()\n{body}\nend\nlocal answer = script()\nclose()\nreturn answer\n"
