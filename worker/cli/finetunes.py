"""Commands about finetunes themselves: finetunes, protect, unprotect, touch."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from tasks.cleanup import inventory
from tasks.cleanup.inventory import Inventory
from tasks.cleanup.policies import read_policies
from tasks.cleanup.rules import DAY, Finetune, Item
from tasks.durations import iso
from tasks.errors import InvalidRequest
from worker.cli.common import TIME, account_option, json_option, open_desk, policy_file_option, progress
from worker.cli.output import note, print_json, print_rows

_ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")


@click.command()
@account_option
@policy_file_option
@json_option
def finetunes(*, account: str, file: Path | None, as_json: bool) -> int:
    """Show what the API has: age, last use, protected or not, and what each policy would do and why.

    It needs the key and changes nothing there.

    \b
    janitor finetunes
    janitor finetunes --account emea --json
    """
    desk = open_desk()
    file = file or desk.settings.policy_file
    policies = [policy for policy in (read_policies(file) if file else ()) if policy.account == account]
    with progress(f"reading account {account}") as advance:
        found = desk.cleaner.survey(account, policies, advance)
    verdicts = {policy.name: found.select(policy) for policy in policies}
    rows = zip(found.finetunes(), *verdicts.values(), strict=True)
    if as_json:
        print_json(_as_json(found, one, dict(zip(verdicts, items, strict=True))) for one, *items in rows)
        return 0
    headings = ("FINETUNE", "AGE", "LAST USE", "PROTECTED", *(name.upper() for name in verdicts))
    cells = [(*_cells(found, one), *(f"{item.action}: {item.reason}" for item in items)) for one, *items in rows]
    print_rows(headings, cells)
    note(f"{len(found.seen)} finetunes in account {account}" + ("" if policies else "; no policy is for it"))
    return 0


@click.command()
@_ids
@account_option
@click.option("--until", type=TIME, metavar="T", help="Until this time (ISO 8601); for good unless given.")
def protect(*, ids: tuple[str, ...], account: str, until: datetime | None) -> int:
    """Keep finetunes from cleanups, at once; a cleanup's deletion that waits already is withdrawn.

    Requests of people and services go ahead all the same.

    \b
    janitor protect my-finetune
    janitor protect my-finetune --until 2027-01-01
    """
    desk = open_desk()
    if until is not None and until.timestamp() * 1000 <= desk.ledger.now_ms():
        raise InvalidRequest(f"--until {iso(until)} is in the past: give a later time, or leave it out")
    _say("protected", ids, inventory.protect(desk.ledger, account, ids, until))
    return 0


@click.command()
@_ids
@account_option
def unprotect(*, ids: tuple[str, ...], account: str) -> int:
    """Let cleanups have finetunes again.

    \b
    janitor unprotect my-finetune
    """
    inventory.unprotect(open_desk().ledger, account, ids)
    _say("no longer protected", ids, [])
    return 0


@click.command()
@_ids
@account_option
def touch(*, ids: tuple[str, ...], account: str) -> int:
    """Report that finetunes are used, now; services send `finetunes.touch` by name.

    \b
    janitor touch my-finetune
    """
    _say("use noted", ids, inventory.touch(open_desk().ledger, account, ids))
    return 0


def _say(what: str, ids: tuple[str, ...], withdrawn: list[str]) -> None:
    note(f"{what}: {', '.join(ids[:5])}" + (f" and {len(ids) - 5} more" if len(ids) > 5 else ""))
    for id_ in withdrawn:
        note(f"a cleanup's deletion was withdrawn: {id_}")


def _cells(found: Inventory, one: Finetune) -> tuple[str, ...]:
    age = f"{(found.now - one.since) // DAY}d" if one.since else f"unknown ({one.unsound})"
    used = f"{one.last_used:%Y-%m-%d}" if one.last_used else "-"
    until = one.protected
    protected = "-" if until is None else f"until {until:%Y-%m-%d}" if isinstance(until, datetime) else until
    return one.id, age, used, protected


def _as_json(found: Inventory, one: Finetune, verdicts: dict[str, Item]) -> dict[str, Any]:
    until = one.protected
    return {
        "finetune_id": one.id,
        "account": found.account,
        "incarnation": json.loads(one.incarnation) if one.incarnation else None,
        "created_at": iso(one.created),
        "first_seen": iso(one.first_seen),
        "observed_at": iso(one.observed_at),
        "age_days": (found.now - one.since) // DAY if one.since else None,
        "last_used": iso(one.last_used),
        "protected": iso(until) if isinstance(until, datetime) else until,
        "policies": {name: {"action": item.action, "reason": item.reason} for name, item in verdicts.items()},
    }
