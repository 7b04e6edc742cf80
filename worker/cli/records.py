"""Commands that read: show, list, wait."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import click

from tasks.ledger import Ledger
from tasks.ledger.queries import Filter, get, list_deletions
from tasks.records import State, check_account, check_finetune_id, check_state
from worker.cli.common import TIME, json_option, open_desk, timeout_option, wait_for
from worker.cli.output import note, print_csv, print_deletions, print_json, print_table

_NOT_IN_TIME = 4


@click.command()
@click.argument("id_", metavar="ID")
@json_option
def show(*, id_: str, as_json: bool) -> int:
    """Show one record.

    \b
    janitor show 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10
    janitor show 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --json
    """
    print_deletions([get(open_desk().ledger, id_)], as_json=as_json)
    return 0


@click.command("list")
@click.option("--state", "states", multiple=True, metavar="STATE", help="Only this state; may be repeated.")
@click.option("--finetune", metavar="ID", help="Only this finetune.")
@click.option("--account", help="Only this account.")
@click.option("--since", type=TIME, metavar="T", help="Only what was accepted at or after this time (ISO 8601).")
@click.option("--until", type=TIME, metavar="T", help="Only what was accepted at or before this time.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="At most this many.")
@click.option("--cursor", metavar="C", help="Continue a list: the cursor that it printed on stderr.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV with a heading.")
@json_option
def list_(
    *, states: tuple[str, ...], finetune: str | None, account: str | None, since: datetime | None,
    until: datetime | None, limit: int, cursor: str | None, as_csv: bool, as_json: bool,
) -> int:  # fmt: skip
    """List records, newest first.

    \b
    janitor list
    janitor list --state failed --state review --since 2026-11-01
    janitor list --finetune my-finetune --json
    """
    if as_csv and as_json:
        raise click.UsageError("--csv and --json are both given: give one of them")
    where = Filter(
        account=check_account(account) if account else None,
        states=tuple(map(check_state, states)),
        finetune_id=check_finetune_id(finetune, allow_org_ids=True) if finetune is not None else None,
        since=since,
        until=until,
    )
    deletions, more = list_deletions(open_desk().ledger, where, limit=limit, cursor=cursor)
    if as_json:
        print_json(deletion.to_json() for deletion in deletions)
    elif as_csv:
        print_csv(deletions)
    elif deletions:
        print_table(deletions)
    else:
        note("no deletion matches")
    if more:
        note(f"there are more: --cursor {more}")
    return 0


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--missing-ok", is_flag=True, help="It is fine if a finetune did not exist.")
@timeout_option
@json_option
def wait(*, ids: tuple[str, ...], missing_ok: bool, timeout: float | None, as_json: bool) -> int:
    """Wait until deletions have ended, and show them.

    \b
    janitor wait 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --timeout 60
    """
    return follow(open_desk().ledger, ids, timeout, missing_ok=missing_ok, as_json=as_json)


def follow(
    ledger: Ledger, ids: Sequence[str], timeout_seconds: float | None, *, as_json: bool, missing_ok: bool = False
) -> int:
    """Wait for these deletions and show them; the exit code: 0 if all ended as asked."""
    deletions, in_time = wait_for(ledger, ids, timeout_seconds)
    print_deletions(deletions, as_json=as_json)
    if not in_time:
        note("not all ended in time: `janitor wait` waits on")
        return _NOT_IN_TIME
    done = [one.is_done or (missing_ok and one.state == State.NOT_FOUND) for one in deletions]
    return 0 if all(done) else 1
