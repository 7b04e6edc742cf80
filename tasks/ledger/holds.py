"""Holds: what keeps a finetune from every deletion, a person's too, until it is released.

The last question before each delete asks for them: see `lua/mark.lua`.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.durations import LONGEST, iso
from tasks.errors import InvalidRequest
from tasks.ledger.queries import known_accounts
from tasks.ledger.store import Ledger
from tasks.ledger.types import Act, Withdrawn
from tasks.records import DEFAULT_ACCOUNT, Plain, check_account, check_finetune_id, from_ms, moment
from tasks.text import finetune_key, in_command


@dataclass(frozen=True)
class Hold(Plain):
    """One hold. finetune_id: a UUID in lower case. until: None if only a release ends it."""

    finetune_id: str
    account: str
    since: datetime
    by: str | None
    reason: str
    until: datetime | None = None

    @property
    def short(self) -> str:
        """Who holds it, and why."""
        return f"held by {self.by or 'somebody'}: {self.reason}"

    @property
    def release(self) -> str:
        """The command that ends it."""
        option = f"--account {self.account} " if self.account != DEFAULT_ACCOUNT else ""
        return f"`janitor release {option}{in_command(self.finetune_id)}`"

    def __str__(self) -> str:
        """The message of a deletion that it stops."""
        since = f"held since {self.since:%Y-%m-%d %H:%M} UTC by {self.by or 'somebody'}"
        return f"{since}: {self.reason}; {self.release}, then ask again"


def hold(ledger: Ledger, account: str, finetune_id: str, until: datetime | None, act: Act) -> Withdrawn:
    """Hold a finetune until `until`, for good if that is None; the deletions that are withdrawn by it.

    It replaces a hold that ends earlier. Raises `InvalidRequest`, also if the act has no reason, `until` has
    passed, or a hold is there that lasts longer.
    """
    name = _checked(ledger, account, finetune_id)
    if not (act.why and act.why.strip()):
        raise InvalidRequest("a hold needs a reason: say why with --reason, over HTTP with ?reason=")
    made = Hold(name, account, from_ms(ledger.now_ms()), act.who, act.why, checked_until(ledger, until))
    told = {"since": made.since, "by": made.by, "reason": made.reason, "message": str(made), "until_ms": until}
    if longer := ledger.hold(account, name, act, told).get("longer"):
        there = _read(name, account, longer)
        end = f"until {iso(there.until)}" if there.until else "for good"
        raise InvalidRequest(f"{finetune_id} is {there.short}, {end}: {there.release} first")
    ids: Any = ledger.redis.smembers(ledger.keys.unfinished(account, name))
    # From now on the mark stops them all; they are withdrawn so that none goes on after a release.
    answers, _ = ledger.cancel(sorted(ids), Act(act.who, act.via, str(made)), message=str(made))
    found = list(zip(sorted(ids), answers, strict=True))
    return Withdrawn(*([id_ for id_, answer in found if answer == word] for word in ("cancelled", "requested")))


def checked_until(ledger: Ledger, until: datetime | None) -> datetime | None:
    """The end of a hold or a protection. Raises `InvalidRequest` if it has passed, or is over ten years off."""
    now = from_ms(ledger.now_ms())
    if until and until <= now:
        raise InvalidRequest(f"{iso(until)} is in the past: give a later time")
    if until and until > now + LONGEST:
        raise InvalidRequest(f"{iso(until)} is too far off: give at most ten years, or no time: for good")
    return until


def release(ledger: Ledger, account: str, finetune_id: str, act: Act) -> bool:
    """Let it be deleted again; whether it was held. Deletions that the hold withdrew stay cancelled."""
    return bool(ledger.hold(account, _checked(ledger, account, finetune_id), act)["was_held"])


def holds(ledger: Ledger, account: str, ids: Collection[str] | None = None, *, check: bool = True) -> list[Hold]:
    """Those of an account, or of these of its finetunes, by name; one whose time has passed is none.

    Raises `InvalidRequest` if all of an account are asked for that is not known, unless check is false.
    """
    if ids is None and check:
        check_account(account, known_accounts(ledger))
    now, key = from_ms(ledger.now_ms()), ledger.keys.holds(account)
    if ids is None:
        found: Any = ledger.redis.hgetall(key)
    else:
        names = sorted({finetune_key(id_) for id_ in ids}) or [""]
        found = dict(zip(names, ledger.redis.hmget(key, names), strict=True))
    return [one for name, text in sorted(found.items()) if (one := in_force(account, name, text, now))]


def in_force(account: str, name: str, text: str | None, now: datetime) -> Hold | None:
    """The hold in this text of the ledger; None if there is none, or its time has passed."""
    found = _read(name, account, json.loads(text)) if text else None
    return found if found and (found.until is None or found.until > now) else None


def _read(name: str, account: str, told: dict[str, Any]) -> Hold:
    """What `hold` wrote."""
    until = moment(told.get("until_ms"))
    return Hold(name, account, from_ms(told["since"]), told.get("by"), told["reason"], until)


def _checked(ledger: Ledger, account: str, finetune_id: str) -> str:
    check_finetune_id(finetune_id, allow_org_ids=True)
    check_account(account, known_accounts(ledger))
    return finetune_key(finetune_id)
