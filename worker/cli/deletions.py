"""Commands about deletions: delete, show, list, wait, cancel, retry."""

import sys
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

import click

from tasks.cleanup.plans import CLOCKS_DIFFER, get_plan, withdraw
from tasks.errors import InvalidRequest
from tasks.intake import BULK
from tasks.ledger import Ledger
from tasks.ledger.queries import Filter, get_many, known_accounts, list_deletions, workers_seen
from tasks.ledger.types import Act
from tasks.records import UNFINISHED, Deletion, NewRequest, State
from tasks.text import in_command
from tasks.waiting import explained
from worker.cli import options
from worker.cli.asking import NOT_AGREED, agree_to_deletions, when
from worker.cli.following import follow
from worker.cli.ids import FILE, Found, find, find_all, lines
from worker.cli.options import LATER_TIME, Ids, as_json, login
from worker.cli.output import (
    note,
    print_csv,
    print_deletions,
    print_in_full,
    print_record,
    warn_of_confusing,
    with_reasons,
)
from worker.cli.session import Session
from worker.cli.text import nearest

_SHOWN = 20
_TAKEN_OVER = ("finetune_id", "account", "reason", "labels", "missing_ok")  # by a retry
_RETRIED_BY_STATE = (State.FAILED, State.REVIEW)
_NOT_CANCELLED = {"unknown": "no deletion has this id", "final": "it had ended already"}


@click.command()
@options.ids_if_any
@click.option("--file", type=FILE, help="Read more ids from a file, one a line; - is stdin.")
@click.option("--in", "delay", type=options.DURATION, metavar="24h", help="Delete after this time.")
@click.option("--at", "due_at", type=LATER_TIME, help="Delete at this time; local without a zone.")
@click.option("--reason", metavar="R", help="Why; kept in the record.")
@click.option("--requested-by", metavar="WHO", default=login, show_default="your login name", help="Who asks.")
@options.labels("Keep this label in the record, such as customer=4711; up to 8.")
@options.account
@options.missing_ok
@click.option("--dry-run", is_flag=True, help="Check everything, write nothing.")
@options.yes
@options.wait
@options.timeout
@options.json
def delete(
    *, ids: Ids, file: TextIO | None, dry_run: bool, yes: bool, wait: bool, timeout: float | None, **fields: Any
) -> int:
    """Ask for finetunes to be deleted, permanently.

    If you name more than 100, or a protected one, it first shows what it will do and when. On a terminal it asks.

    \b
    janitor delete my-finetune --wait
    janitor delete old-1 old-2 --in 24h --reason "trial over" --label customer=4711
    janitor delete old-3 --at "2027-01-31 18:00 Europe/Berlin"
    janitor delete --file ids.txt --missing-ok --json
    """
    wanted = dict.fromkeys([*ids, *lines(file)])
    if not wanted:
        raise click.UsageError("no finetune id is given: name at least one, or a file with --file")
    # Each other option is a field of the request.
    requests = _requests([{"finetune_id": id_, **fields} for id_ in wanted])
    session = Session(fields["account"])
    if not dry_run:
        return _accept(session, requests, yes=yes, wait=wait, timeout=timeout)
    session.intake.check(requests)
    warn_of_confusing(wanted)
    for one in requests:
        asked = {"finetune_id": one.finetune_id, "account": one.account}
        print_record(asked, f"would ask for {one.finetune_id} of account {one.account}, to be deleted {when(one)}")
    note("dry run: nothing was written")
    return 0


@click.command()
@click.argument("id_", metavar="ID")
@options.json
def show(*, id_: str) -> None:
    """Show one record. The start of an id is enough if no other recent one has it.

    \b
    janitor show 0d3f5c1e
    janitor show 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --json
    """
    ledger = Session().ledger
    print_in_full(with_reasons(ledger, _named(ledger, (id_,))))


