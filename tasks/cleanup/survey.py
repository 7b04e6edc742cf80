"""A survey: which finetunes an account has, and the details of those that are new or that a policy would delete.

It only reads: its client has no delete method. If the API fails, the survey fails.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, TypeVar

from tasks.account_stops import cool_down
from tasks.api import errors
from tasks.api.client import BflReader, Details
from tasks.api.retry import Again, retried
from tasks.cleanup.inventory import Inventory, Seen, deleted_by_us, load, read, requested_among, save
from tasks.cleanup.policies import Policy
from tasks.ledger import Ledger
from tasks.text import finetune_key

T = TypeVar("T")
Advance = Callable[[int, int], None]  # told how many finetunes are read, and of how many


def no_progress(_done: int, _total: int) -> None:
    """An `Advance` that shows nothing."""


@dataclass(frozen=True)
class Surveyor:
    """Surveys one account. sleep: waits some seconds, or raises if the process is to stop.

    max_concurrent: the account's calls at once, if no worker has registered it; half of them are used.
    observe_within: how long two observations with equal settings count as one incarnation.
    """

    api: BflReader
    ledger: Ledger
    account: str
    max_concurrent: int
    retry_budget: timedelta
    sleep: Callable[[float], None]
    observe_within: timedelta
    advance: Advance = no_progress
    _nonce: str = field(default_factory=lambda: uuid.uuid4().hex)

    def survey(self, policies: Sequence[Policy]) -> Inventory:
        """The inventory, kept in the ledger. Raises `ApiError`; `Reshaped` if the list cannot be relied on."""
        ids = self._listed()
        before = load(self.ledger, self.account)
        known = {finetune_key(id_): one for id_, one in before.seen.items()}
        seen = {id_: known[finetune_key(id_)] for id_ in ids if finetune_key(id_) in known}
        requested = requested_among(self.ledger, self.account, ids)
        unread = [id_ for id_ in ids if id_ not in seen or not seen[id_].is_known]
        fresh: set[str] = set()
        while True:
            seen |= self._read(unread, seen, before.now)
            fresh.update(unread)
            inventory = replace(before, seen={id_: seen[id_] for id_ in ids}, requested=requested)
            # What would be deleted is read again, so that a plan means what is there now.
            unread = sorted(_proposed(inventory, policies) - fresh)
            if not unread:
                return self._kept(before, inventory)

    def _listed(self) -> list[str]:
        """The ids as listed, in order; of two spellings of one UUID only one."""
        listing = self._call(self.api.my_finetunes)
        if not listing.is_whole:
            raise errors.Reshaped("my_finetunes does not list all: it tells of more")
        return sorted({finetune_key(id_): id_ for id_ in sorted(listing.names)}.values())

    def _kept(self, before: Inventory, inventory: Inventory) -> Inventory:
        total, expected = len(inventory.seen), before.seen_before or 0
        if before.listed_at and total < expected / 2:
            gone = before.seen.keys() - inventory.seen.keys()
            ours = deleted_by_us(self.ledger, self.account, before.listed_at, gone)
            inventory = replace(inventory, deleted_by_us=ours)
        believed = total >= (expected - inventory.deleted_by_us) / 2
        save(self.ledger, before, inventory, believed=believed)
        return inventory

    def _read(self, ids: Sequence[str], seen: Mapping[str, Seen], began: datetime) -> dict[str, Seen]:
        same: dict[str, Any] = {"began": began, "vantage": self.api.vantage, "within": self.observe_within}

        def read_one(id_: str) -> Seen:
            at, details = self.ledger.now_ms(), self._details(id_)
            return read(id_, details, seen.get(id_), at=at, **same)

        found: dict[str, Seen] = {}
        with ThreadPoolExecutor(max(1, self.max_concurrent // 2), thread_name_prefix="survey") as pool:
            for id_, one in zip(ids, pool.map(read_one, ids), strict=True):
                found[id_] = one
                self.advance(len(found), len(ids))
        return found

    def _details(self, finetune_id: str) -> Details | None:
        """None if the details of this one are not to be had: which finetune it is stays unknown, so it is kept."""
        try:
            return self._call(lambda: self.api.finetune_details(finetune_id))
        except (errors.NotFound, errors.Refused, errors.Reshaped):
            return None
        except errors.KeyRefused:
            self._call(self.api.my_finetunes)  # raises if the key is refused, and not only this finetune
            return None

    def _call(self, call: Callable[[], T]) -> T:
        holder = f"survey:{self._nonce}:{threading.get_ident()}"

        def once() -> T:
            self.sleep(0)  # raises if the process is to stop
            self._permitted(holder)
            try:
                return call()
            except (errors.NotFound, errors.Refused, errors.KeyRefused, errors.Reshaped):
                raise
            except errors.Throttled as error:
                raise Again(str(error), cool_down(self.ledger, self.account, error)) from error
            except errors.ApiError as error:
                raise Again(str(error), error.retry_after) from error
            finally:
                self.ledger.release(self.account, holder)

        try:
            return retried(once, self.retry_budget, self.sleep)
        except Again as again:
            raise again.__cause__ or errors.TryAgain(f"no survey for now: {again}") from None

    def _permitted(self, holder: str) -> None:
        word, wait, _ = self.ledger.permit(self.account, holder, self.max_concurrent)
        if word != "go":
            why = "other calls use all permits of the account" if word == "full" else f"the account is {word}"
            raise Again(why, wait or None)


def _proposed(inventory: Inventory, policies: Sequence[Policy]) -> set[str]:
    items = [item for policy in policies for item in inventory.select(policy)]
    return {item.finetune_id for item in items if item.action == "delete"}
