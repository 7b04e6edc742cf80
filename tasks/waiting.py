"""Why an unfinished deletion waits, in one plain line.

`explained` reads what may hold deletions up, once for all of them; `why` decides, and is pure.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from tasks.durations import iso
from tasks.ledger import Ledger
from tasks.ledger.holds import Hold, in_force
from tasks.ledger.queries import Stop, each, stopped_accounts, workers_seen
from tasks.ledger.server import free_memory
from tasks.records import DEFAULT_ACCOUNT, Deletion, State, from_ms, to_ms
from tasks.text import finetune_key

WAKEUPS = "wakeups"  # the queue without which nothing starts
ALARM = "janitor"  # who paused an account, if no person did
Show = Callable[[datetime], str | None]
_LANES = ("resolve", "single", "bulk", "cleanup")


class Worker(NamedTuple):
    """One worker process. facts: what it does, as queues -> "deletions,wakeups"; an older version tells none."""

    name: str
    facts: Mapping[str, str]
    version: str

    def has(self, fact: str, value: str) -> bool:
        """Whether it has this queue or account. What an older version does is not known: everything."""
        return value in self.facts.get(fact, value).split(",")


def worker_entry(name: str, version: str, stuck: int = 0, **facts: Iterable[str]) -> str:
    """A worker's entry in the ledger's list: its name, `fact=value,value` for each fact, its version.

    stuck: how many of its slots do not come back; a fact, too.
    """
    words = [f"{fact}={','.join(sorted(values))}" for fact, values in facts.items()]
    words += [f"stuck={stuck}"] if stuck else []
    return " ".join([name, *words, version])


def read_entry(text: str) -> Worker:
    """The worker whose entry in the ledger's list this is."""
    name, *words = text.split(" ")
    return Worker(name, dict(word.split("=", 1) for word in words if "=" in word), words[-1] if words else "?")


def running_workers(ledger: Ledger) -> list[Worker]:
    """The worker processes that are seen. Raises `LedgerUnavailable`."""
    # The newest entry of each: an older one of the same process lasts for seconds.
    return list({one.name: one for one in map(read_entry, workers_seen(ledger))}.values())


def key_variable(account: str) -> str:
    """The setting that holds the API key of an account."""
    return "BFL_API_KEY" if account == DEFAULT_ACCOUNT else f"BFL_API_KEY_{account.upper()}"


@dataclass(frozen=True)
class Around:
    """What may hold up any deletion. stops: by account, `*` for all. free_bytes: None if Redis has room."""

    now: datetime
    workers: Sequence[Worker] = ()
    stops: Mapping[str, Stop] = field(default_factory=dict)
    free_bytes: int | None = None


@dataclass(frozen=True)
class Place:
    """Where one deletion stands.

    tries: how often it has gone back to wait. sibling: the deletion of the same finetune that goes first. report:
    whether a report of use may be waiting. ahead: how many are before it in its lane. hold: what keeps its
    finetune from every deletion.
    """

    tries: int = 0
    sibling: str | None = None
    report: bool = False
    ahead: int = 0
    hold: Hold | None = None


def explained(
    ledger: Ledger, deletions: Sequence[Deletion], show: Show = iso, *,
    name_others: bool = True,
) -> list[Deletion]:  # fmt: skip
    """The same deletions, each with why it waits, if it does; a fixed number of round trips.

    show: writes a time. name_others: whether the reader may see other deletions of the same finetune. Raises
    `LedgerUnavailable`.
    """
    waiting = [one for one in deletions if _waits(one)]
    if not waiting:
        return list(deletions)
    around = _around(ledger)
    places = dict(zip((one.id for one in waiting), _places(ledger, waiting, around.now), strict=True))

    def filled(one: Deletion) -> Deletion:
        place = places.get(one.id, Place())
        place = place if name_others or not place.sibling else replace(place, sibling="")
        return replace(one, waiting_for=why(one, place, around, show))

    return [filled(one) for one in deletions]


def why(one: Deletion, place: Place, around: Around, show: Show = iso) -> str | None:
    """Why this deletion waits; None if it does not, because it is final or running. Pure."""
    if not _waits(one):
        return None
    if place.hold and not one.cancel_requested_at:
        return f"the finetune is {place.hold.short}; it ends cancelled if its time comes first"
    is_later = one.next_try_at is not None and one.next_try_at > around.now
    if is_later and not is_retry(one):
        return f"it is not due before {show(one.due_at)}"
    return (
        _without_worker(one, around.workers)
        or _stopped(one, around.stops, show)
        or (_retry(one, place, show) if is_later else _in_line(place, around))
    )


def is_retry(one: Deletion) -> bool:
    """Whether it waits for a later time than the one that was asked for, because a try led to nothing."""
    return one.state == State.SCHEDULED and one.next_try_at is not None and one.next_try_at > one.due_at


