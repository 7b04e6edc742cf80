"""A survey: which finetunes an account has, and of those whose age or life is not known, or that a policy would
delete, their details. It reads only: its client has no delete method. Any failure of the API is the survey's.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, TypeVar

from tasks import errors
from tasks.backoff import Again, retried
from tasks.bfl import BflReader
from tasks.gate import cool_down
from tasks.inventory import Inventory, Seen, deleted_by_us, load, read, save
from tasks.ledger import Ledger
from tasks.looking import names
from tasks.policies import Policy

T = TypeVar("T")
Advance = Callable[[int, int], None]  # told how many finetunes are read, and of how many
_FINAL = (errors.NotFound, errors.Refused, errors.KeyRefused, errors.Reshaped)


def unwatched(_done: int, _total: int) -> None:
    """An `Advance` for nobody."""


@dataclass(frozen=True)
class Surveyor:
    """Surveys one account. sleep: waits some seconds, or raises where the process is to stop.

    max_concurrent: the account's calls at once, where no worker has registered it; half of them are used.
    """

    api: BflReader
    ledger: Ledger
    account: str
    max_concurrent: int
    retry_budget: timedelta
    sleep: Callable[[float], None]
    advance: Advance = unwatched
    _nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def survey(self, policies: Sequence[Policy]) -> Inventory:
        """The inventory, kept in the ledger. Raises `ApiError`, `Reshaped` where the list cannot be read."""
        ids = self._call(self.api.my_finetunes)
        names(ids)
        before = load(self.ledger, self.account)
        seen: dict[str, Seen | None] = {id_: before.seen.get(id_) for id_ in dict.fromkeys(ids)}
        unread = [id_ for id_, one in seen.items() if one is None or not one.is_known]
        changed: set[str] = set()
        while True:
            found = self._details(unread)
            changed.update(unread)
            seen |= {id_: read(details, seen[id_], before.now) for id_, details in found.items()}
            inventory = replace(before, seen={id_: one for id_, one in seen.items() if one is not None})
            # What would be deleted is read anew, so that a plan means what is there now.
            unread = sorted(_proposed(inventory, policies) - changed)
            if not unread:
                return self._kept(before, inventory, changed)

    def _kept(self, before: Inventory, inventory: Inventory, changed: Collection[str]) -> Inventory:
        total, expected = len(inventory.seen), before.seen_before or 0
        if before.listed_at and total < expected / 2:
            gone = before.seen.keys() - inventory.seen.keys()
            ours = deleted_by_us(self.ledger, self.account, before.listed_at, gone)
            inventory = replace(inventory, deleted_by_us=ours)
        believed = total >= (expected - inventory.deleted_by_us) / 2
        save(self.ledger, inventory, changed, believed=believed)
        return inventory

    def _details(self, ids: Sequence[str]) -> dict[str, dict[str, Any] | None]:
        found: dict[str, dict[str, Any] | None] = {}
        with ThreadPoolExecutor(max(1, self.max_concurrent // 2), thread_name_prefix="survey") as pool:
            for id_, details in zip(ids, pool.map(self._details_of, ids), strict=True):
                found[id_] = details
                self.advance(len(found), len(ids))
        return found

    def _details_of(self, finetune_id: str) -> dict[str, Any] | None:
        """None where this one's details are not to be had: which finetune it is stays unknown, so it is kept."""
        try:
            return self._call(lambda: self.api.finetune_details(finetune_id))
        except (errors.NotFound, errors.Refused):
            return None
        except errors.KeyRefused:
            self._call(self.api.my_finetunes)  # raises where it is the key, and not this one, that is refused
            return None

    def _call(self, call: Callable[[], T]) -> T:
        holder = f"survey:{self._nonce}:{threading.get_ident()}"

        def once() -> T:
            self.sleep(0)  # not when the process is to stop
            self._permitted(holder)
            try:
                return call()
            except _FINAL:
                raise
            except errors.Throttled as error:
                raise Again(str(error), cool_down(self.ledger, self.account, error)) from error
            except errors.ApiError as error:
                raise Again(str(error), error.retry_after) from error
            finally:
                self.ledger.release(self.account, holder)

        try:
            return retried(once, self.retry_budget, self.sleep, lambda: None)
        except Again as again:
            raise again.__cause__ or errors.TryAgain(f"no survey for now: {again}") from None

    def _permitted(self, holder: str) -> None:
        word, wait = self.ledger.permit(self.account, holder, self.max_concurrent)
        if word == "full":
            raise Again("deletions use all permits of the account")
        if word != "go":
            raise Again(f"the account is {word}", wait or None)


def _proposed(inventory: Inventory, policies: Sequence[Policy]) -> set[str]:
    items = [item for policy in policies for item in inventory.select(policy)]
    return {item.finetune_id for item in items if item.action == "delete"}
