"""Commands about deletions: delete, show, list, wait, cancel, retry."""

import math
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import click

from tasks.cleanup.inventory import protected_among
from tasks.errors import InvalidRequest
from tasks.intake import BULK
from tasks.ledger import Ledger
from tasks.ledger.queries import Filter, get, get_many, list_deletions, workers_seen
from tasks.records import Deletion, NewRequest, State
from tasks.text import one_line
from worker.cli import NOT_IN_TIME, options
from worker.cli.options import LATER_TIME, Ids, as_json
from worker.cli.output import note, print_csv, print_deletions, print_in_full, print_record
from worker.cli.session import Session, login, progress

_SHOWN = 20
_POLL_SECONDS = 0.1
_TAKEN_OVER = ("finetune_id", "account", "reason", "missing_ok")  # by a retry
_RETRIED_BY_STATE = (State.FAILED, State.REVIEW)
_NOT_CANCELLED = {"unknown": "no deletion has this id", "final": "it had ended already"}
_TEXT = click.File("r", encoding="utf-8-sig")  # a BOM is no part of an id


@click.command()
@options.ids_if_any
@click.option("--file", type=_TEXT, help="Read more ids from a file, one a line; - is stdin.")
@click.option("--in", "delay", type=options.DURATION, metavar="24h", help="Delete after this time.")
@click.option("--at", "due_at", type=LATER_TIME, help="Delete at this time (ISO 8601; local without an offset).")
@click.option("--reason", metavar="R", help="Why; kept in the record.")
@click.option("--requested-by", metavar="WHO", default=login, show_default="your login name", help="Who asks.")
@options.account
@options.missing_ok
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@options.wait
@options.timeout
@options.json
def delete(
    *, ids: Ids, file: TextIO | None, dry_run: bool, wait: bool, timeout: float | None, **fields: Any
) -> int:
    """Ask for finetunes to be deleted, permanently.

    \b
    janitor delete my-finetune --wait
    janitor delete old-1 old-2 --in 24h --reason "trial over"
    janitor delete --file ids.txt --missing-ok --json
    """
    wanted = dict.fromkeys([*ids, *_lines(file)])
    if not wanted:
        raise click.UsageError("no finetune id is given: name at least one, or a file with --file")
    # Each other option is a field of the request.
    requests = _requests([{"finetune_id": id_, **fields} for id_ in wanted])
    session = Session()
    if not dry_run:
        return _accept(session, requests, wait=wait, timeout=timeout)
    session.intake.check(requests)
    for one in requests:
        asked = {"finetune_id": one.finetune_id, "account": one.account}
        print_record(asked, f"would ask for {one.finetune_id}")
    note("dry run: nothing was written")
    return 0


@click.command()
@click.argument("id_", metavar="ID")
@options.json
def show(*, id_: str) -> None:
    """Show one record.

    \b
    janitor show 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10
    janitor show 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --json
    """
    print_in_full([get(Session().ledger, id_)])


