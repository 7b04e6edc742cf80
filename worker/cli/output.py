"""What people and scripts see: tables in local time, JSON in UTC, one record a line; messages go to stderr."""

import csv
import io
import json
import os
import sys
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from itertools import islice
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.durations import iso
from tasks.ledger import Ledger
from tasks.records import Attempt, Deletion
from tasks.waiting import explained
from worker.cli.options import as_json
from worker.cli.text import confusing, visible
from worker.cli.times import local

T = TypeVar("T")
Record = Mapping[str, Any]

_STYLES = {"deleted": "green", "failed": "red", "review": "bold red", "running": "cyan", "cancelled": "dim"}
_LABELS = {"finetune_id": "finetune", "created_at": "accepted at"}
_WIDE, _WIDTH_OF_FILES, _NARROWEST = 120, 160, 40
_LAST_IN_CSV = ("incarnation", "attempts", "last_answer")
_MOST_WARNED_OF = 5
_LONGEST_TABLE = 10_000  # rows; what has more, as the audit log may, comes in several tables
# What makes a spreadsheet calculate a cell; the last four are the wide forms of the first four.
_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")


def note(message: str) -> None:
    """One line for a person, on stderr."""
    click.echo(visible(message), err=True)


def some(names: Sequence[str]) -> str:
    """The first five, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def warn_of_confusing(finetune_ids: Iterable[str]) -> None:
    """Say which of these may be taken for another one: it is not changed, and not refused."""
    found = [(id_, why) for id_ in finetune_ids if (why := confusing(id_))]
    for id_, why in found[:_MOST_WARNED_OF]:
        note(f"warning: {id_} ({id_!a}) {why}: see that it is the one you mean")
    if more := found[_MOST_WARNED_OF:]:
        note(f"warning: {len(more)} more names are like that")


def print_record(record: Record, text: str) -> None:
    """The record as a line of JSON with --json, else the text."""
    click.echo(_json(record) if as_json() else visible(text, keep="\n"))


def print_table(
    items: Iterable[T], record: Callable[[T], Record], headings: Sequence[str],
    cells: Callable[[T], Iterable[str | Text]], *, never_fold: Container[str] = (), if_empty: str = "",
) -> None:  # fmt: skip
    """The records with --json, else tables that fit the terminal: long cells fold. if_empty: a note instead."""
    if as_json():
        for item in items:
            click.echo(_json(record(item)))
        return
    left = iter(items)
    part = list(islice(left, _LONGEST_TABLE))
    if not part and if_empty:
        note(if_empty)
    while part:
        table = Table(box=None, header_style="bold", pad_edge=False)
        for heading in headings:
            # An id that is cut off names no finetune, or another one.
            table.add_column(heading, overflow="fold", no_wrap=heading in never_fold)
        for item in part:
            table.add_row(*(_cell(cell) for cell in cells(item)))
        _console().print(table)
        part = list(islice(left, _LONGEST_TABLE))


def with_reasons(ledger: Ledger, deletions: Sequence[Deletion]) -> list[Deletion]:
    """The deletions, each with why it waits; its times are written as this command prints times."""
    return explained(ledger, deletions, iso if as_json() else local)


def print_deletions(deletions: Sequence[Deletion], *, if_empty: str = "") -> None:
    """One line for each deletion if the terminal is wide enough, else several."""
    is_wide = _console().width >= _WIDE
    headings = ("STATE", "WHEN", *(("FINETUNE", "ID", "MESSAGE") if is_wide else ("FINETUNE, ID, MESSAGE",)))

    def cells(one: Deletion) -> Iterable[str | Text]:
        state = Text(str(one.state), _STYLES.get(one.state, ""))
        what = [one.finetune_id, one.id, one.waiting_for or one.message or ""]
        when = local(one.finished_at or one.next_try_at or one.due_at)
        return state, when, *(what if is_wide else [Text("\n".join(map(visible, filter(None, what))))])

    whole = {"STATE", "WHEN", "ID"}
    print_table(deletions, Deletion.to_json, headings, cells, never_fold=whole, if_empty=if_empty)


def print_in_full(deletions: Sequence[Deletion]) -> None:
    """Everything about one deletion, a table of more."""
    if len(deletions) == 1 and not as_json():
        table = Table(box=None, show_header=False, pad_edge=False)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, value in _facts(deletions[0]):
            table.add_row(name, _cell(value))
        _console().print(table)
    else:
        print_deletions(deletions)


def print_csv(deletions: Iterable[Deletion]) -> None:
    """The fields of the records, with a heading; of attempts their number and the answer to the last one."""
    columns = [field.name for field in fields(Deletion) if field.name not in _LAST_IN_CSV]
    rows = (one.to_json() | {"attempts": len(one.attempts), "last_answer": _last(one)} for one in deletions)
    print_rows([*columns, *_LAST_IN_CSV], rows)


def print_rows(columns: Sequence[str], rows: Iterable[Record]) -> None:
    """These columns of the rows as CSV, with a heading; no cell is a formula.

    It is UTF-8: CSV has no escapes, and a name must not become another one.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    writer = csv.DictWriter(sys.stdout, columns, extrasaction="ignore")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _no_formula(value) for name, value in row.items()})


def print_lines(deletions: Iterable[Deletion]) -> None:
    """The records as JSON, one a line."""
    for deletion in deletions:
        sys.stdout.write(_json(deletion.to_json()) + "\n")


def _facts(deletion: Deletion) -> Iterator[tuple[str, str]]:
    """The fields that are filled, each as a person reads it."""
    values = {field.name: getattr(deletion, field.name) for field in fields(deletion)}
    attempts = values.pop("attempts")
    for name, value in values.items():
        if value:
            yield _LABELS.get(name) or name.replace("_", " "), _in_words(value)
    for attempt in attempts:
        yield "attempt", f"{local(attempt.at)} {_answer(attempt)}"


def _last(deletion: Deletion) -> str:
    return _answer(deletion.attempts[-1]) if deletion.attempts else ""


def _answer(attempt: Attempt) -> str:
    status = f"HTTP {attempt.http_status}" if attempt.http_status else attempt.error or ""
    sent = "" if attempt.sent else " (not sent)"
    return f"{status}{sent} {attempt.message or ''}"


def _in_words(value: object) -> str:
    if isinstance(value, datetime):
        return local(value)
    if isinstance(value, Mapping):
        return _json(value)
    return "yes" if value is True else str(value)


def _json(record: Record) -> str:
    text = json.dumps(record, ensure_ascii=False)
    if text.isprintable():
        return text
    # What is not printable is inside a string: its escape means the same, and does nothing to a terminal.
    return "".join(char if char.isprintable() else json.dumps(char)[1:-1] for char in text)


def _cell(cell: str | Text) -> Text:
    return Text(visible(cell)) if isinstance(cell, str) else cell


def _no_formula(value: object) -> object:
    if isinstance(value, Mapping):
        return _json(value)
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(_FORMULA) else visible(value)


class _Console(Console):
    def on_broken_pipe(self) -> None:  # rich would make it exit code 1
        raise BrokenPipeError


def _console() -> Console:
    # COLUMNS, if it is set, goes before both.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDTH_OF_FILES
    console = _Console(width=width, highlight=False)
    console.width = max(console.width, _NARROWEST)
    return console
