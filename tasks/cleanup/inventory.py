"""What an account has, as the last survey saw it; its use and protection, as they are reported."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any, NamedTuple

import structlog

from tasks.api.client import Details
from tasks.api.incarnations import CREATED_FIELDS, Incarnation, Verdict, compare, incarnation_of
from tasks.api.moments import ANY_ZONE, read_created
from tasks.api.observations import TOLERANCE_WITHOUT_DATE
from tasks.cleanup.about import About
from tasks.cleanup.policies import Policy
from tasks.cleanup.rules import Finetune, Item, select, to_read
from tasks.durations import LONGEST
from tasks.errors import InvalidRequest
from tasks.intake import Intake
from tasks.ledger import Ledger
from tasks.ledger.holds import Hold, checked_until, holds
from tasks.ledger.queries import each, known_accounts
from tasks.ledger.types import Act, Withdrawn
from tasks.records import DEFAULT_ACCOUNT, check_account, check_finetune_id, from_ms, moment, to_ms
from tasks.text import finetune_key

log = structlog.get_logger()

USE_GAP = timedelta(days=1)  # use is reported without a gap as long as no day passes without a report
BELIEVED_AFTER = timedelta(days=1)  # a list that has shrunk to half counts once it has stayed so
_FOR_GOOD_MS = 9 * 10**15


class Seen(NamedTuple):
    """One incarnation, as a survey saw it. Times: ms on Redis's clock.

    incarnation: its text form, None if it was not read or has nothing to compare. created: its creation time if
    that is usable; unsound: why it is not, if the API gives one. first_seen: when a survey first saw it.
    """

    incarnation: str | None
    created: int | None
    unsound: str | None
    first_seen: int
    observed_at: int
    vantage: str

    @property
    def is_known(self) -> bool:
        """Whether its age and its incarnation are known, so that its details need not be read again."""
        return self.incarnation is not None and self.unsound is None


@dataclass(frozen=True)
class Inventory:
    """An account at `now`. use_since: use is reported without a gap since then; use_last: when it last was.

    seen: keyed by the id as listed after a survey, by name when loaded from the ledger. used, protected, held: by
    name, as Redis has them. requested: those with an unfinished deletion. about: what the details tell of those
    that were read now. listed_count: the length of the longest believed list of the last day, less what the
    janitor has deleted since; listed_at: when it was read. shrunk_since: since when lists have been less than half
    of it.
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
    requested: frozenset[str] = frozenset()
    held: Mapping[str, Hold] = field(default_factory=dict)
    about: Mapping[str, About | None] = field(default_factory=dict)

    @property
    def seen_before(self) -> int | None:
        """How many the list must be measured against; None if there is nothing to measure it against."""
        since = self.shrunk_since
        return None if since and self.now - since >= BELIEVED_AFTER else self.listed_count

    def select(self, policy: Policy) -> list[Item]:
        """What `policy` would do with each of them, and why."""
        return select(policy, self.finetunes(), use_since=self.use_since, use_last=self.use_last, now=self.now)

    def to_read(self, policies: Sequence[Policy]) -> set[str]:
        """The ids whose details plans of these policies need."""
        all_ = self.finetunes()
        found = [to_read(policy, all_, use_since=self.use_since, now=self.now) for policy in policies]
        return set().union(*found)

    def finetunes(self) -> list[Finetune]:
        """All of them, as the selection takes them."""
        return [self._finetune(id_, seen) for id_, seen in self.seen.items()]

    def _finetune(self, id_: str, seen: Seen) -> Finetune:
        name = finetune_key(id_)
        until, hold = self.protected.get(name), self.held.get(name)
        return Finetune(
            id_, seen.incarnation, created=moment(seen.created), unsound=seen.unsound,
            first_seen=from_ms(seen.first_seen), observed_at=from_ms(seen.observed_at), vantage=seen.vantage,
            is_requested=id_ in self.requested, last_used=moment(self.used.get(name)),
            protected=moment(until) if until is None or until < _FOR_GOOD_MS else "for good",
            held=hold.short if hold else None, about=self.about.get(id_),
        )  # fmt: skip


def touch(ledger: Ledger, account: str, ids: Sequence[str]) -> Withdrawn:
    """Report use, now; answers the cleanup deletions that are withdrawn by it. Raises `InvalidRequest`."""
    return _keep(ledger, "touch", account, ids)


