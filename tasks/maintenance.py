"""Maintenance: what each worker does once a second beside its runners.

Wake-ups, expired leases, results that are due, pruning, memory, reports of use. Any number of workers may do this
at once: what a round does is decided in the ledger. Calls to the API may take long, so they have their own thread.
"""

import json
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import structlog

from tasks.account_stops import PROBE_EVERY, cool_down
from tasks.api import errors
from tasks.api.client import BflReader
from tasks.errors import LedgerRefused, LedgerUnavailable
from tasks.ledger.audit import prune
from tasks.ledger.queries import each
from tasks.ledger.server import free_memory
from tasks.ledger.store import Ledger
from tasks.ledger.types import Act
from tasks.verification import verify_round
from tasks.waiting import WAKEUPS

log = structlog.get_logger()

TOUCHES = "touches"  # the queue of reports of use
# How kombu 5.7 spells its keys: a list for each priority of a queue, and a hash of what is delivered and not yet
# acknowledged.
_REPORTS = (TOUCHES, *(f"{TOUCHES}\x06\x16{priority}" for priority in (3, 6, 9)))
_UNACKNOWLEDGED = "unacked"
_MOST_UNREAD = 100  # wake-ups, beside one for each account; if nobody reads them, no more are published
_PRUNE_AUDIT_EVERY = timedelta(days=1).total_seconds()


