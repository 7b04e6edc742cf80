"""What an account has, as the last survey saw it; its use and protection, as they are reported."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

import structlog

from tasks.cleanup import Finetune, Item, select
from tasks.durations import LONGEST
from tasks.errors import InvalidRequest
from tasks.incarnations import fingerprint, read_timestamp
from tasks.ledger import Ledger
from tasks.policies import Policy
from tasks.queries import each, known_accounts
from tasks.records import State, check_account, check_finetune_id, from_ms, moment, to_ms
from tasks.redis_errors import unavailable

log = structlog.get_logger()

USE_GAP = timedelta(days=1)  # use is reported without a gap as long as no day passes without a report
BELIEVED_AFTER = timedelta(days=1)  # a list that has shrunk to half counts once it has stayed so
_FOR_GOOD_MS = 9 * 10**15


class Seen(NamedTuple):
    """One incarnation. began: the API's timestamp if sound, unsound: why not; first_seen: by us. Times: ms."""

    fingerprint: str | None
    began: int | None
    unsound: str | None
    first_seen: int

    @property
    def is_known(self) -> bool:
        """Whether its age and its incarnation are known, so that its details need not be read again."""
        return self.fingerprint is not None and self.unsound is None


@dataclass(frozen=True)
class Inventory:
    """An account at `now`. use_since: use is reported without a gap since then, use_last: last reported.

    listed_at, listed_count: the last list that was believed; shrunk_since: since when lists have been half of it.
    """

    account: str
    now: datetime
    seen: Mapping[str, Seen]
    used: Mapping[str, int]
    protected: Mapping[str, float]
    use_since: datetime | None
    use_last: datetime | None
    listed_at: datetime | None = None
    listed_count: int | None = None
    shrunk_since: datetime | None = None
    deleted_by_us: int = 0

    @property
    def seen_before(self) -> int | None:
        """How many the list must be measured against; None where there is nothing to measure it against."""
        since = self.shrunk_since
        return None if since and self.now - since >= BELIEVED_AFTER else self.listed_count

    def select(self, policy: Policy) -> list[Item]:
        """What `policy` would do with each of them, and why."""
        return select(policy, self.finetunes(), use_since=self.use_since, use_last=self.use_last, now=self.now)

    def finetunes(self) -> list[Finetune]:
        """All of them, as the selection takes them."""
        return [self._finetune(id_, seen) for id_, seen in self.seen.items()]

    def _finetune(self, id_: str, seen: Seen) -> Finetune:
        used, until = self.used.get(id_), self.protected.get(id_)
        if used is not None and seen.began is not None and used < seen.began:
            used = None  # of a finetune that had the name before
        return Finetune(
            id_,
            seen.fingerprint,
            began=moment(seen.began),
            unsound=seen.unsound,
            first_seen=from_ms(seen.first_seen),
            last_used=moment(used),
            protected=moment(until) if until is None or until < _FOR_GOOD_MS else "for good",
        )


def touch(ledger: Ledger, account: str, ids: Sequence[str]) -> list[str]:
    """Report use, now; the deletions from which a cleanup's request was withdrawn. Raises `InvalidRequest`."""
    return _keep(ledger, "touch", account, ids)


def report_use(ledger: Ledger, account: str, ids: Sequence[object]) -> None:
    """`touch` where nobody waits for an answer: what cannot be noted is logged, and all else noted."""
    fine: list[str] = []
    for id_ in ids:
        try:
            fine.append(check_finetune_id(id_, allow_org_ids=True))
        except InvalidRequest as error:
            log.warning("use.refused", account=account, error=str(error))
    try:
        touch(ledger, account, fine)
    except InvalidRequest as error:
        log.warning("use.refused", account=account, error=str(error))


def protect(ledger: Ledger, account: str, ids: Sequence[str], until: datetime | None = None) -> list[str]:
    """Keep from every cleanup, for good unless `until` is given; answers like `touch`."""
    return _keep(ledger, "protect", account, ids, until_ms=to_ms(until) if until else _FOR_GOOD_MS)


def unprotect(ledger: Ledger, account: str, ids: Sequence[str]) -> None:
    """Let cleanups have them again."""
    _keep(ledger, "unprotect", account, ids)


def _keep(ledger: Ledger, action: str, account: str, ids: Sequence[str], until_ms: int | None = None) -> list[str]:
    for id_ in ids:
        check_finetune_id(id_, allow_org_ids=True)
    check_account(account, known_accounts(ledger))
    return ledger.keep(action, account, ids, until_ms)


