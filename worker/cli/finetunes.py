"""Commands about finetunes themselves: finetunes, protect, unprotect, touch, hold, release, holds."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from tasks.cleanup import inventory
from tasks.cleanup.about import short
from tasks.cleanup.inventory import Inventory
from tasks.cleanup.policies import Policy, read_policies
from tasks.cleanup.rules import DAY, Finetune, Item
from tasks.durations import iso
from tasks.ledger import Ledger
from tasks.ledger import holds as kept
from tasks.ledger.types import Act, Withdrawn
from worker.cli import options
from worker.cli.options import Ids, known_account
from worker.cli.output import note, print_table, some, warn_of_confusing
from worker.cli.session import Session, progress
from worker.cli.times import local

_finetune = click.argument("id_", metavar="ID")


@click.command()
@options.account
@options.policy_file
@click.option("--details", is_flag=True, help="Read the details of all: comment, trigger word, type, base model.")
@options.json
def finetunes(*, account: str, file: Path | None, details: bool) -> None:
    """Show what the API has: age, last use, protected or not, and what each policy would do and why.

    It needs the API key, and changes nothing at the API. What the details say is shown with --details, or if a
    policy selects by it; then only of those that were read for it. It is kept nowhere.

    \b
    janitor finetunes
    janitor finetunes --details
    janitor finetunes --account emea --json
    """
    session = Session()
    file = file or session.settings.policy_file
    policies = [policy for policy in (read_policies(file) if file else ()) if policy.account == account]
    cleaner = session.cleaner
    known_account(account, session.settings.accounts)
    with progress(f"reading account {account}") as advance:
        found = cleaner.survey(account, policies, advance, reads_all=details)
    verdicts = zip(found.finetunes(), *map(found.select, policies), strict=True)
    rows = [(one, dict(zip(policies, items, strict=True))) for one, *items in verdicts]
    shows = details or any(policy.about for policy in policies)
    fixed = ("FINETUNE", "AGE", "LAST USE", "PROTECTED", *(["ABOUT"] if shows else []))
    headings = (*fixed, *(policy.name.upper() for policy in policies))
    print_table(rows, lambda row: _as_json(found, *row), headings, lambda row: _cells(found, *row, shows=shows))
    warn_of_confusing(one.id for one, _ in rows)
    what = "1 finetune" if len(rows) == 1 else f"{len(rows)} finetunes"
    note(f"{what} in account {account}" + ("" if policies else "; no policy is for it"))


@click.command()
@options.ids
@options.account
@click.option("--until", type=options.LATER_TIME, help="Until this time, or 'in 30d'; permanently unless given.")
@options.as_person
def protect(*, ids: Ids, account: str, until: datetime | None, act: Act) -> None:
    """Protect finetunes from cleanups, immediately; a cleanup's deletion that is waiting is withdrawn.

    A call that is under way may still delete; the command says so. What is protected for longer stays so:
    unprotect it first. Requests from people and services are not affected: `janitor hold` keeps it from every
    deletion.

    \b
    janitor protect my-finetune
    janitor protect my-finetune --until 2027-01-01
    """
    ledger = Session(account).ledger
    _say("protected", ids, inventory.protect(ledger, account, ids, until, act))
    _warn_of_unknown(ledger, account, ids)


@click.command()
@options.ids
@options.account
@options.as_person
def unprotect(*, ids: Ids, account: str, act: Act) -> None:
    """Let cleanups delete finetunes again.

    \b
    janitor unprotect my-finetune
    """
    inventory.unprotect(Session(account).ledger, account, ids, act)
    _say("no longer protected", ids)


@click.command()
@options.ids
@options.account
def touch(*, ids: Ids, account: str) -> None:
    """Report that finetunes are used, now; services send `finetunes.touch` by name.

    \b
    janitor touch my-finetune
    """
    ledger = Session(account).ledger
    _say("use noted", ids, inventory.touch(ledger, account, ids))
    _warn_of_unknown(ledger, account, ids)


@click.command()
@_finetune
@options.account
@click.option("--until", type=options.LATER_TIME, help="Until this time, or 'in 30d'; for good unless given.")
@options.as_person
def hold(*, id_: str, account: str, until: datetime | None, act: Act) -> None:
    """Keep a finetune from every deletion, a person's too, until it is released.

    What is unfinished is withdrawn; what is asked for later ends cancelled. A call that is under way may still
    delete it. Give --reason: everybody who asks for a deletion of this finetune sees it. A shorter hold does not
    replace a longer one: release that one first.

    \b
    janitor hold my-finetune --reason "a lawsuit, ask legal"
    janitor hold fair-demo --until "in 30d" --reason "in use until the fair"
    """
    ledger = Session(account).ledger
    _say("held", [id_], kept.hold(ledger, account, id_, until, act))
    _warn_of_unknown(ledger, account, [id_])


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


def _say(what: str, ids: Sequence[str], found: Withdrawn | None = None) -> None:
    warn_of_confusing(ids)
    note(f"{what}: {some(ids)}")
    if found and found.withdrawn:
        note(f"withdrawn before anything was deleted: {some(found.withdrawn)}")
    if found and found.under_way:
        how = "a call may be under way, which may still delete; `janitor show ID` says how each ended"
        note(f"warning: withdrawn, perhaps too late: {some(found.under_way)}: {how}")


def _warn_of_unknown(ledger: Ledger, account: str, finetune_ids: Sequence[str]) -> None:
    """Say which of these the last survey did not see: what was asked is done all the same."""
    if unknown := inventory.unknown_among(ledger, account, finetune_ids):
        seen = f"not in the last survey of account {account}, which `janitor finetunes` makes"
        note(f"warning: {some(unknown)}: {seen}; see that it is spelled right")


def _cells(found: Inventory, one: Finetune, verdicts: Mapping[Policy, Item], *, shows: bool) -> tuple[str, ...]:
    age = f"{(found.now - one.since) // DAY}d" if one.since else f"unknown ({one.unsound})"
    used = local(one.last_used) or "-"
    until = f"until {local(one.protected)}" if isinstance(one.protected, datetime) else one.protected or "-"
    would = (f"{item.action}: {item.reason}" for item in verdicts.values())
    return one.id, age, used, one.held or until, *([short(one.about)] if shows else []), *would


def _as_json(found: Inventory, one: Finetune, verdicts: Mapping[Policy, Item]) -> dict[str, Any]:
    return {
        "finetune_id": one.id,
        "account": found.account,
        "incarnation": json.loads(one.incarnation) if one.incarnation else None,
        "created_at": iso(one.created),
        "first_seen": iso(one.first_seen),
        "observed_at": iso(one.observed_at),
        "age_days": (found.now - one.since) // DAY if one.since else None,
        "last_used": iso(one.last_used),
        "protected": iso(one.protected) if isinstance(one.protected, datetime) else one.protected,
        "held": one.held,
        "about": one.about,
        "policies": {
            policy.name: {"action": item.action, "reason": item.reason} for policy, item in verdicts.items()
        },
    }
