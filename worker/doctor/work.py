"""Does somebody do the work? What workers tell of themselves, against the messages and deletions that wait."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from redis.exceptions import NoPermissionError

from tasks.celery_tasks import DELETIONS
from tasks.cleanup.policies import UNREADABLE
from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.queries import each
from tasks.ledger.statistics import AccountStatistics
from tasks.records import State, is_final
from tasks.waiting import Worker, key_variable, running_workers
from worker.doctor.server import Finding, judged
from worker.message_fields import QUEUES, TASKS

_PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")  # how kombu 5.7 names the lists of one queue
_DEFAULT_QUEUE = "celery"  # where a message without `queue=` goes
_SAMPLE = 20
_START = "start one with `janitor worker` or `janitor up`"


def check_work(ledger: Ledger, accounts: Mapping[str, AccountStatistics]) -> Iterator[Finding]:
    """One finding at a time. Raises `LedgerUnavailable`. accounts: all of the ledger, by name."""
    workers = running_workers(ledger)
    waiting = _waiting(ledger)
    is_due = any(one.oldest_due_seconds for one in accounts.values())
    yield _workers(workers, is_work=is_due or any((waiting or Counter()).values()))
    yield _queues(workers, waiting, is_due=is_due)
    if workers:
        yield from _keys(workers, accounts)
    yield from _strays(ledger)


def _workers(workers: list[Worker], *, is_work: bool) -> Finding:
    ours = version("finetune-janitor")
    differ = any(one.version != ours for one in workers)
    shown = ", ".join(f"{one.name} {one.version}" for one in workers)
    policies = {one.facts.get("policies") for one in workers} - {None}
    urls = {url for one in workers for url in one.facts.get("urls", "").split(",") if url}
    ambiguous = [name for name, count in sorted(Counter(url.split(":")[0] for url in urls).items()) if count > 1]
    stuck = ", ".join(f"{one.name}: {one.facts['stuck']}" for one in workers if "stuck" in one.facts)
    return judged(
        "workers", f"worker processes: {shown}" if workers else "no worker is seen",
        (not workers, "error" if is_work else "warning", _START),
        (stuck, "error", f"tasks of some run far too long and keep their slots ({stuck}); see slot.stuck in the "
         "worker's log, and restart it"),
        (ambiguous, "error", f"they have different base URLs for account {', '.join(ambiguous)}: give all the "
         "same BFL_API_URL"),
        (UNREADABLE in policies, "error", "one cannot read its policies, so scheduled cleanups may not run: "
         "`janitor cleanup check` there says why"),
        (len(policies) > 1, "error", "their policies differ, so scheduled cleanups may not run: give all the same "
         "JANITOR_POLICY_FILE"),
        (differ, "warning", f"this command is {ours}; bring all to one version"),
    )  # fmt: skip


def _queues(workers: list[Worker], waiting: Counter[str] | None, *, is_due: bool) -> Finding:
    """Each queue has to be read by some worker: `-Q` may leave one to nobody."""
    if waiting is None:
        return Finding("messages", "warning", "this user of Redis may not count them: ask as operator or worker")
    unread = [name for name in QUEUES if workers and not any(one.has("queues", name) for one in workers)]
    fact = ", ".join(f"{name}: {waiting[name]}" for name in QUEUES if waiting[name] or name in unread)
    needed = any(waiting[name] for name in unread) or (is_due and set(QUEUES) - {"touches"} & set(unread))
    return judged(
        "messages", f"messages that wait: {fact}" if fact else "no message waits",
        (unread, "error" if needed else "warning",
         f"no worker reads {' and '.join(unread)}: start one without -Q, or add what is missing to its -Q"),
    )  # fmt: skip


def _keys(workers: list[Worker], accounts: Mapping[str, AccountStatistics]) -> Iterator[Finding]:
    """Only a worker that has an account's key looks after its deletions."""
    for name, account in accounts.items():
        unfinished = sum(count for state, count in account.states.items() if not is_final(State(state)))
        if not unfinished or any(one.has("accounts", name) for one in workers):
            continue
        yield Finding(
            f"key {name}", "error" if account.oldest_due_seconds else "warning",
            f"account {name} has {unfinished} unfinished deletions, and no running worker has its key: set "
            f"{key_variable(name)} for a worker and restart it",
        )  # fmt: skip


def _strays(ledger: Ledger) -> Iterator[Finding]:
    """Requests in Celery's default queue, sent without `queue=`. It may be another application's: only look."""
    found = _if_allowed(ledger, [_DEFAULT_QUEUE], lambda pipe, key: pipe.lrange(key, 0, _SAMPLE - 1))
    messages = (found and found[0]) or ()
    count = sum(any(f'"{task}"' in message for task in TASKS) for message in messages)
    if count:
        fact = f"queue {_DEFAULT_QUEUE}: {count} of the last {len(messages)} messages are for the janitor"
        advice = f'no worker reads it: send them with queue="{DELETIONS}" ("touches" for finetunes.touch)'
        yield Finding("other queues", "error", f"{fact}: {advice}")


def _waiting(ledger: Ledger) -> Counter[str] | None:
    """How many messages wait in each queue; None if this user of Redis may not know."""
    lists = [(queue, queue + priority) for queue in QUEUES for priority in _PRIORITIES]
    lengths = _if_allowed(ledger, lists, lambda pipe, one: pipe.llen(one[1]))
    if lengths is None:
        return None
    waiting: Counter[str] = Counter()
    for (queue, _), length in zip(lists, lengths, strict=True):
        waiting[queue] += length
    return waiting


def _if_allowed(ledger: Ledger, items: Iterable[Any], ask: Callable[[Any, Any], object]) -> list[Any] | None:
    """The answers to `each`; None if this user of Redis may not ask."""
    try:
        return each(ledger, items, ask)
    except LedgerUnavailable as error:
        if isinstance(error.__cause__, NoPermissionError):
            return None
        raise
