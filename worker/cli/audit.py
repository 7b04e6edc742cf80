"""The command `audit`: who did what, when and why."""

from datetime import datetime

import click

from tasks.ledger.audit import Entry, Wanted, prune, read
from tasks.ledger.types import Act
from worker.cli import options
from worker.cli.output import note, print_table, some
from worker.cli.session import Session
from worker.cli.times import local


@click.command()
@options.period("was done")
@click.option("--who", metavar="WHO", help="Only what this login, token or sender did.")
@click.option("--act", metavar="A", help="Only this act, such as pause, cancel, protect, apply, resolve, retry.")
@click.option("--prune", "prunes", is_flag=True, help="Only drop the months older than JANITOR_AUDIT_RETENTION.")
@options.json
def audit(
    *, since: datetime | None, until: datetime | None, who: str | None, act: str | None, prunes: bool
) -> None:  # fmt: skip
    """Show who did what, when and why, oldest first. Requests and reports of use are not in it.

    The users of Redis for workers, HTTP and people may add entries and read them, and not change or remove any. So
    --prune needs the URL of a user who may.

    \b
    janitor audit --since "7d ago"
    janitor audit --who ana@host --act pause --json
    """
    ledger = Session().ledger
    if prunes:
        months = prune(ledger, Act(options.login(), "command"))
        note(f"dropped: {some(months)}" if months else "no month is old enough to be dropped")
        return
    entries = (one for _, one in read(ledger, Wanted(since, until, who, act)) if one)
    print_table(
        entries, Entry.to_json, ("WHEN", "WHO", "ACT", "WHAT", "WHY"), _cells, never_fold={"WHEN"},
        if_empty="no act is in the audit log, or none fits",
    )  # fmt: skip


def _cells(one: Entry) -> tuple[str, ...]:
    return local(one.at), f"{one.who or '-'} ({one.via})", one.act, _what(one), one.why or ""


def _what(one: Entry) -> str:
    where = "all accounts" if one.account == "*" else f"account {one.account}" if one.account else ""
    plan = f"plan {one.plan}" if one.plan else ""
    ids = f"{', '.join(one.ids[:5])}{f' and {one.count - 5} more' if one.count > 5 else ''}"
    return "; ".join(filter(None, (where, plan, ids)))
