"""Which finetunes a policy would delete, and why each of the others stays. Pure: no clock, no network, no ledger.

A finetune is deleted only if no rule keeps it. `KEEP` is the list of the rules; each has a test that fails
without it (tests/unit/test_cleanup_rules.py).
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from fnmatch import fnmatchcase, translate
from typing import Any, Literal, NamedTuple

from tasks.cleanup.about import About, in_words, why_not
from tasks.cleanup.policies import Policy
from tasks.durations import format_duration
from tasks.errors import InvalidRequest
from tasks.records import Plain, check_finetune_id

DAY = timedelta(days=1)


@dataclass(frozen=True)
class Finetune:
    """What is known of one.

    incarnation: as `tasks.api.incarnations` writes it; None if it was not read, or if it has nothing to compare.
    created: its creation time by the API, if that is usable; unsound: why it is not, if there is one.
    first_seen: when the janitor first saw this incarnation. observed_at, vantage: when and from where it last did.
    is_requested: whether it has an unfinished deletion. protected: until when, or for good.
    held: who holds it and why. about: what its details tell; None if they were not read now.
    """

    id: str
    incarnation: str | None = None
    created: datetime | None = None
    unsound: str | None = None
    first_seen: datetime | None = None
    observed_at: datetime | None = None
    vantage: str | None = None
    is_requested: bool = False
    last_used: datetime | None = None
    protected: datetime | Literal["for good"] | None = None
    held: str | None = None
    about: About | None = None

    @property
    def since(self) -> datetime | None:
        """Since when it exists, as far as is known; None if that is not known."""
        return None if self.unsound else self.created or self.first_seen


@dataclass(frozen=True)
class Item(Plain):
    """One line of a plan. incarnation, observed_at, vantage: what is to be deleted, as it was seen."""

    finetune_id: str
    action: Literal["delete", "keep"]
    reason: str
    age_days: int | None
    last_used: datetime | None
    incarnation: Mapping[str, Any] | None = None
    observed_at: datetime | None = None
    vantage: str | None = None


class Case(NamedTuple):
    """What a rule decides by.

    use_since: since when use is reported for the account without a gap over a day. use_last: when it last was.
    """

    policy: Policy
    finetune: Finetune
    newest: frozenset[str]
    use_since: datetime | None
    use_last: datetime | None
    now: datetime

    @property
    def age(self) -> timedelta | None:
        return self.now - self.finetune.since if self.finetune.since else None


def select(
    policy: Policy, finetunes: Sequence[Finetune], *, use_since: datetime | None, use_last: datetime | None = None,
    now: datetime,
) -> list[Item]:  # fmt: skip
    """Every finetune with keep or delete and the reason, in the order given."""
    newest = _newest(policy, finetunes)
    return [_item(Case(policy, finetune, newest, use_since, use_last, now)) for finetune in finetunes]


def to_read(
    policy: Policy, finetunes: Sequence[Finetune], *, use_since: datetime | None, now: datetime
) -> set[str]:
    """The ids whose details a plan reads again: of what it would delete without its filters on details.

    With `keep_newest` too, that is all that `match` fits: which are the newest is known only once all details are.
    Without such filters the newest are read as well, so that one that is gone or older than recorded does not take
    up a place.
    """
    if policy.about and policy.keep_newest:
        return {one.id for one in finetunes if _matches(one.id, policy.match)}
    by_name = replace(policy, comment=(), trigger=(), type=(), base_model=())
    items = select(by_name, finetunes, use_since=use_since, now=now)
    deletions = {item.finetune_id for item in items if item.action == "delete"}
    return deletions | (_newest(by_name, finetunes) if deletions else frozenset())


def blocked(
    policy: Policy, items: Sequence[Item], *, seen_before: int | None = None, deleted_by_us: int = 0,
    gone: Collection[str] = (),
) -> str | None:  # fmt: skip
    """Why a plan must not be applied, None if it may.

    seen_before: how many finetunes the account had in the last survey. deleted_by_us: how many of them the
    janitor has deleted since. gone: as for `too_large_a_part`.
    """
    deletions, total = sum(item.action == "delete" for item in items), len(items)
    if not total:
        return "the list is empty: is this the right account?"
    if seen_before is not None and total < (seen_before - deleted_by_us) / 2:
        return f"the list has shrunk from {seen_before} to {total}, and not by our deletions"
    if deletions > policy.max_deletions:
        return f"{deletions} would be deleted, and max_deletions is {policy.max_deletions}"
    return too_large_a_part(items, gone, policy.max_percent)


def too_large_a_part(items: Sequence[Item], gone: Collection[str], max_percent: int) -> str | None:
    """Why a plan must not be applied, None if it may.

    gone: what waits for its deletion, or was deleted lately. Otherwise several policies, or one policy
    on several nights during a long grace, could together exceed the limit that each plan respects.
    """
    own = {item.finetune_id: item.action for item in items if _can_be_asked_for(item.finetune_id)}
    deletions = sum(action == "delete" for action in own.values())
    others = sum(action == "keep" and id_ in gone for id_, action in own.items())
    most = max(1, len(own) * max_percent // 100)
    if deletions and deletions + others == len(own):
        return f"all {len(own)} finetunes would be deleted, which no plan may: use `janitor delete`"
    if deletions and deletions + others > most:
        also = f", besides {others} already deleted or waiting for it" if others else ""
        return f"{deletions} of {len(own)} would be deleted{also}, and max_percent is {max_percent} ({most})"
    return None


def unfitting(policy: Policy, ids: Collection[str]) -> tuple[str, ...]:
    """A warning for each protect pattern that fits none of these finetunes: it may be mistyped."""
    return tuple(
        f"the protect pattern {pattern!r} fits none of the {len(ids)} finetunes of account {policy.account}"
        for pattern in policy.protect
        if not any(_protects(pattern, id_) for id_ in ids)
    )


def _item(case: Case) -> Item:
    finetune, age = case.finetune, case.age
    days = age // DAY if age is not None else None
    why = next((reason for rule in KEEP if (reason := rule(case))), None)
    if why:
        return Item(finetune.id, "keep", why, days, finetune.last_used)
    seen = json.loads(finetune.incarnation or "{}"), finetune.observed_at, finetune.vantage
    return Item(finetune.id, "delete", _stale(case), days, finetune.last_used, *seen)


def _stale(case: Case) -> str:
    policy, finetune, age = case.policy, case.finetune, case.age
    reasons = []
    if policy.older_than is not None and age is not None:
        reasons.append(f"older than {_days(policy.older_than)} ({age // DAY}), created {finetune.since:%Y-%m-%d}")
    if policy.unused_for is not None:
        used = f"last used {finetune.last_used:%Y-%m-%d}" if finetune.last_used else "never used"
        reasons.append(f"unused for {_days(policy.unused_for)}, {used}")
    if policy.about:
        reasons.append(f"matches by {in_words(policy.about)}")
    return "; ".join(reasons) or f"matches {', '.join(policy.match)}"


def _not_matched(case: Case) -> str | None:
    if _matches(case.finetune.id, case.policy.match):
        return None
    return f"matches none of {', '.join(case.policy.match)}"


def _not_to_be_asked_for(case: Case) -> str | None:
    id_ = case.finetune.id
    if _can_be_asked_for(id_):
        return None
    return "it belongs to another organisation" if "/" in id_ else "no deletion of such an id can be asked for"


def _protected_by_pattern(case: Case) -> str | None:
    patterns = [one for one in case.policy.protect if _protects(one, case.finetune.id)]
    return f"protected by the pattern {patterns[0]}" if patterns else None


def _protected_by_request(case: Case) -> str | None:
    until = case.finetune.protected
    if until is None or (isinstance(until, datetime) and until <= case.now):
        return None
    return f"protected until {until:%Y-%m-%d}" if isinstance(until, datetime) else "protected for good"


def _held(case: Case) -> str | None:
    return case.finetune.held


def _requested_already(case: Case) -> str | None:
    return "another deletion of it is unfinished" if case.finetune.is_requested else None


def _age_unknown(case: Case) -> str | None:
    if case.finetune.since:
        return None
    unsound = case.finetune.unsound
    return "its age is not known" + (f": its creation time is {unsound}" if unsound else "")


def _incarnation_unknown(case: Case) -> str | None:
    return None if case.finetune.incarnation else "which finetune it is could not be read"


def _too_young(case: Case) -> str | None:
    age, wanted = case.age, case.policy.older_than
    if wanted is None or age is None or age > wanted:
        return None
    return f"not older than {_days(wanted)} ({age // DAY})"


def _use_not_reported(case: Case) -> str | None:
    wanted = case.policy.unused_for
    if wanted is None or (case.use_since is not None and case.now - case.use_since >= wanted):
        return None
    if case.use_since:
        return f"use is reported only since {case.use_since:%Y-%m-%d}"
    return f"no use reported since {case.use_last:%Y-%m-%d}" if case.use_last else "no use is reported"


def _used_lately(case: Case) -> str | None:
    wanted, used = case.policy.unused_for, case.finetune.last_used
    if wanted is None or used is None or case.now - used > wanted:
        return None
    return f"used within {_days(wanted)}, on {used:%Y-%m-%d}"


def _newer_than_its_use(case: Case) -> str | None:
    wanted, age = case.policy.unused_for, case.age
    if wanted is None or age is None or age > wanted:
        return None
    return f"not there for {_days(wanted)} yet"


def _described_otherwise(case: Case) -> str | None:
    return why_not(case.policy.about, case.finetune.about)


def _among_the_newest(case: Case) -> str | None:
    return f"among the newest {case.policy.keep_newest}" if case.finetune.id in case.newest else None


KEEP: tuple[Callable[[Case], str | None], ...] = (
    _not_matched, _not_to_be_asked_for, _protected_by_pattern, _protected_by_request, _held, _requested_already,
    _age_unknown, _incarnation_unknown, _too_young, _use_not_reported, _used_lately, _newer_than_its_use,
    _described_otherwise, _among_the_newest,
)  # fmt: skip


def _can_be_asked_for(finetune_id: str) -> bool:
    try:
        return bool(check_finetune_id(finetune_id))
    except InvalidRequest:
        return False


def _matches(finetune_id: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(finetune_id, pattern) for pattern in patterns)


def _protects(pattern: str, finetune_id: str) -> bool:
    """Whether it fits, in any case: a pattern that protects too much does no harm."""
    # A pattern in lower case would be another one: [A-_] has a range.
    return re.match(translate(pattern), finetune_id, re.IGNORECASE) is not None


def _newest(policy: Policy, finetunes: Sequence[Finetune]) -> frozenset[str]:
    """The youngest of those that match, by age; equals by name, so that the same ones stay each time.

    A finetune that cannot be read or has an unfinished deletion may soon be gone, so it does not count.
    """
    there = [one for one in finetunes if one.since and one.incarnation and not one.is_requested]
    fits = [one for one in there if _matches(one.id, policy.match) and not why_not(policy.about, one.about)]
    known = [(one.since, one.id) for one in fits]
    return frozenset(id_ for _, id_ in sorted(known, reverse=True)[: policy.keep_newest])


def _days(duration: timedelta) -> str:
    days, rest = divmod(duration, DAY)
    return format_duration(duration) if rest else f"{days} day" + ("" if days == 1 else "s")
