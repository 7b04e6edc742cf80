"""What people and scripts see: tables in local time, JSON in UTC, one record a line; messages go to stderr."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from datetime import datetime
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tasks.records import Deletion

_STYLES = {"deleted": "green", "failed": "red", "review": "bold red", "running": "cyan", "cancelled": "dim"}
_LABELS = {"finetune_id": "finetune", "created_at": "accepted at"}
_WIDE, _WIDTH_OF_FILES = 120, 160
_NOT_IN_CSV = {"incarnation", "attempts"}  # they have parts of their own
_CSV_COLUMNS = [field.name for field in fields(Deletion) if field.name not in _NOT_IN_CSV]


def note(message: str) -> None:
    """One line for a person, on stderr."""
    click.echo(message, err=True)


def print_json(records: Iterable[dict[str, Any]]) -> None:
    """One JSON document a line."""
    for record in records:
        click.echo(json.dumps(record, ensure_ascii=False))


def print_deletions(deletions: Sequence[Deletion], *, as_json: bool) -> None:
    """JSON; for a person everything about one, a table of more."""
    if as_json:
        print_json(deletion.to_json() for deletion in deletions)
    elif len(deletions) == 1:
        print_record(deletions[0])
    elif deletions:
        print_table(deletions)


def print_csv(deletions: Iterable[Deletion]) -> None:
    """The fields of the records without incarnation and attempts, with a heading."""
    writer = csv.DictWriter(sys.stdout, _CSV_COLUMNS, extrasaction="ignore")
    writer.writeheader()
    writer.writerows(deletion.to_json() for deletion in deletions)


def print_table(deletions: Sequence[Deletion]) -> None:
    """One line for each deletion if the terminal is wide enough, else several; ids are never cut."""
    console = _console()
    wide = console.width >= _WIDE
    headings = ("FINETUNE", "ID", "MESSAGE") if wide else ("FINETUNE, ID, MESSAGE",)
    table = Table("STATE", "WHEN", box=None, header_style="bold", pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading == "ID")
    for deletion in deletions:
        table.add_row(*_cells(deletion, wide=wide))
    console.print(table)


def _cells(deletion: Deletion, *, wide: bool) -> Iterable[Any]:
    yield Text(str(deletion.state), _STYLES.get(deletion.state, ""))
    yield local(deletion.finished_at or deletion.next_try_at or deletion.due_at)
    what = [deletion.finetune_id, deletion.id, deletion.message or ""]
    yield from (map(Text, what) if wide else [Text("\n".join(filter(None, what)))])


def print_rows(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table that fits the terminal; long cells fold."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")  # an id cut short would name no finetune, or another
    for row in rows:
        table.add_row(*map(Text, row))
    _console().print(table)


def print_record(deletion: Deletion) -> None:
    """Everything about one deletion."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _facts(deletion):
        if value:
            table.add_row(name, Text(value))
    _console().print(table)


def local(moment: datetime | None) -> str:
    """Local time with its zone, to the second."""
    return moment.astimezone().strftime("%Y-%m-%d %H:%M:%S %Z") if moment else ""


def _facts(deletion: Deletion) -> Iterable[tuple[str, str]]:
    """The fields that are filled, each as a person reads it."""
    for field in fields(deletion):
        match value := getattr(deletion, field.name):
            case datetime():
                shown = local(value)
            case Mapping():
                shown = json.dumps(value, ensure_ascii=False)
            case tuple():
                continue
            case bool():
                shown = "yes" if value else ""
            case _:
                shown = str(value or "")
        yield _LABELS.get(field.name) or field.name.replace("_", " "), shown
    for attempt in deletion.attempts:
        status = f"HTTP {attempt.http_status}" if attempt.http_status else attempt.error or ""
        sent = "" if attempt.sent else " (not sent)"
        yield "attempt", f"{local(attempt.at)} {status}{sent} {attempt.message or ''}"


def _console() -> Console:
    # COLUMNS, if set, goes before both.
    width = None if sys.stdout.isatty() or os.environ.get("COLUMNS") else _WIDTH_OF_FILES
    return Console(width=width, highlight=False)
