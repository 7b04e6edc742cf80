"""What is tried again, and after which answers: if all of it goes nowhere, a person is needed."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tasks.durations import format_duration, iso, parse_time
from tasks.ledger import Ledger
from tasks.ledger.queries import each
from tasks.records import from_ms
from worker.doctor.server import Finding, judged

LATE = timedelta(minutes=5)
_SAMPLE = 200  # of those due longest, whose answers are read
# How the API's client ends the words about a call without any answer (tasks.api.client).
_NO_ANSWER = re.compile(r"(?P<what>.*) \(set (?P<variable>\w+) to use another host\)")


@dataclass(frozen=True)
class Retries:
    """What is tried again of one account. answers: how many of the 200 due first got which last answer.

    given_up_at: when the first is given up, at the earliest; a pause or a park of the account moves it.
    """

    account: str
    deletions: int
    answers: dict[str, int]
    oldest_due_at: str
    given_up_at: str

    @property
    def without_answer(self) -> bool:
        """Whether the API answered none of them at their last try."""
        return all(_NO_ANSWER.fullmatch(answer) for answer in self.answers)


def retries(ledger: Ledger, accounts: Iterable[str]) -> list[Retries]:
    """What is tried again, for each account that has something. Raises `LedgerUnavailable`."""
    found = [_retries(ledger, account) for account in accounts]
    return [one for one in found if one]


def check_retries(found: Iterable[Retries], now: datetime) -> Iterator[Finding]:
    """One finding for each account."""
    for one in found:
        age, (answer, times) = now - parse_time(one.oldest_due_at), next(iter(one.answers.items()))
        minutes = age // timedelta(minutes=1)
        due = f"due {format_duration(timedelta(minutes=minutes))} ago" if minutes else "due just now"
        many = "1 deletion is" if one.deletions == 1 else f"{one.deletions} deletions are"
        count = f"{many} tried again, the oldest was {due}"
        check, no_answer = f"retries {one.account}", _NO_ANSWER.fullmatch(answer)
        if no_answer and one.without_answer:
            what, variable = no_answer.groups()
            fact = f"no worker of account {one.account} reaches the API ({what}), {count}"
            advice = f"is it up, is {variable} right? Run `janitor doctor` on a worker's host"
            yield Finding(check, "error", f"{fact}: {advice}")
        else:
            yield judged(
                check, f"account {one.account}: {count}, {times} because of {answer!r}",
                (age > LATE, "error", "it leads to nothing; run `janitor doctor` on a worker's host"),
            )  # fmt: skip


def _retries(ledger: Ledger, account: str) -> Retries | None:
    keys = ledger.keys
    (ids,) = each(ledger, [keys.retrying(account)], lambda pipe, key: pipe.zrange(key, 0, _SAMPLE - 1))

    def ask(pipe: Any, id_: str) -> None:
        pipe.hmget(keys.deletion(id_), "message", "due_at")

    records = [(message, due_at) for message, due_at in each(ledger, ids or (), ask) if message and due_at]
    if not records:
        return None
    (count,) = each(ledger, [keys.retrying(account)], lambda pipe, key: pipe.zcard(key))
    answers = Counter(message for message, _ in records)
    oldest_due = from_ms(min(int(due) for _, due in records))
    given_up_at = oldest_due + ledger.terms.give_up_after
    return Retries(account, count, dict(answers.most_common()), str(iso(oldest_due)), str(iso(given_up_at)))