def report_use(intake: Intake, account: str | None, ids: Iterable[object]) -> None:
    """`touch` if nobody waits for an answer: what cannot be noted is logged and counted, and all else noted.

    account: None for the default one.
    """
    account = DEFAULT_ACCOUNT if account is None else account
    fine, refused = [], []
    for id_ in ids:
        try:
            fine.append(check_finetune_id(id_, allow_org_ids=True))
        except InvalidRequest as error:
            refused.append(error)
    try:
        touch(intake.ledger, account, fine)
    except InvalidRequest as error:
        refused.append(error)
    for why in refused:
        log.warning("use.refused", account=account, error=str(why))
    if refused:
        intake.count_refused(account, count=len(refused))


def protect(
    ledger: Ledger, account: str, ids: Sequence[str], until: datetime | None = None, act: Act | None = None
) -> Withdrawn:
    """Keep from every cleanup, for good unless `until` is given; answers like `touch`.

    What is protected for longer stays so. Raises `InvalidRequest`, also if `until` has passed.
    """
    until_ms = to_ms(until) if checked_until(ledger, until) and until else _FOR_GOOD_MS
    return _keep(ledger, "protect", account, ids, act, until_ms=until_ms)


def unprotect(ledger: Ledger, account: str, ids: Sequence[str], act: Act | None = None) -> None:
    """Let cleanups have them again."""
    _keep(ledger, "unprotect", account, ids, act)


def _keep(
    ledger: Ledger, action: str, account: str, ids: Sequence[str], act: Act | None = None,
    *, until_ms: int | None = None,
) -> Withdrawn:  # fmt: skip
    for id_ in ids:
        check_finetune_id(id_, allow_org_ids=True)
    check_account(account, known_accounts(ledger))
    return ledger.keep(action, account, ids, until_ms, act)


