"""Commands about holds: hold, release, holds."""

from datetime import datetime

import click

from tasks.ledger import holds as kept
from tasks.ledger.types import Act
from worker.cli import options
from worker.cli.finetunes import warn_of_unknown
from worker.cli.output import note, print_table, some, warn_of_confusing
from worker.cli.session import Session
from worker.cli.times import local

_finetune = click.argument("id_", metavar="ID")


@click.command()
@_finetune
@options.account
@click.option("--until", type=options.LATER_TIME, help="Until this time, or 'in 30d'; for good unless given.")
@options.as_person
def hold(*, id_: str, account: str, until: datetime | None, act: Act) -> None:
    """Keep a finetune from every deletion, a person's too, until it is released.

    What is unfinished is withdrawn; what is asked for later ends cancelled. A call that is under way may still
    delete it. It needs --reason, which everybody sees who asks for a deletion. A hold that is there and lasts
    longer stays: release it first.

    \b
    janitor hold my-finetune --reason "a lawsuit, ask legal"
    janitor hold fair-demo --until "in 30d" --reason "in use until the fair"
    """
    ledger = Session(account).ledger
    withdrawn = kept.hold(ledger, account, id_, until, act)
    warn_of_confusing([id_])
    warn_of_unknown(ledger, account, [id_])
    note(f"held: {id_}")
    if withdrawn:
        note(f"withdrawn: {some(withdrawn)}; `janitor show ID` says how each ended")


@click.command()
@_finetune
@options.account
@options.as_person
def release(*, id_: str, account: str, act: Act) -> None:
    """Let a finetune that is held be deleted again. What the hold withdrew stays cancelled.

    \b
    janitor release my-finetune --reason "settled"
    """
    was_held = kept.release(Session(account).ledger, account, id_, act)
    note(f"released: {id_}" if was_held else f"{id_} was not held in account {account}")


@click.command()
@options.account
@options.json
def holds(*, account: str) -> None:
    """List what is held: since when, until when, who holds it and why.

    \b
    janitor holds
    janitor holds --account emea --json
    """
    ledger = Session(account).ledger
    print_table(
        kept.holds(ledger, account), kept.Hold.to_json, ("FINETUNE", "SINCE", "UNTIL", "BY", "REASON"),
        lambda one: (one.finetune_id, local(one.since), local(one.until) or "-", one.by or "-", one.reason),
        if_empty=f"nothing is held in account {account}",
    )  # fmt: skip