def _waits(one: Deletion) -> bool:
    return one.state in {State.SCHEDULED, State.QUEUED}


def _without_worker(one: Deletion, workers: Sequence[Worker]) -> str | None:
    if not workers:
        return "no worker is seen: start one with `janitor worker` or `janitor up`"
    if not any(worker.has("accounts", one.account) for worker in workers):
        return f"no running worker has the key of account {one.account}: set {key_variable(one.account)} for one"
    if not any(worker.has("queues", WAKEUPS) for worker in workers):
        return f"no worker reads the queue {WAKEUPS}: start one without -Q"
    return None


def _stopped(one: Deletion, stops: Mapping[str, Stop], show: Show) -> str | None:
    for name, what in ((one.account, f"account {one.account}"), ("*", "all accounts")):
        stop = stops.get(name)
        if stop is None:
            continue
        if stop.parked is not None:
            return f"{what} is parked{_since(stop.parked_at, show)}: the API refuses its key ({stop.parked})"
        # What was withdrawn is only observed, which a pause allows.
        if stop.paused is not None and one.cancel_requested_at is None:
            return paused(name, stop, show)
        if stop.cooling is not None:
            until = f" until {show(stop.cool_until)}" if stop.cool_until else ""
            return f"{what} cools down{until}, as the API asked: {stop.cooling}"
    return None


def paused(name: str, stop: Stop, show: Show) -> str:
    """In one line: what is paused, since when, who did it, why, and how to go on. name: of the account, or `*`."""
    what, option = ("all accounts are", "") if name == "*" else (f"account {name} is", f" --account {name}")
    resume = f"`janitor resume{option}`"
    if stop.paused_by == ALARM:
        who, resume = " by an alarm", f"see what was deleted, then {resume}"
    else:
        who = f" by {stop.paused_by}" if stop.paused_by else ""
        resume = f"ask {stop.paused_by} before {resume}" if stop.paused_by else resume
    return f"{what} paused{_since(stop.paused_at, show)}{who} ({stop.paused}): {resume}"


def _since(moment: datetime | None, show: Show) -> str:
    return f" since {show(moment)}" if moment else ""


def _retry(one: Deletion, place: Place, show: Show) -> str:
    at, after = one.next_try_at and show(one.next_try_at), f", after: {one.message}" if one.message else ""
    return f"it is tried again at {at} (try {place.tries + 1}){after}"


def _in_line(place: Place, around: Around) -> str:
    if place.sibling is not None:
        return f"another deletion of the same finetune goes first{place.sibling and f': {place.sibling}'}"
    if place.report:
        return "a report of use may be waiting: a cleanup starts once the queue touches was seen empty"
    if around.free_bytes is not None:
        return f"Redis is full ({max(around.free_bytes, 0) >> 10} KiB are left): give it more memory (maxmemory)"
    others = f"{place.ahead} other{'s' if place.ahead > 1 else ''}"
    return f"it is in line, behind {others}" if place.ahead else "it is next in line"


def _around(ledger: Ledger) -> Around:
    free, least = free_memory(ledger.redis)
    return Around(
        from_ms(ledger.now_ms()), running_workers(ledger), stopped_accounts(ledger),
        free if free is not None and free < least else None,
    )  # fmt: skip


def _places(ledger: Ledger, deletions: Sequence[Deletion], now: datetime) -> list[Place]:
    keys = ledger.keys
    clear, seen = (int(at or 0) for at in ledger.redis.mget(keys.reports_clear, keys.reports_seen))
    clear_at = clear if clear > seen or seen > to_ms(now) else 0

    def ask(pipe: Any, one: Deletion) -> None:
        name = finetune_key(one.finetune_id)
        pipe.hget(keys.deletion(one.id), "backoffs")
        pipe.hget(keys.holds(one.account), name)
        pipe.hmget(keys.finetune(one.account, name), "running", "held")
        pipe.zscore(keys.siblings(one.account, name), one.id)
        pipe.zscore(keys.queue(one.account, "cleanup"), one.id)
        for lane in _LANES:
            pipe.zrank(keys.queue(one.account, lane), one.id)

    answers = iter(each(ledger, deletions, ask))
    return [_place(one, clear_at, now, list(islice(answers, 5 + len(_LANES)))) for one in deletions]


def _place(one: Deletion, clear_at: int, now: datetime, answers: Sequence[Any]) -> Place:
    tries, hold, marks, behind, cleanup_at, *ranks = answers
    running, held = (None if mark == one.id else mark for mark in marks or (None, None))
    return Place(
        tries=int(tries or 0), sibling=running or (held if behind is not None else None),
        report=cleanup_at is not None and cleanup_at >= clear_at,
        ahead=next((rank for rank in ranks if rank is not None), 0),
        hold=in_force(one.account, finetune_key(one.finetune_id), hold, now),
    )  # fmt: skip