@click.command("list")
@click.option("--state", "states", type=options.STATE, multiple=True, help="Only this state; may be repeated.")
@click.option("--finetune", "finetune_id", type=options.FINETUNE_ID, help="Only this finetune.")
@click.option("--account", type=options.ACCOUNT, help="Only this account.")
@click.option("--since", type=options.TIME, help="Only what was accepted at or after this time (ISO 8601).")
@click.option("--until", type=options.TIME, help="Only what was accepted at or before this time.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="At most this many.")
@click.option("--cursor", metavar="C", help="Continue a list: the cursor that it printed on stderr.")
@click.option("--csv", is_flag=True, help="Print CSV with a heading.")
@options.json
def list_(*, limit: int, cursor: str | None, csv: bool, **where: Any) -> None:
    """List records, newest first.

    \b
    janitor list
    janitor list --state failed --state review --since 2026-11-01
    janitor list --finetune my-finetune --json
    """
    if csv and as_json():
        raise click.UsageError("--csv and --json are both given: give one of them")
    # Each other option is a field of the filter.
    deletions, more = list_deletions(Session().ledger, Filter(**where), limit=limit, cursor=cursor)
    if csv:
        print_csv(deletions)
    else:
        print_deletions(deletions, if_empty="no deletion matches")
    if more:
        note(f"there are more: --cursor {more}")


@click.command()
@options.ids
@options.missing_ok
@options.timeout
@options.json
def wait(*, ids: Ids, missing_ok: bool, timeout: float | None) -> int:
    """Wait until deletions have ended, and show them.

    \b
    janitor wait 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --timeout 60
    """
    return _follow(Session().ledger, ids, timeout, missing_ok=missing_ok)


@click.command()
@options.ids
@click.option("--reason", metavar="R", help="Why; kept in the record.")
@options.json
def cancel(*, ids: Ids, reason: str | None) -> int:
    """Withdraw deletions, each by its id.

    It takes effect immediately while no call is under way. Otherwise no further call is made, and an observation
    decides how the deletion ended. Other deletions of the same finetune are not affected. Exit code 1 if one had
    ended already, or is not known.

    \b
    janitor cancel 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --reason "wrong customer"
    """
    ledger = Session().ledger
    # Celery results that are due by it are written by the workers' maintenance.
    answers, _ = ledger.cancel(ids, by=login(), reason=one_line(reason) if reason else None)
    for id_, answer in zip(ids, answers, strict=True):
        if answer in _NOT_CANCELLED:
            note(f"{id_}: {_NOT_CANCELLED[answer]}")
    print_in_full([one for one in get_many(ledger, ids) if one])
    return 1 if _NOT_CANCELLED.keys() & set(answers) else 0


@click.command()
@options.ids_if_any
@click.option("--state", metavar="STATE", help="All deletions in this state: failed or review.")
@click.option("--account", help="With --state: of this account only.")
@options.wait
@options.timeout
@options.json
def retry(*, ids: Ids, state: str | None, account: str | None, wait: bool, timeout: float | None) -> int:
    """Ask again for deletions that did not end as asked: a new deletion continues each old one.

    It is for the same finetune: it takes over what was observed, and an attempt that may have been applied. One
    that succeeded, is unfinished or was already retried is refused.

    \b
    janitor retry 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --wait
    janitor retry --state failed
    """
    if bool(ids) == (state is not None):
        raise click.UsageError("give either the ids of deletions, or --state failed or --state review")
    session = Session()
    old = _known(session.ledger, ids) if state is None else _all_in(session, state, account)
    for deletion in old:
        if why := _not_again(deletion):
            raise InvalidRequest(f"{deletion.id} {why}")
    if not old:
        note("nothing to retry")
        return 0
    rows = [
        {name: getattr(one, name) for name in _TAKEN_OVER} | {"requested_by": login(), "retry_of": one.id}
        for one in old
    ]
    return _accept(session, _requests(rows), wait=wait, timeout=timeout)


def _requests(rows: Sequence[Mapping[str, Any]]) -> list[NewRequest]:
    """One request for each row of fields."""
    return [NewRequest(id=str(uuid.uuid4()), bulk=len(rows) > BULK, **fields) for fields in rows]


def _accept(session: Session, requests: Sequence[NewRequest], *, wait: bool, timeout: float | None) -> int:
    ledger, ids = session.ledger, [request.id for request in requests]
    session.intake.accept(requests)
    for id_ in protected_among(ledger, requests[0].account, [request.finetune_id for request in requests]):
        note(f"{id_} is protected from cleanups, and not from this request; `janitor cancel` withdraws it")
    if not workers_seen(ledger):
        note("accepted, but no worker is seen: it waits until one runs (`janitor up`, or `janitor worker`)")
    if wait:
        # Said first, so that a person who interrupts the wait knows what goes on without it.
        note(f"accepted: {' '.join(ids)}" if len(ids) <= _SHOWN else f"{len(ids)} accepted")
        return _follow(ledger, ids, timeout)
    if as_json() or len(ids) <= _SHOWN:
        print_deletions([one for one in get_many(ledger, ids) if one])
    note(f"{len(ids)} accepted")
    return 0


def _known(ledger: Ledger, ids: Sequence[str]) -> list[Deletion]:
    """The deletions with these ids; raises `UnknownDeletion` for the first that has none."""
    return [one or get(ledger, id_) for id_, one in zip(ids, get_many(ledger, ids), strict=True)]


def _follow(ledger: Ledger, ids: Sequence[str], timeout_seconds: float | None, *, missing_ok: bool = False) -> int:
    """Wait until these deletions are final, and show them; the exit code: 0 if all ended as asked.

    Raises `UnknownDeletion`. A bar shows the progress of many, on a terminal only.
    """
    over = time.monotonic() + (math.inf if timeout_seconds is None else timeout_seconds)
    found: dict[str, Deletion] = {}
    left = ids
    with progress("deletions") as advance:
        while True:
            found |= zip(left, _known(ledger, left), strict=True)
            left = [id_ for id_ in ids if not found[id_].is_final]
            advance(len(ids) - len(left), len(ids))
            if not left or time.monotonic() >= over:
                break
            time.sleep(_POLL_SECONDS)
    deletions = [found[id_] for id_ in ids]
    print_in_full(deletions)
    if left:
        note("not all ended in time: `janitor wait` waits for the rest")
        return NOT_IN_TIME
    done = [one.is_done or (missing_ok and one.state == State.NOT_FOUND) for one in deletions]
    return 0 if all(done) else 1


def _not_again(deletion: Deletion) -> str | None:
    """Why a deletion cannot be retried, None if it can."""
    if deletion.state == State.DELETED or not deletion.is_final:
        return f"is {deletion.state}: only what ended otherwise can be retried"
    return f"was retried already: {deletion.retried_by}" if deletion.retried_by else None


def _all_in(session: Session, state: str, account: str | None) -> list[Deletion]:
    if state not in _RETRIED_BY_STATE:
        raise InvalidRequest(f"--state is {state}: only failed and review can be retried by state")
    where = Filter(account=account, states=(State(state),))
    found, _ = list_deletions(session.ledger, where, limit=sys.maxsize)
    return [one for one in found if not one.retried_by]


def _lines(file: TextIO | None) -> list[str]:
    try:
        lines = [line.strip() for line in file or ()]
    except UnicodeDecodeError:
        raise InvalidRequest(f"{getattr(file, 'name', '')} is not text: give one finetune id a line") from None
    return [line for line in lines if line and not line.startswith("#")]