@dataclass(kw_only=True)
class Maintenance:
    """Two threads that run until `stopping` is set.

    readers: API clients by account. entry: this worker's entry in the list of workers, with that many stuck slots.
    wake: publishes a wake-up for an account, and returns False if it cannot. run: works as a runner for an
    account, in the calling thread. consume: called each second with whether new requests may be taken from the
    broker, and answers how many of the worker's slots are stuck; it must be quick. clock: monotonic seconds.
    """

    ledger: Ledger
    readers: Mapping[str, BflReader]
    max_concurrent: int
    entry: Callable[[int], str]
    wake: Callable[[str], bool]
    run: Callable[[str], None]
    write_results: Callable[[Sequence[str]], None]
    consume: Callable[[bool], int]
    every: timedelta
    stopping: threading.Event
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        # Since when a lease or permit of an account was seen unchanged, on this process's own clock. It is
        # (lane, id, end), so that a renewal makes another one.
        self._seen: dict[str, dict[tuple[str, str, int], float]] = defaultdict(dict)
        self._is_full = False
        self._stuck = 0
        self._clear_since: int | None = None
        self._failing: set[str] = set()
        self._prune_audit_at = self.clock()

    def start(self) -> None:
        """Start both threads."""
        for name, once in (("maintenance", self.round), ("maintenance-api", self.api_round)):
            threading.Thread(target=self._repeat, args=(name, once), name=name, daemon=True).start()

    def round(self) -> None:
        """One round. Raises `LedgerUnavailable` if Redis is away; what else fails stops nothing but itself."""
        self._step("memory", self.watch_memory)
        for account in self.readers:
            self._step(f"account {account}", partial(self._maintain, account))
        self._step("reports of use", self._look_for_reports)
        self._step("housekeeping", self._housekeep)
        self._step("audit log", self._prune_audit)

    def api_round(self) -> None:
        """One round of what needs the API: parked accounts, and verification. Raises like `round`."""
        for account, api in self.readers.items():
            self._step(f"parking of {account}", partial(self._probe, account, api))
            verify = partial(verify_round, self.ledger, account, api, self.max_concurrent)
            self._step(f"verification of {account}", verify)

    def watch_memory(self) -> None:
        """Take no new requests from the broker while Redis may be unable to keep them."""
        free, least = free_memory(self.ledger.redis)
        was_full = self._is_full
        if free is None or free >= least * 1.5:
            self._is_full = False
        elif free < least:
            self._is_full = True
        if self._is_full != was_full:
            event = "redis.full" if self._is_full else "redis.has_room"
            log.warning(event, free_bytes=free, least_bytes=least, consuming=not self._is_full)
        self._stuck = self.consume(not self._is_full)

    def _maintain(self, account: str) -> None:
        seen, now, after = self._seen[account], self.clock(), 2 * self.ledger.terms.lease.total_seconds()
        stale = [lease for lease, since in seen.items() if now - since > after]
        found = self.ledger.maintain(account, self.max_concurrent, stale=stale)
        self._seen[account] = {lease: seen.get(lease, now) for lease in found.leases}
        if found.reclaimed:
            log.warning("leases.reclaimed", account=account, deletions=found.reclaimed)
        for id_ in found.dropped:
            log.error("deletion.dropped", deletion=id_, account=account, message="it has no readable record")
        can_wake = found.wake and self.ledger.redis.llen(WAKEUPS) < _MOST_UNREAD + len(self.readers)
        if can_wake and not self.wake(account):
            # A full Redis takes no message: without a runner nothing would end, and nothing would be pruned.
            threading.Thread(target=self.run, args=(account,), name="runner", daemon=True).start()

    def _look_for_reports(self) -> None:
        """Let cleanups start that were due before a moment at which no report of use was in the broker.

        If a report is seen, none may start: it may be about any cleanup deletion that has not started yet. kombu
        takes a message from its queue and notes it in `unacked` a moment later, so one look can miss it. If two
        looks in a row see no report, the moment before the first of them counts.
        """
        keys = [self.ledger.keys.queue(account, "cleanup") for account in self.readers]
        if not any(each(self.ledger, keys, lambda pipe, key: pipe.zcard(key))):
            self._clear_since = None
            return
        before, lasts = self.ledger.now_ms(), self.ledger.terms.reports_clear_for
        if self._has_reports():
            # What a process writes that stood still since before this moment does not count.
            self.ledger.redis.set(self.ledger.keys.reports_seen, self.ledger.now_ms(), px=lasts)
            self._clear_since = None
            return
        if self._clear_since is not None:
            self.ledger.redis.set(self.ledger.keys.reports_clear, self._clear_since, px=lasts)
        self._clear_since = before

    def _has_reports(self) -> bool:
        redis: Any = self.ledger.redis
        if redis.exists(*_REPORTS):
            return True
        for _, text in redis.hscan_iter(_UNACKNOWLEDGED):
            if f'"{TOUCHES}"' in text:
                _, exchange, routing_key = json.loads(text)
                if TOUCHES in (exchange, routing_key):
                    return True
        return False

    def _housekeep(self) -> None:
        alive_for = max(self.every * 5, timedelta(seconds=10))
        due, pruned = self.ledger.housekeep([self.entry(self._stuck)], alive_for)
        if pruned:
            log.info("records.pruned", records=pruned)
        if due:
            self.write_results(due)

    def _prune_audit(self) -> None:
        """Once a day. With the Redis users of secure-redis.md workers lack the right, and an operator does it."""
        if self.clock() < self._prune_audit_at:
            return
        self._prune_audit_at = self.clock() + _PRUNE_AUDIT_EVERY
        try:
            if months := prune(self.ledger, Act("janitor", "janitor")):
                log.info("audit.pruned", months=months)
        except LedgerUnavailable as error:
            todo = "run `janitor audit --prune` as a user of Redis who may"
            log.warning("audit.not_pruned", error=str(error), message=todo)

    def _probe(self, account: str, api: BflReader) -> None:
        """Ask whether a parked account's key is accepted again, if it is this process's turn."""
        holder = f"probe:{uuid.uuid4().hex}"
        if not self.ledger.account(account, "probe", probe_ms=PROBE_EVERY):
            return
        if self.ledger.permit(account, holder, self.max_concurrent, probe=True).word != "go":
            return
        try:
            api.my_finetunes()
        except errors.ApiError as error:
            # Without an answer nothing is known of the key.
            if isinstance(error, errors.KeyRefused) or error.http_status is None:
                log.warning("account.parked", account=account, error=str(error))
                return
            if isinstance(error, errors.Throttled):
                cool_down(self.ledger, account, error)
        finally:
            self.ledger.release(account, holder)
        self.ledger.account(account, "unpark")
        log.warning("account.unparked", account=account)

    def _repeat(self, name: str, once: Callable[[], None]) -> None:
        is_away = stopped = False
        while not stopped:
            try:
                once()
                if is_away:
                    log.warning("maintenance.goes_on", thread=name)
                is_away = False
            except LedgerUnavailable as error:
                if not is_away:
                    log.warning("maintenance.waits", thread=name, error=str(error))
                is_away = True
            stopped = self.stopping.wait(self.every.total_seconds())

    def _step(self, name: str, step: Callable[[], None]) -> None:
        """Run one step of a round; log once if it begins to fail, and once when it works again."""
        try:
            step()
        except Exception as error:
            if isinstance(error, LedgerUnavailable) and not isinstance(error, LedgerRefused):
                raise  # all other steps would wait for Redis, too
            if name not in self._failing:
                log.exception("maintenance.fails", step=name)
            self._failing.add(name)
        else:
            if name in self._failing:
                self._failing.discard(name)
                log.warning("maintenance.works_again", step=name)
