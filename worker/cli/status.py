"""`janitor status`: one screen for the person on call."""

import re
import shutil
import textwrap
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from itertools import chain

import click

from tasks.durations import format_duration, parse_time
from tasks.errors import LedgerUnavailable
from tasks.text import one_line
from worker.cli import options
from worker.cli.output import note, print_record, some
from worker.cli.session import Session
from worker.cli.text import visible
from worker.cli.times import local
from worker.doctor.server import Finding
from worker.doctor.status import Status
from worker.doctor.status import status as read_status

_EVERY_SECONDS = 2.0
_FEW, _MANY = 2, 4  # lines of one need, at most: many if there is room, the worst first
_SHORTEST_FACT = 40
_NARROWEST, _LABEL = 60, 13
_NO_BREAK = "\u00a0"


@click.command()
@click.option("--watch", is_flag=True, help="Show it again every 2 seconds, until Ctrl-C.")
@options.json
def status(*, watch: bool) -> int:
    """Show on one screen what needs a person and what to type, and what happens.

    It asks only Redis; `janitor doctor` asks the API too. Exit code 1 if something needs a person.

    \b
    janitor status
    janitor status --watch
    """
    session = Session()
    if not watch:
        return _show(session)
    while True:
        click.clear()
        try:
            _show(session)
        except LedgerUnavailable as error:
            note(f"Error: {error}")
        time.sleep(_EVERY_SECONDS)


def _show(session: Session) -> int:
    found = read_status(session.ledger, session.settings.tick_every)
    columns, lines = shutil.get_terminal_size()
    print_record(found.model_dump(), "\n".join(screen(found, max(columns, _NARROWEST), lines)))
    return int(bool(found.needs))


def screen(found: Status, columns: int, height: int) -> list[str]:
    """The lines; what needs a person takes what the rest leaves of the screen."""
    rest = [f"{name:<{_LABEL}}{_cut(text, columns - _LABEL)}" for name, text in _facts(found) if text]
    if not found.needs:
        return ["Nothing needs a person.", "", *rest]
    left, shown = height - len(rest) - 4, [_lines(need, columns, _FEW) for need in found.needs]
    for n, need in enumerate(found.needs):
        room = left - sum(map(len, shown)) + len(shown[n])
        shown[n] = _lines(need, columns, max(_FEW, min(_MANY, room)))
    kept = len(shown)
    while kept > 1 and sum(map(len, shown[:kept])) > left:
        kept -= 1
    count = f"{len(shown)} things need a person, the worst first" if len(shown) > 1 else "1 thing needs a person"
    lines = [f"{count} ({local(parse_time(found.at))}):", *chain(*shown[:kept])]
    lines += [f"* and {len(shown) - kept} more: `janitor doctor` lists all"] if kept < len(shown) else []
    return [*lines, "", *rest]


def _lines(need: Finding, columns: int, most: int) -> list[str]:
    """What is wrong, shortened until it fits, and what to do, which stays whole."""
    fact, _, advice = need.message.rpartition(": ")
    lines, room = _wrapped(need.check, fact, advice, columns), len(fact)
    while len(lines) > most and room > _SHORTEST_FACT:
        room -= 10
        lines = _wrapped(need.check, _cut(fact, room), advice, columns)
    return lines


def _wrapped(check: str, fact: str, advice: str, columns: int) -> list[str]:
    text = visible(": ".join(filter(None, (check, fact, advice))))
    # A command stays on one line, so that it can be copied.
    whole = re.sub(r"`[^`]*`", lambda command: command[0].replace(" ", _NO_BREAK), text)
    lines = textwrap.wrap(whole, columns, initial_indent="* ", subsequent_indent="  ", break_on_hyphens=False)
    return [line.replace(_NO_BREAK, " ") for line in lines]


def _facts(found: Status) -> Iterator[tuple[str, str]]:
    yield "deletions", _counts(found.states) or "none on record"
    for one in found.retrying:
        # What the advice at the end of an answer says, the need says in full.
        answers = ", ".join(f"{times} x {answer.partition(' (set ')[0]}" for answer, times in one.answers.items())
        until = local(parse_time(one.given_up_at))
        yield "tried again", f"{one.deletions} of {one.account}, until {until} or later: {answers}"
    hour = found.last_hour
    counted = sum(hour.by_state.values())
    some_of = f": of the last {counted}" if counted < hour.ended else ""
    states = f": {_counts(hour.by_state)}" if counted else ""
    yield "last hour", f"{hour.accepted} accepted, {hour.ended} ended{some_of}{states}"
    late = round(found.oldest_due_seconds)
    yield "oldest due", f"{format_duration(timedelta(seconds=late))} ago" if late else "none"
    yield "stopped", "; ".join(f"{name} is {why}" for name, why in found.stopped.items())
    held = ", ".join(f"{count} of {name}" for name, count in found.held.items())
    yield "held", held and f"{held}: `janitor holds --account NAME`"
    cleanups = [
        f"{one.policy!r} at {local(parse_time(one.at))}{' (its last plan was blocked)' if one.blocked else ''}"
        for one in found.cleanups
    ]
    yield "cleanups", some(cleanups) or "none scheduled"
    yield "workers", f"{len(found.workers)}: {some(found.workers)}" if found.workers else "none"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count)


def _cut(text: str, most: int) -> str:
    return one_line(visible(text), most=most)
