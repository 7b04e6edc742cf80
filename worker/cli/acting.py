"""`--reason` of the commands that change something: with the login it makes the entry of the audit log."""

import click

from tasks.ledger.types import Act
from tasks.text import one_line
from worker.cli.session import login


def _act(_context: click.Context, _option: click.Parameter, reason: str | None) -> Act:
    return Act(login(), "command", one_line(reason or "") or None)


as_person = click.option("--reason", "act", metavar="R", callback=_act, help="Why; kept in the audit log.")
