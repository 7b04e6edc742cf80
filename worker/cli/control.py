"""Commands for the person on call: pause, resume, dead-letters."""

from __future__ import annotations

import click

from tasks.durations import parse_time
from tasks.ledger.dead_letters import DeadLetter, drop_dead_letters, list_dead_letters
from tasks.ledger.queries import known_accounts, stopped_accounts
from tasks.records import check_account
from tasks.text import one_line
from worker.cli.common import json_option, open_desk
from worker.cli.output import local, note, print_json

EVERY_ACCOUNT = "*"

_account_option = click.option("--account", metavar="A", help="Only this account; all unless given.")


@click.command()
@_account_option
@click.option("--reason", metavar="R", help="Why; shown by doctor.")
def pause(*, account: str | None, reason: str | None) -> int:
    """Stop all deleting within 2 seconds, everywhere; nothing is lost meanwhile.

    Calls in flight end; requests are still accepted; observations, which change nothing at the API, go on.

    \b
    janitor pause --reason "checking a complaint"
    janitor pause --account emea
    """
    ledger = open_desk().ledger
    scope = check_account(account, known_accounts(ledger)) if account else EVERY_ACCOUNT
    ledger.account(scope, "pause", reason=one_line(reason) if reason else None)
    note(f"paused: {account or 'all accounts'}; `janitor resume{_option(account)}` goes on")
    return 0


@click.command()
@_account_option
def resume(*, account: str | None) -> int:
    """Go on deleting after a pause.

    Without --account it lifts the pause of all accounts; one that was paused by name, or by an alarm, stays so.

    \b
    janitor resume
    janitor resume --account emea
    """
    ledger = open_desk().ledger
    scope = check_account(account, known_accounts(ledger)) if account else EVERY_ACCOUNT
    ledger.account(scope, "resume")
    note(f"resumed: {account or 'all accounts'}")
    for name, stop in stopped_accounts(ledger).items():
        if stop.paused is not None and (account is None or name == EVERY_ACCOUNT):
            option = _option(None if name == EVERY_ACCOUNT else name)
            note(f"still paused ({stop.paused}): `janitor resume{option}` goes on")
    return 0


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show or drop messages that could not be read.

    A worker kept them and did not carry them out: what producers send by name must be Celery tasks in JSON.

    \b
    janitor dead-letters list
    janitor dead-letters show 3f1c0a9b7d21
    janitor dead-letters drop --all
    """


@dead_letters.command("list")
@json_option
def list_(*, as_json: bool) -> int:
    """List them, newest first.

    \b
    janitor dead-letters list
    """
    found = list_dead_letters(open_desk().ledger)
    if as_json:
        print_json(entry._asdict() for entry in found)
        return 0
    for entry in found:
        click.echo(f"{entry.id}  {_when(entry)}  {entry.queue}  {entry.reason}")
    if not found:
        note("there are no dead letters")
    return 0


@dead_letters.command()
@click.argument("id_", metavar="ID")
@json_option
def show(*, id_: str, as_json: bool) -> int:
    """Show one message: when, from which queue, why, and its text.

    \b
    janitor dead-letters show 3f1c0a9b7d21
    """
    found = [entry for entry in list_dead_letters(open_desk().ledger) if entry.id == id_]
    if not found:
        return _unknown({id_})
    if as_json:
        print_json([found[0]._asdict()])
    else:
        click.echo(f"{_when(found[0])}  {found[0].queue}  {found[0].reason}\n{found[0].text}")
    return 0


@dead_letters.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--all", "every", is_flag=True, help="All that there are now.")
def drop(*, ids: tuple[str, ...], every: bool) -> int:
    """Drop messages, for good.

    \b
    janitor dead-letters drop 3f1c0a9b7d21
    """
    if bool(ids) == every:
        raise click.UsageError("give either the ids of messages, or --all")
    ledger = open_desk().ledger
    wanted = {entry.id for entry in list_dead_letters(ledger)} if every else set(ids)
    dropped = drop_dead_letters(ledger, wanted)
    note(f"{len(dropped)} dropped")
    return _unknown(wanted - dropped) if wanted - dropped else 0


def _unknown(ids: set[str]) -> int:
    for id_ in sorted(ids):
        note(f"{id_}: no dead letter has this id")
    return 1


def _option(account: str | None) -> str:
    return f" --account {account}" if account else ""


def _when(entry: DeadLetter) -> str:
    return local(parse_time(entry.at))