@click.command("list")
@click.option("--state", "states", type=options.STATE, multiple=True, help="Only this state; may be repeated.")
@click.option("--finetune", "finetune_id", type=options.FINETUNE_ID, help="Only this finetune.")
@click.option("--account", type=options.ACCOUNT, help="Only this account.")
@options.period("was accepted")
@click.option(
    "--open-reviews", "needs_person", is_flag=True, help="Only those in review that nobody resolved or retried."
)
@options.labels("Only with this label; may be repeated, all must fit.")
@click.option("--requested-by", metavar="WHO", help="Only what this login, token or sender asked for.")
@click.option("--name", metavar="PATTERN", help="Only finetunes whose name fits, such as 'test-*'.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="At most this many.")
@click.option("--cursor", metavar="C", help="Continue a list: the cursor that it printed on stderr.")
@click.option(
    "--csv", is_flag=True,
    help="Print CSV with a header row; a value that looks like a formula is prefixed with '.",
)  # fmt: skip
@options.json
def list_(*, limit: int, cursor: str | None, csv: bool, **where: Any) -> None:
    """List records, newest first.

    At most 10,000 records are read for one list: if few of them fit, it says how to go on. `janitor export` has no
    limit.

    \b
    janitor list
    janitor list --state failed --state review --since "2h ago"
    janitor list --finetune my-finetune --json
    janitor list --label customer=4711 --name "test-*"
    """
    if csv and as_json():
        raise click.UsageError("--csv and --json are both given: give one of them")
    # Each other option is a field of the filter.
    ledger = Session().ledger
    deletions, more = list_deletions(ledger, Filter(**where), limit=limit, cursor=cursor)
    if not deletions and where["account"]:
        _note_unknown_account(ledger, where["account"])
    if csv:
        print_csv(explained(ledger, deletions))
    else:
        print_deletions(with_reasons(ledger, deletions), if_empty="" if more else "no deletion matches")
    if more:
        few = "" if len(deletions) == limit else f"of the records that were read, {len(deletions)} fit; "
        note(f"{few}there are more: {in_command(more, '--cursor')}")


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
    ledger = Session().ledger
    return follow(ledger, find_all(ledger, ids), timeout, missing_ok=missing_ok)


@click.command()
@options.ids_if_any
@click.option("--file", type=FILE, help="Read more ids from a file, one a line; - is stdin.")
@click.option("--plan", "plan_id", metavar="PLAN_ID", help="A cleanup's plan, and all that wait of it.")
@options.as_person
@options.json
def cancel(*, ids: Ids, file: TextIO | None, plan_id: str | None, act: Act) -> int:
    """Withdraw deletions, each by its id.

    It takes effect immediately while no call is under way. Otherwise no further call is made, and an observation
    decides how the deletion ended. Other deletions of the same finetune are not affected. Exit code 1 if one had
    ended already, or is not known. A plan is withdrawn whole: it cannot be applied any more.

    \b
    janitor cancel 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --reason "wrong customer"
    janitor cancel --plan 6f0f5f0e-0b0a-5d3c-9a55-3f6f7b1d2c11
    """
    given = dict.fromkeys([*ids, *lines(file)])
    if bool(given) == (plan_id is not None):
        raise click.UsageError("give either the ids of deletions, some with --file if you like, or --plan")
    ledger = Session().ledger
    found = find(ledger, list(given)) if plan_id is None else _of_plan(ledger, plan_id, act)
    wanted = [one.id for one in found]
    # Celery results that are due by it are written by the workers' maintenance.
    answers, _ = ledger.cancel(wanted, act)
    for one, answer in zip(found, answers, strict=True):
        if answer in _NOT_CANCELLED:
            note(f"{one.id}: {one.error or _NOT_CANCELLED[answer]}")
    records = [one for one in get_many(ledger, wanted) if one]
    print_in_full(with_reasons(ledger, records))
    if set(answers) - _NOT_CANCELLED.keys() and any(one.source.startswith("cleanup:") for one in records):
        note("the next plan may ask for them again; `janitor protect` keeps a finetune")
    return 1 if _NOT_CANCELLED.keys() & set(answers) else 0


@click.command()
@options.ids_if_any
@click.option("--state", type=options.STATE, help="All deletions in this state: failed or review.")
@click.option("--account", help="With --state: of this account only.")
@options.as_person
@options.yes
@options.wait
@options.timeout
@options.json
def retry(
    *, ids: Ids, state: State | None, account: str | None, act: Act, yes: bool, wait: bool, timeout: float | None
) -> int:
    """Ask again for deletions that did not end as asked: a new deletion continues each old one.

    It is for the same finetune: it takes over what was observed, and an attempt that may have been applied. One
    that succeeded, was superseded, is unfinished or was already retried is refused. The retry of a cleanup's
    deletion is still a cleanup: a finetune that was used, protected or held since is kept.

    \b
    janitor retry 0d3f5c1e-6a55-4b0e-9a53-2f1f6b1f3f10 --wait
    janitor retry --state failed
    """
    if bool(ids) == (state is not None):
        raise click.UsageError("give either the ids of deletions, or --state failed or --state review")
    if account and state is None:
        raise click.UsageError("--account needs --state: an id names one deletion, whatever its account")
    session = Session(account)
    old = _named(session.ledger, ids) if state is None else _all_in(session, state, account)
    if not old:
        note("nothing to retry")
        return 0
    ours = {"requested_by": act.who, **({"reason": act.why} if act.why else {})}
    rows = [{name: getattr(one, name) for name in _TAKEN_OVER} | {"retry_of": one.id, **ours} for one in old]
    return _accept(session, _requests(rows), act, yes=yes, wait=wait, timeout=timeout)


def _requests(rows: Sequence[Mapping[str, Any]]) -> list[NewRequest]:
    """One request for each row of fields."""
    return [NewRequest(id=str(uuid.uuid4()), bulk=len(rows) > BULK, **fields) for fields in rows]


def _accept(
    session: Session, requests: Sequence[NewRequest], act: Act | None = None,
    *, yes: bool, wait: bool, timeout: float | None,
) -> int:  # fmt: skip
    ledger, ids = session.ledger, [request.id for request in requests]
    session.intake.check(requests)
    warn_of_confusing(request.finetune_id for request in requests)
    if not agree_to_deletions(ledger, requests, yes=yes):
        return NOT_AGREED
    session.intake.accept(requests, act=act)
    if not workers_seen(ledger):
        note("accepted, but no worker is seen: it waits until one runs (`janitor up`, or `janitor worker`)")
    if wait:
        accepted = f"accepted: {' '.join(ids)}" if len(ids) <= _SHOWN else f"{len(ids)} accepted"
        return follow(ledger, ids, timeout, first=accepted)
    if as_json() or len(ids) <= _SHOWN:
        print_deletions(with_reasons(ledger, [one for one in get_many(ledger, ids) if one]))
    note(f"{len(ids)} accepted")
    return 0


def _named(ledger: Ledger, ids: Ids) -> list[Deletion]:
    """The deletions with these ids; raises `UnknownDeletion`."""
    return [one for one in get_many(ledger, find_all(ledger, ids)) if one]


def _all_in(session: Session, state: State, account: str | None) -> list[Deletion]:
    if state not in _RETRIED_BY_STATE:
        raise InvalidRequest(f"--state is {state}: only failed and review can be retried by state")
    where = Filter(account=account, states=(state,))
    found, _ = list_deletions(session.ledger, where, limit=sys.maxsize)
    return [one for one in found if not (one.retried_by or one.resolved_at)]


def _of_plan(ledger: Ledger, plan_id: str, act: Act) -> list[Found]:
    """The deletions of a plan that have not ended; the plan itself is withdrawn. Raises `UnknownPlan`."""
    plan = get_plan(ledger, plan_id)
    if plan.needs_a_person:
        note(f"the plan is blocked, nothing of it was asked for: {plan.blocked}")
        return []
    # First: an apply may be under way, and a crashed one is made again.
    withdraw(ledger, plan, act)
    since = plan.created_at - CLOCKS_DIFFER  # none is older
    where = Filter(account=plan.account, states=tuple(UNFINISHED), since=since)
    listed, _ = list_deletions(ledger, where, limit=sys.maxsize)
    found = [Found(one.id) for one in listed if one.source == f"cleanup:{plan.id}"]
    note(f"the plan is withdrawn; {len(found)} of its {plan.deletions} deletions have not ended")
    return found


def _note_unknown_account(ledger: Ledger, account: str) -> None:
    """A list of an account that is gone may be asked for: it is not refused."""
    if account not in (known := known_accounts(ledger)):
        note(f"no worker has the account {account!r}{nearest(account, known)}")