def protected_among(ledger: Ledger, account: str, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that are protected now."""
    now = ledger.now_ms()
    with unavailable():
        found: Any = ledger.redis.hmget(f"{ledger.prefix}protected:{account}", list(ids))
    return [id_ for id_, until in zip(ids, found, strict=True) if until is not None and float(until) > now]


def load(ledger: Ledger, account: str) -> Inventory:
    """The inventory as the last survey left it, with what was reported since."""
    asked = ("use_since", "use_last", "listed_at", "listed_count", "shrunk_since")
    now = ledger.now_ms()
    with unavailable(), ledger.redis.pipeline(transaction=True) as pipe:
        for kind in ("inventory", "used", "protected"):
            pipe.hgetall(f"{ledger.prefix}{kind}:{account}")
        pipe.hmget(f"{ledger.prefix}account:{account}", *asked)
        seen, used, protected, (since, last, listed_at, count, shrunk_since) = pipe.execute()
    reported = last is not None and now - int(last) <= USE_GAP / timedelta(milliseconds=1)
    return Inventory(
        account,
        from_ms(now),
        seen={id_: Seen(**json.loads(text)) for id_, text in seen.items()},
        used={id_: int(ms) for id_, ms in used.items()},
        protected={id_: float(ms) for id_, ms in protected.items() if float(ms) > now},
        use_since=moment(since) if reported else None,
        use_last=moment(last),
        listed_at=moment(listed_at),
        listed_count=int(count) if count else None,
        shrunk_since=moment(shrunk_since),
    )


def save(ledger: Ledger, inventory: Inventory, changed: Collection[str], *, believed: bool) -> None:
    """Keep what a survey saw. changed: whose details were read; what a believed list lacks is forgotten."""
    account, now = f"{ledger.prefix}account:{inventory.account}", to_ms(inventory.now)
    with unavailable(), ledger.redis.pipeline(transaction=True) as pipe:
        for id_ in inventory.seen.keys() & changed:
            seen = json.dumps(inventory.seen[id_]._asdict())
            pipe.hset(f"{ledger.prefix}inventory:{inventory.account}", id_, seen)
        if believed:
            pipe.hset(account, mapping={"listed_at": now, "listed_count": len(inventory.seen)})
            pipe.hdel(account, "shrunk_since")
        else:
            pipe.hsetnx(account, "shrunk_since", str(now))
        pipe.execute()
    if believed:
        _forget(ledger, inventory)


def _forget(ledger: Ledger, inventory: Inventory) -> None:
    """What is no longer there. Not its use: a list may lack for once what is there, and it would look unused."""
    long_ago = to_ms(inventory.now - LONGEST)  # longer than any `unused_for`
    with unavailable():
        known: Any = ledger.redis.hkeys(f"{ledger.prefix}inventory:{inventory.account}")
        unused = [id_ for id_, at in inventory.used.items() if at < long_ago]
        for kind, ids in {"inventory": known, "used": unused}.items():
            if gone := [id_ for id_ in ids if id_ not in inventory.seen]:
                ledger.redis.hdel(f"{ledger.prefix}{kind}:{inventory.account}", *gone)


def read(details: Mapping[str, Any] | None, before: Seen | None, now: datetime) -> Seen:
    """What details show of a finetune; another incarnation starts anew. None: they could not be read."""
    print_: str | None = fingerprint(details or {})
    if print_ == fingerprint({}):
        print_ = None  # none of the fields that tell lives apart
    began, unsound = read_timestamp(details or {}, now)
    first = before.first_seen if before is not None and before.fingerprint == print_ else to_ms(now)
    return Seen(print_, to_ms(began) if began else None, unsound, first)


def deleted_by_us(ledger: Ledger, account: str, since: datetime, ids: Collection[str]) -> int:
    """How many of `ids` the janitor has deleted since then."""
    asked = ("account", "state", "finetune_id")
    with unavailable():
        finished: Any = ledger.redis.zrangebyscore(f"{ledger.prefix}finished", to_ms(since), "+inf")
    rows = each(ledger, finished, lambda pipe, id_: pipe.hmget(f"{ledger.prefix}d:{id_}", *asked))
    return len({row[2] for row in rows if row[:2] == [account, State.DELETED.value]} & set(ids))
