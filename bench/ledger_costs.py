"""The ledger alone: claims, conclusions and lists while it holds few records, and while it holds many."""

from __future__ import annotations

import statistics
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from typing import Any

from redis import Redis

from bench.lives import Place
from tasks.claims import Claimed
from tasks.ledger import Ledger
from tasks.queries import Filter, list_deletions
from tasks.records import NewRequest, State
from worker.connections import connect

GROUP = 100
_ROUNDS = 21
_AGAIN = "deleted-again-and-again"


def costs(place: Place, records: int, say: Callable[[str], None]) -> dict[str, float]:
    """Milliseconds for a group of 100 to be claimed, and concluded, and for a list of 100 by each filter.

    Half of the records wait, half are final.
    """
    place.emptied()
    ledger = Ledger(connect(place.redis_url))
    ledger.account("default", "register", max_concurrent=GROUP)
    _fill(ledger, records, say)
    found = {f"list {name}": _median_ms(partial(_list, ledger, where)) for name, where in _filters(ledger)}
    claims: list[Claimed] = []

    def accept() -> None:
        _accept(ledger, [f"finetune-{uuid.uuid4()}" for _ in range(GROUP)])

    def claim() -> None:
        claims[:] = _claim(ledger)

    def conclude() -> None:
        _conclude(ledger, claims)

    found["claim"] = _median_ms(claim, before=accept, after=conclude)
    found["conclude"] = _median_ms(conclude, before=claim, after=accept)
    return found


def _fill(ledger: Ledger, records: int, say: Callable[[str], None]) -> None:
    client: Redis = ledger.redis
    client.config_set("appendfsync", "no")  # what it costs is measured later
    for _ in range(2 * GROUP):
        _accept(ledger, [_AGAIN])
        _conclude(ledger, _claim(ledger))
    for start in range(0, records, 2 * GROUP):
        if start % 50_000 == 0:
            say(f"{start:,} of {records:,} records")
        _accept(ledger, [f"finetune-{start + n}" for n in range(2 * GROUP)])
        _conclude(ledger, _claim(ledger))
    client.config_set("appendfsync", "always")


def _filters(ledger: Ledger) -> Iterable[tuple[str, Filter]]:
    newest = list_deletions(ledger, Filter(), limit=1).deletions[0].created_at
    day = timedelta(days=1)
    yield "all", Filter()
    yield "by state", Filter(states=(State.DELETED,))
    yield "by account", Filter(account="default")
    yield "by finetune", Filter(finetune_id=_AGAIN)
    yield "since", Filter(since=newest - day)
    yield "until", Filter(until=newest - timedelta(milliseconds=1))
    both = Filter(account="default", states=(State.DELETED,), since=newest - day, until=newest)
    yield "all of these but the finetune", both


def _accept(ledger: Ledger, finetunes: list[str]) -> None:
    # With a fingerprint, as a plan gives one: else first looks would come in between.
    ledger.accept([NewRequest(str(uuid.uuid4()), one, fingerprint="v1:", bulk=True) for one in finetunes])


def _claim(ledger: Ledger) -> list[Claimed]:
    return ledger.claim("default", "bench", GROUP)[0]


def _conclude(ledger: Ledger, claims: list[Claimed]) -> None:
    ledger.conclude([_deleted(claimed) for claimed in claims])


def _deleted(claimed: Claimed) -> dict[str, Any]:
    return {
        "id": claimed.id, "token": claimed.token, "look": False, "joined": claimed.joined, "expected": "",
        "state": State.DELETED, "status": "success", "message": "deleted", "evidence": "response",
        "timestamp": "2026-11-01T00:00:00Z", "attempts": '{"at": 1790000000000, "sent": true, "http_status": 200}',
    }  # fmt: skip


def _list(ledger: Ledger, where: Filter) -> None:
    page = list_deletions(ledger, where, limit=GROUP)
    if len(page.deletions) != GROUP:
        raise RuntimeError(f"a list by {where} has {len(page.deletions)} deletions instead of {GROUP}")


def _nothing() -> None:
    pass


def _median_ms(
    measured: Callable[[], None], *, before: Callable[[], None] = _nothing, after: Callable[[], None] = _nothing
) -> float:
    took = []
    for _ in range(_ROUNDS):
        before()
        began = time.perf_counter()
        measured()
        took.append((time.perf_counter() - began) * 1000)
        after()
    return statistics.median(took)