def protected_among(ledger: Ledger, account: str, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that are protected now."""
    now = ledger.now_ms()
    found: Any = ledger.redis.hmget(ledger.keys.protected(account), [finetune_key(id_) for id_ in ids])
    return [id_ for id_, until in zip(ids, found, strict=True) if until is not None and float(until) > now]


def unknown_among(ledger: Ledger, account: str, ids: Sequence[str]) -> list[str]:
    """Those of `ids` that the last survey did not see; all of them if there was none."""
    key = ledger.keys.inventory(account)
    found = each(ledger, ids, lambda pipe, id_: pipe.hexists(key, finetune_key(id_)))
    return [id_ for id_, seen in zip(ids, found, strict=True) if not seen]


def load(ledger: Ledger, account: str) -> Inventory:
    """The inventory as the last survey left it, with what was reported since."""
    asked = ("use_since", "use_last", "listed_at", "listed_count", "shrunk_since")
    now, keys = ledger.now_ms(), ledger.keys
    # Not in one transaction: a full Redis refuses those, also for reading.
    with ledger.redis.pipeline(transaction=False) as pipe:
        for key in (keys.inventory, keys.used, keys.protected):
            pipe.hgetall(key(account))
        pipe.hmget(keys.account(account), *asked)
        seen, used, protected, (since, last, listed_at, count, shrunk_since) = pipe.execute()
    reported = last is not None and now - int(last) <= USE_GAP / timedelta(milliseconds=1)
    return Inventory(
        account,
        from_ms(now),
        seen={id_: one for id_, text in seen.items() if (one := _seen(text))},
        used={id_: int(ms) for id_, ms in used.items()},
        protected={id_: float(ms) for id_, ms in protected.items() if float(ms) > now},
        use_since=moment(since) if reported else None, use_last=moment(last), listed_at=moment(listed_at),
        listed_count=int(count) if count else None, shrunk_since=moment(shrunk_since),
        held={hold.finetune_id: hold for hold in holds(ledger, account, check=False)},
    )  # fmt: skip


def save(ledger: Ledger, before: Inventory, inventory: Inventory, *, believed: bool) -> None:
    """Keep what a survey saw, `before` being what was kept; what a believed list lacks is forgotten."""
    keys, now = ledger.keys, to_ms(inventory.now)
    account = keys.account(inventory.account)
    with ledger.redis.pipeline(transaction=True) as pipe:
        for id_, seen in inventory.seen.items():
            if before.seen.get(name := finetune_key(id_)) != seen:
                pipe.hset(keys.inventory(inventory.account), name, json.dumps(seen._asdict()))
        if believed:
            # Measured against the longest of a day, a list that loses half again and again is seen.
            is_recent = before.listed_at and inventory.now - before.listed_at < BELIEVED_AFTER
            longest = (before.listed_count or 0) - inventory.deleted_by_us if is_recent else 0
            total = len(inventory.seen)
            pipe.hset(account, "listed_count", str(max(total, longest)))
            if total >= longest:
                pipe.hset(account, "listed_at", str(now))
            pipe.hdel(account, "shrunk_since")
        else:
            pipe.hsetnx(account, "shrunk_since", str(now))
        pipe.execute()
    if believed:
        _forget(ledger, inventory)


def _forget(ledger: Ledger, inventory: Inventory) -> None:
    """Drop what is no longer there, but keep its use: if a list lacks it by mistake, it would then look unused."""
    long_ago = to_ms(inventory.now - LONGEST)  # longer than any `unused_for`
    kept, used = ledger.keys.inventory(inventory.account), ledger.keys.used(inventory.account)
    known: Any = ledger.redis.hkeys(kept)
    unused = [name for name, at in inventory.used.items() if at < long_ago]
    there = set(map(finetune_key, inventory.seen))
    for key, names in {kept: known, used: unused}.items():
        if gone := [name for name in names if name not in there]:
            ledger.redis.hdel(key, *gone)


def read(
    finetune_id: str, details: Details | None, before: Seen | None,
    *, at: int, began: datetime, vantage: str, within: timedelta,
) -> Seen:  # fmt: skip
    """What details show of a finetune; its age starts with this survey unless `before` is the same incarnation.

    details: None if they could not be read. at: when they were asked for, ms. began: when the survey began.
    within: how long equal settings alone are believed (JANITOR_OBSERVE_WITHIN).
    """
    found = incarnation_of(details.fields, finetune_id) if details else Incarnation()
    text = found.to_text() if _can_be_compared(found) else None
    created, unsound = _creation(found, details, at)
    first = before.first_seen if before and _is_same(before, found, at, within) else to_ms(began)
    return Seen(text, created, unsound, first, at, vantage)


def _seen(text: str) -> Seen | None:
    """What `save` wrote; fields that this version does not know are ignored. None if it cannot be read."""
    try:
        stored = json.loads(text)
        return Seen(**{name: stored[name] for name in Seen._fields})
    except (ValueError, KeyError, TypeError):
        return None


def _can_be_compared(found: Incarnation) -> bool:
    """Whether there is something that can show later that this is the same one; a date alone cannot."""
    created = found.created
    return bool(found.unique_id or found.settings or (created and not created.is_date))


def _is_same(before: Seen, found: Incarnation, at: int, within: timedelta) -> bool:
    earlier = Incarnation.from_text(before.incarnation or "")
    gap = timedelta(milliseconds=max(0, at - before.observed_at))
    return earlier is not None and compare(earlier, found, gap=gap, within=within)[0] is Verdict.SAME


def _creation(found: Incarnation, details: Details | None, at: int) -> tuple[int | None, str | None]:
    """The creation time on our clock, ms, or why it is not sound; neither if there is none, or a date alone."""
    told = [name for name in CREATED_FIELDS if details and details.fields.get(name) not in (None, "")]
    if told and told[0] not in found.identity:
        return None, "not readable, or before 2024"
    # Nobody has said what each of these is, so the youngest counts.
    times = [made for name in told if (made := read_created(found.identity.get(name)))]
    created, now = max(times, key=attrgetter("moment"), default=None), from_ms(at)
    if created is None or created.is_date:
        return None, None
    # Both clocks, and a cache between them, can be wrong: what makes it younger counts.
    by_api = min((details and details.date) or now, now)
    if created.moment > by_api + TOLERANCE_WITHOUT_DATE:
        return None, "in the future"
    # Only if ours is clearly ahead, the time moves on it.
    ahead = by_api - now if now - by_api > TOLERANCE_WITHOUT_DATE else timedelta(0)
    return to_ms(created.moment - ahead + (timedelta(0) if created.has_offset else ANY_ZONE)), None
