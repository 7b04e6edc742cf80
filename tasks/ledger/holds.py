"""Holds: what keeps a finetune from every deletion, a person's too, until it is released.

The last question before each delete asks for them: see `lua/mark.lua`.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tasks.errors import InvalidRequest
from tasks.ledger.queries import known_accounts
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.store import Ledger
from tasks.ledger.types import Act
from tasks.records import DEFAULT_ACCOUNT, Plain, check_account, check_finetune_id, from_ms, moment, to_ms
from tasks.text import finetune_key


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

    def __str__(self) -> str:
        """The message of a deletion that it stops."""
        name = self.finetune_id + (f" --account {self.account}" if self.account != DEFAULT_ACCOUNT else "")
        since = f"held since {self.since:%Y-%m-%d %H:%M} UTC by {self.by or 'somebody'}"
        return f"{since}: {self.reason}; `janitor release {name}`, then ask again"


def hold(ledger: Ledger, account: str, finetune_id: str, until: datetime | None, act: Act) -> list[str]:
    """Hold a finetune until `until`, in place of any earlier hold; the deletions that are withdrawn by it.

    Raises `InvalidRequest`, also if the act has no reason.
    """
    name = _checked(ledger, account, finetune_id)
    if not act.why:
        raise InvalidRequest("a hold needs a reason: say why with --reason, over HTTP with ?reason=")
    made = Hold(name, account, from_ms(ledger.now_ms()), act.who, act.why, until)
    told = {"since": to_ms(made.since), "by": made.by, "reason": made.reason, "message": str(made)}
    if until:
        told["until_ms"] = to_ms(until)
    return list(ledger.hold("hold", account, name, act, told).get("withdrawn", ()))


def release(ledger: Ledger, account: str, finetune_id: str, act: Act) -> bool:
    """Let it be deleted again; whether it was held. Deletions that the hold withdrew stay cancelled."""
    return bool(ledger.hold("release", account, _checked(ledger, account, finetune_id), act)["was_held"])


def holds(ledger: Ledger, account: str, ids: Collection[str] | None = None) -> list[Hold]:
    """Those of an account, or of these of its finetunes, by name; one whose time has passed is none.

    Raises `InvalidRequest` if the account is not known.
    """
    check_account(account, known_accounts(ledger))
    now, key = from_ms(ledger.now_ms()), ledger.keys.holds(account)
    with unavailable():
        if ids is None:
            found: Any = ledger.redis.hgetall(key)
        else:
            names = sorted({finetune_key(id_) for id_ in ids}) or [""]
            found = dict(zip(names, ledger.redis.hmget(key, names), strict=True))
    told = [_read(name, account, json.loads(text)) for name, text in sorted(found.items()) if text]
    return [one for one in told if one.until is None or one.until > now]


def _read(name: str, account: str, told: dict[str, Any]) -> Hold:
    """What `hold` wrote."""
    until = moment(told.get("until_ms"))
    return Hold(name, account, from_ms(told["since"]), told.get("by"), told["reason"], until)


def _checked(ledger: Ledger, account: str, finetune_id: str) -> str:
    check_finetune_id(finetune_id, allow_org_ids=True)
    check_account(account, known_accounts(ledger))
    return finetune_key(finetune_id)
