"""Commands that ask for something: delete, cancel, retry."""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from tasks.cleanup.inventory import protected_among
from tasks.errors import InvalidRequest
from tasks.intake import BULK
from tasks.ledger.queries import Filter, get_many, list_deletions, workers_seen
from tasks.records import Deletion, NewRequest, State, check_state
from tasks.text import one_line
from worker.cli.common import DURATION, TIME, Desk, account_option, json_option, known, open_desk, timeout_option
from worker.cli.output import local, note, print_deletions, print_json, print_table
from worker.cli.records import follow

_SHOWN = 20
_RETRIED_BY_STATE = (State.FAILED, State.REVIEW)
_NOT_CANCELLED = {"unknown": "no deletion has this id", "final": "it had ended already"}
_TEXT = click.File("r", encoding="utf-8-sig")  # a BOM is no part of an id
_wait_option = click.option("--wait", "wait", is_flag=True, help="Wait for the outcome and show it.")


@click.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--file", "file", type=_TEXT, help="Read more ids from a file, one a line; - is stdin.")
@click.option("--in", "delay", type=DURATION, metavar="24h", help="Delete after this time.")
@click.option(
    "--at", "due_at", type=TIME, metavar="T", help="Delete at this time (ISO 8601; local without an offset)."
)
@click.option("--reason", metavar="R", help="Why; kept in the record.")
@click.option("--requested-by", metavar="WHO", help="Who asks; your login name unless given.")
@account_option
@click.option("--missing-ok", is_flag=True, help="It is fine if the finetune does not exist.")
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@_wait_option
@timeout_option
@json_option
def delete(
    *, ids: tuple[str, ...], file: Any, delay: timedelta | None, due_at: datetime | None, reason: str | None,
    requested_by: str | None, account: str, missing_ok: bool, dry_run: bool, wait: bool, timeout: float | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Ask for finetunes to be deleted, for good.

    \b
    janitor delete my-finetune --wait
    janitor delete old-1 old-2 --in 24h --reason "trial over"
    janitor delete --file ids.txt --missing-ok --json
    """
    wanted = list(dict.fromkeys([*ids, *_lines(file)]))
    if not wanted:
        raise click.UsageError("no finetune id is given: name at least one, or a file with --file")
    who = requested_by or login()
    requests = [
        NewRequest(
            id=str(uuid.uuid4()), finetune_id=id_, account=account, requested_by=who,
            reason=reason, due_at=due_at, delay=delay, missing_ok=missing_ok, bulk=len(wanted) > BULK,
        )
        for id_ in wanted
    ]  # fmt: skip
    if due_at is not None and due_at < datetime.now(UTC):
        raise InvalidRequest(f"--at {local(due_at)} is in the past: give a later time, or leave it out")
    desk = open_desk()
    if dry_run:
        return _show_dry_run(desk, requests, as_json=as_json)
    return _accept(desk, requests, wait=wait, timeout=timeout, as_json=as_json)


@click.command()
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
@click.option("--reason", metavar="R", help="Why; kept in the record.")
@json_option
def cancel(*, ids: tuple[str, ...], reason: str | None, as_json: bool) -> int:
    """Withdraw deletions, each by its id.

    Immediate while no call is under way; else no further call is made, and an observation decides how it ended.
    Other deletions of the same finetune are not affected. Exit code 1 if one had ended already, or is not known.

    \b
    janitor cancel 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --reason "wrong customer"
    """
    ledger = open_desk().ledger
    # Celery results that are due by it are written by the workers' maintenance.
    answers, _ = ledger.cancel(ids, by=login(), reason=one_line(reason) if reason else None)
    for id_, answer in zip(ids, answers, strict=True):
        if answer in _NOT_CANCELLED:
            note(f"{id_}: {_NOT_CANCELLED[answer]}")
    print_deletions([one for one in get_many(ledger, ids) if one], as_json=as_json)
    return 1 if _NOT_CANCELLED.keys() & set(answers) else 0


@click.command()
@click.argument("ids", nargs=-1, metavar="ID...")
@click.option("--state", "state", metavar="STATE", help="Everything in this state: failed or review.")
@click.option("--account", help="With --state: of this account only.")
@_wait_option
@timeout_option
@json_option
def retry(
    *, ids: tuple[str, ...], state: str | None, account: str | None, wait: bool, timeout: float | None,
    as_json: bool,
) -> int:  # fmt: skip
    """Ask again for what ended otherwise: a new deletion that continues the old one.

    It means the same finetune: it takes over what was observed, and an attempt that may have been applied. What is
    deleted, unfinished or retried already is refused.

    \b
    janitor retry 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --wait
    janitor retry --state failed
    """
    if bool(ids) == (state is not None):
        raise click.UsageError("give either the ids of deletions, or --state failed or --state review")
    desk = open_desk()
    old = known(desk.ledger, ids) if ids else _all_in(desk, check_state(state or ""), account)
    for deletion in old:
        if why := _not_again(deletion):
            raise InvalidRequest(f"{deletion.id} {why}")
    if not old:
        note("nothing to retry")
        return 0
    requests = [
        NewRequest(
            id=str(uuid.uuid4()), finetune_id=d.finetune_id, account=d.account, requested_by=login(),
            reason=d.reason, missing_ok=d.missing_ok, bulk=len(old) > BULK, retry_of=d.id,
        )
        for d in old
    ]  # fmt: skip
    return _accept(desk, requests, wait=wait, timeout=timeout, as_json=as_json)


def _accept(
    desk: Desk, requests: Sequence[NewRequest], *, wait: bool, timeout: float | None, as_json: bool
) -> int:
    desk.intake.accept(requests)
    for id_ in protected_among(desk.ledger, requests[0].account, [request.finetune_id for request in requests]):
        note(f"{id_} is protected from cleanups, and not from this request; `janitor cancel` withdraws it")
    if not workers_seen(desk.ledger):
        note("accepted, but no worker is seen: it waits until one runs (`janitor up`, or `janitor worker`)")
    ids = [request.id for request in requests]
    if wait:
        # Said first, so that a person who interrupts the wait knows what goes on without it.
        note(f"accepted: {' '.join(ids)}" if len(ids) <= _SHOWN else f"{len(ids)} accepted")
        return follow(desk.ledger, ids, timeout, as_json=as_json)
    found = [d for d in get_many(desk.ledger, ids) if d]
    if as_json:
        print_deletions(found, as_json=True)
    elif len(found) <= _SHOWN:
        print_table(found)
    note(f"{len(ids)} accepted")
    return 0


def _show_dry_run(desk: Desk, requests: Sequence[NewRequest], *, as_json: bool) -> int:
    desk.intake.check(requests)
    for request in requests:
        if as_json:
            print_json([{"finetune_id": request.finetune_id, "account": request.account}])
        else:
            click.echo(f"would ask for {request.finetune_id}")
    note("dry run: nothing was written")
    return 0


def _not_again(deletion: Deletion) -> str | None:
    """Why a deletion cannot be retried, None if it can."""
    if deletion.state == State.DELETED or not deletion.is_final:
        return f"is {deletion.state}: only what ended otherwise can be retried"
    return f"was retried already: {deletion.retried_by}" if deletion.retried_by else None


def login() -> str:
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's uid may have no name; KeyError before Python 3.13
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _all_in(desk: Desk, state: State, account: str | None) -> list[Deletion]:
    if state not in _RETRIED_BY_STATE:
        raise InvalidRequest(f"--state is {state}: only failed and review can be retried by state")
    where, found, cursor = Filter(account=account, states=(state,)), [], None
    while True:
        deletions, cursor = list_deletions(desk.ledger, where, limit=500, cursor=cursor)
        found += [one for one in deletions if not one.retried_by]
        if cursor is None:
            return found


def _lines(file: Any) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file]
    except UnicodeDecodeError:
        raise InvalidRequest(f"{file.name} is not text: give one finetune id a line") from None
    return [line for line in lines if line and not line.startswith("#")]
