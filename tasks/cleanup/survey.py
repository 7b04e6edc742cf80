"""A survey: which finetunes an account has, and the details of those that are new or that a policy would delete.

It only reads: its client has no delete method. If the API fails, the survey fails.
"""

import uuid
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TypeVar

import structlog

from tasks.account_stops import cool_down
from tasks.api import errors
from tasks.api.client import BflReader, Details
from tasks.api.retry import Again, retried
from tasks.cleanup.about import About, about
from tasks.cleanup.gone import deleted_among, requested_among
from tasks.cleanup.inventory import Inventory, Seen, load, read, save
from tasks.cleanup.policies import Policy
from tasks.ledger import Ledger
from tasks.records import check_account
from tasks.text import finetune_key, is_same_name

log = structlog.get_logger()

T = TypeVar("T")
Advance = Callable[[int, int], None]  # told how many finetunes are read, and of how many


def no_progress(_done: int, _total: int) -> None:
    """An `Advance` that shows nothing."""


@dataclass(frozen=True)
class Surveyor:
    """Surveys accounts. readers: clients without a delete method, by account.

    max_concurrent: an account's calls at once, if no worker has registered it; half of them are used. sleep:
    waits some seconds, or raises if the process is to stop. observe_within: how long two observations with equal
    settings count as one incarnation.
    """

    ledger: Ledger
    readers: Mapping[str, BflReader]
    max_concurrent: int
    retry_budget: timedelta
    sleep: Callable[[float], None]
    observe_within: timedelta = timedelta(hours=1)

    def survey(
        self, account: str, policies: Sequence[Policy], advance: Advance = no_progress, *, reads_all: bool = False
    ) -> Inventory:
        """What the account has now, kept in the ledger. reads_all: read all details, also those of known ones.

        Raises `InvalidRequest` if there is no key for it, `ApiError`; `Reshaped` if the list cannot be relied on.
        """
        check_account(account, self.readers)
        ids = self._listed(account)
        before = load(self.ledger, account)
        known = {finetune_key(id_): one for id_, one in before.seen.items()}
        seen = {id_: known[finetune_key(id_)] for id_ in ids if finetune_key(id_) in known}
        requested = requested_among(self.ledger, account, ids)
        unread = [id_ for id_ in ids if reads_all or id_ not in seen or not seen[id_].is_known]
        told: dict[str, About | None] = {}
        while True:
            for id_, (one, what) in self._read(before, unread, seen, advance).items():
                seen[id_], told[id_] = one, what
            inventory = replace(before, seen={id_: seen[id_] for id_ in ids}, requested=requested, about=told)
            # What would be deleted is read again, so that a plan means what is there now.
            unread = sorted(inventory.to_read(policies) - told.keys())
            if not unread:
                return self._kept(before, inventory)

    def _listed(self, account: str) -> list[str]:
        """The ids as listed, in order; of two spellings of one UUID only one."""
        listing = self._call(account, self.readers[account].my_finetunes)
        if not listing.is_whole:
            raise errors.Reshaped(f"my_finetunes may not list all: {listing.more} may speak of more")
        return sorted({finetune_key(id_): id_ for id_ in sorted(listing.names)}.values())

    def _kept(self, before: Inventory, inventory: Inventory) -> Inventory:
        gone = before.seen.keys() - set(map(finetune_key, inventory.seen))
        if before.listed_at and gone:
            ours = len(deleted_among(self.ledger, inventory.account, gone, before.listed_at))
            inventory = replace(inventory, deleted_by_us=ours)
        believed = len(inventory.seen) >= ((before.seen_before or 0) - inventory.deleted_by_us) / 2
        save(self.ledger, before, inventory, believed=believed)
        return inventory

    def _read(
        self, before: Inventory, ids: Sequence[str], seen: Mapping[str, Seen], advance: Advance
    ) -> dict[str, tuple[Seen, About | None]]:
        account, within = before.account, self.observe_within
        vantage, broken = self.readers[account].vantage, list[str]()

        def read_one(id_: str) -> tuple[Seen, About | None]:
            at, details = self.ledger.now_ms(), self._details(account, id_, broken, most=max(3, len(ids) // 10))
            one = read(id_, details, seen.get(id_), at=at, began=before.now, vantage=vantage, within=within)
            return one, about(details.fields) if details else None

        found: dict[str, tuple[Seen, About | None]] = {}
        with ThreadPoolExecutor(max(1, self.max_concurrent // 2), thread_name_prefix="survey") as pool:
            for id_, one in zip(ids, pool.map(read_one, ids), strict=True):
                found[id_] = one
                advance(len(found), len(ids))
        return found

    def _details(self, account: str, finetune_id: str, broken: list[str], *, most: int) -> Details | None:
        """None if the details of this one are not to be had: which finetune it is stays unknown, so it is kept.

        broken: those whose details are given up. If they are more than `most`, it is the API: this raises.
        """
        api = self.readers[account]
        try:
            details = self._call(account, lambda: api.finetune_details(finetune_id))
            named = details.fields.get("finetune_id")
            return details if named is None or is_same_name(str(named), finetune_id) else None
        except (errors.NotFound, errors.Refused, errors.Reshaped):
            return None
        except errors.KeyRefused:
            self._call(account, api.my_finetunes)  # raises if the key is refused, and not only this finetune
            return None
        except errors.Unclear as error:
            self._call(account, api.my_finetunes)  # raises if the API is away
            broken.append(finetune_id)
            if len(broken) > most:
                where = f"{error.detail} (the details of {finetune_id!r})"
                raise errors.Unclear(where, http_status=error.http_status) from error
            log.warning("survey.unreadable", account=account, finetune=finetune_id, error=str(error))
            return None

    def _call(self, account: str, call: Callable[[], T]) -> T:
        holder = f"survey:{uuid.uuid4().hex}"

        def once() -> T:
            self.sleep(0)  # raises if the process is to stop
            word, wait, *_ = self.ledger.permit(account, holder, self.max_concurrent)
            if word != "go":
                why = "other calls use all permits of the account" if word == "full" else f"the account is {word}"
                raise Again(why, wait or None)
            try:
                return call()
            except (errors.NotFound, errors.Refused, errors.KeyRefused, errors.Reshaped):
                raise
            except errors.ApiError as error:
                asked = cool_down(self.ledger, account, error) if isinstance(error, errors.Throttled) else None
                raise Again(str(error), asked or error.retry_after) from error
            finally:
                self.ledger.release(account, holder)

        try:
            return retried(once, self.retry_budget, self.sleep)
        except Again as again:
            raise again.__cause__ or errors.TryAgain(f"no survey for now: {again}") from None
