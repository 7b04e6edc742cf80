"""The ledger alone: claims, finishes and lists while it holds few records, and while it holds many."""

from __future__ import annotations

import itertools
import statistics
import time
import uuid
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial

from redis import Redis

from bench.lives import Place
from tasks.ledger import Claim, Finish, Ledger
from tasks.ledger.queries import Filter, list_deletions
from tasks.ledger.types import Findings, Progress
from tasks.records import Evidence, NewRequest, State
from worker.redis_url import connect

GROUP = 100
_ROUNDS = 21
_AGAIN = "deleted-again-and-again"
_calls = itertools.count(1)


def costs(place: Place, records: int, say: Callable[[str], None]) -> dict[str, float]:
    """Milliseconds for a hundred claims, a hundred finishes, and a list of 100 by each filter.

    Half of the records wait, half are final.
    """
    place.emptied()
    ledger = Ledger(connect(place.redis_url))
    ledger.maintain("default", GROUP)
    _fill(ledger, records, say)
    found = {f"list {name}": _median_ms(partial(_list, ledger, where)) for name, where in _filters(ledger)}
    claims: list[Claim] = []

    def accept() -> None:
        _accept(ledger, [f"finetune-{uuid.uuid4()}" for _ in range(GROUP)])

    def claim() -> None:
        claims[:] = _claim(ledger)

    def finish() -> None:
        _finish(ledger, claims)

    found["claim"] = _median_ms(claim, before=accept, after=finish)
    found["finish"] = _median_ms(finish, before=claim, after=accept)
    return found


def _fill(ledger: Ledger, records: int, say: Callable[[str], None]) -> None:
    client: Redis = ledger.redis
    client.config_set("appendfsync", "no")  # what it costs is measured later
    for _ in range(2 * GROUP):
        _accept(ledger, [_AGAIN])
        _finish(ledger, _claim(ledger))
    for start in range(0, records, 2 * GROUP):
        if start % 50_000 == 0:
            say(f"{start:,} of {records:,} records")
        _accept(ledger, [f"finetune-{start + n}" for n in range(2 * GROUP)])
        _finish(ledger, _claim(ledger))
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
    # With an incarnation, as a plan gives one: else first observations would come in between.
    ledger.accept([NewRequest(str(uuid.uuid4()), one, incarnation="{}", bulk=True) for one in finetunes])


def _claim(ledger: Ledger) -> list[Claim]:
    claims: list[Claim] = []
    while len(claims) < GROUP and (claim := ledger.claim("default", f"bench:{next(_calls)}").claim):
        claims.append(claim)
    return claims


def _finish(ledger: Ledger, claims: list[Claim]) -> None:
    done = Finish(
        result=State.DELETED, status="success", message="deleted", evidence=Evidence.RESPONSE,
        timestamp="2026-11-01T00:00:00Z",
    )  # fmt: skip
    line = '{"at": 1790000000000, "sent": true, "http_status": 200}'
    for claim in claims:
        ledger.finish(claim, done, Progress(0, Findings(), (line,)))


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
