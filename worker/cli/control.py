"""Commands for the person on call: pause, resume, resolve, dead-letters."""

import click

from tasks.durations import parse_time
from tasks.errors import InvalidRequest
from tasks.ledger.dead_letters import DeadLetter, drop_dead_letters, list_dead_letters, requeue_dead_letters
from tasks.ledger.queries import get_many, stopped_accounts
from tasks.ledger.types import Act
from tasks.text import one_line
from worker.cli import options
from worker.cli.ids import find_all
from worker.cli.output import note, print_in_full, print_record, print_table
from worker.cli.session import Session
from worker.cli.times import local

EVERY_ACCOUNT = "*"

_account_option = click.option("--account", metavar="A", help="Only this account; all unless given.")


@click.command()
@_account_option
@options.as_person
def pause(*, account: str | None, act: Act) -> None:
    """Stop all deleting within 2 seconds, everywhere; nothing is lost meanwhile.

    Calls in flight end; requests are still accepted; observations, which change nothing at the API, go on.

    \b
    janitor pause --reason "checking a complaint"
    janitor pause --account emea
    """
    ledger = Session(account).ledger
    ledger.account(account or EVERY_ACCOUNT, "pause", act, reason=act.why)
    note(f"paused: {account or 'all accounts'}; {_how_to_resume(account)}")


@click.command()
@_account_option
@options.as_person
def resume(*, account: str | None, act: Act) -> None:
    """Resume deleting after a pause.

    Without --account it ends the pause of all accounts. An account that was paused by name, or by an alarm, stays
    paused.

    \b
    janitor resume
    janitor resume --account emea
    """
    ledger = Session(account).ledger
    ledger.account(account or EVERY_ACCOUNT, "resume", act)
    note(f"resumed: {account or 'all accounts'}")
    for name, stop in stopped_accounts(ledger).items():
        if stop.paused is not None and (account is None or name == EVERY_ACCOUNT):
            note(f"still paused ({stop.paused}): {_how_to_resume(None if name == EVERY_ACCOUNT else name)}")


@click.command()
@click.argument("id_", metavar="ID")
@click.option(
    "--as", "found", type=click.Choice(["deleted", "kept"]), required=True, help="What became of the finetune."
)
@click.option("--note", "text", metavar="TEXT", required=True, help="How that is known; kept in the record.")
@options.as_person
@options.json
def resolve(*, id_: str, found: str, text: str, act: Act) -> None:
    """Note what was found out about a deletion in review: then it no longer waits for a person.

    Its state stays. Only a deletion in review can be resolved, and only once.

    \b
    janitor list --open-reviews
    janitor resolve 0d3f5c1e --as deleted --note "not in the dashboard, asked BFL"
    """
    ledger = Session().ledger
    (id_,) = find_all(ledger, (id_,))
    if not one_line(text):
        raise InvalidRequest("the note is empty: say how you know")
    ledger.resolve(id_, found, one_line(text), act)
    print_in_full([one for one in get_many(ledger, [id_]) if one])


@click.group("dead-letters")
def dead_letters() -> None:
    """List, show, send again or drop messages that could not be read.

    A worker kept them and did not carry them out: what producers send by name must be Celery tasks in JSON.

    \b
    janitor dead-letters list
    janitor dead-letters show 3f1c0a9b7d21
    janitor dead-letters drop --all
    """


@dead_letters.command("list")
@options.json
def list_() -> None:
    """List them, newest first.

    \b
    janitor dead-letters list
    """
    print_table(
        list_dead_letters(Session().ledger), DeadLetter._asdict, ("ID", "WHEN", "QUEUE", "REASON"),
        lambda one: (one.id, _when(one), one.queue, one.reason),
        never_fold={"ID", "WHEN"}, if_empty="there are no dead letters",
    )  # fmt: skip


@dead_letters.command()
@click.argument("id_", metavar="ID")
@options.json
def show(*, id_: str) -> int:
    """Show one message: when, from which queue, why, and its text.

    \b
    janitor dead-letters show 3f1c0a9b7d21
    """
    for one in list_dead_letters(Session().ledger):
        if one.id == id_:
            print_record(one._asdict(), f"{_when(one)}  {one.queue}  {one.reason}\n{one.text}")
            return 0
    return _unknown({id_})


@dead_letters.command()
@options.ids_if_any
@options.as_person
def requeue(*, ids: options.Ids, act: Act) -> int:
    """Send messages to their queue again, once the cause is fixed.

    \b
    janitor dead-letters requeue 3f1c0a9b7d21
    """
    from worker.message_fields import QUEUES  # noqa: PLC0415 -- Celery, which no other command here needs

    if not ids:
        raise click.UsageError("give the ids of messages, see janitor dead-letters list")
    sent = requeue_dead_letters(Session().ledger, set(ids), QUEUES, act)
    note(f"{len(sent)} sent again")
    return _unknown(set(ids) - sent)


@dead_letters.command()
@options.ids_if_any
@click.option("--all", "every", is_flag=True, help="All that there are now.")
@options.as_person
def drop(*, ids: options.Ids, every: bool, act: Act) -> int:
    """Drop messages, permanently.

    \b
    janitor dead-letters drop 3f1c0a9b7d21
    """
    if bool(ids) == every:
        raise click.UsageError("give either the ids of messages, or --all")
    ledger = Session().ledger
    wanted = {entry.id for entry in list_dead_letters(ledger)} if every else set(ids)
    dropped = drop_dead_letters(ledger, wanted, act)
    note(f"{len(dropped)} dropped")
    return _unknown(wanted - dropped)


def _how_to_resume(account: str | None) -> str:
    return f"run `janitor resume{f' --account {account}' if account else ''}` to go on"


def _unknown(ids: set[str]) -> int:
    """Name the ids that no dead letter has; the exit code, 1 if there are any."""
    for id_ in sorted(ids):
        note(f"{id_}: no dead letter has this id")
    return int(bool(ids))


def _when(entry: DeadLetter) -> str:
    return local(parse_time(entry.at))
