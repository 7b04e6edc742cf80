"""The command `export`: all records of a period, for other tools."""

import sys
from collections.abc import Iterator
from itertools import chain
from typing import Any

import click

from tasks.ledger.queries import Filter, pages
from tasks.records import Deletion
from tasks.waiting import explained
from worker.cli import options
from worker.cli.output import note, print_csv, print_lines
from worker.cli.session import Session
from worker.cli.times import local


@click.command()
@options.period("was accepted")
@click.option("--state", "states", type=options.STATE, multiple=True, help="Only this state; may be repeated.")
@click.option("--account", type=options.ACCOUNT, help="Only this account.")
@options.labels("Only with this label; may be repeated, all must fit.")
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl",
              help="JSON, one record a line, or CSV with a header row.")  # fmt: skip
def export(*, form: str, **where: Any) -> None:
    """Write all records of a period to stdout, newest first, without a limit.

    Each has who asked and why, labels, incarnation, host and key tag, and attempts; in CSV the number of attempts
    and the answer to the last one; there a value that looks like a formula is prefixed with '. What is accepted
    while it runs is not in it.

    \b
    janitor export --since 2027-01-01 --until 2027-02-01 > january.jsonl
    janitor export --label customer=4711 --format csv > customer.csv
    """
    ledger = Session().ledger
    # Each other option is a field of the filter.
    parts = (explained(ledger, page) for page in pages(ledger, Filter(**where)))
    deletions = chain.from_iterable(_counted(parts))
    if form == "csv":
        print_csv(deletions)
    else:
        print_lines(deletions)


def _counted(parts: Iterator[list[Deletion]]) -> Iterator[list[Deletion]]:
    """The same, told in one line on a terminal that does not show the records."""
    is_told = sys.stderr.isatty() and not sys.stdout.isatty()
    count, at = 0, None
    for part in parts:
        yield part
        count, at = count + len(part), part[-1].created_at if part else at
        if is_told:
            click.echo(f"\r{count:,} records{f', back to {local(at)}' if at else ''}", err=True, nl=False)
    if is_told:
        note("")
