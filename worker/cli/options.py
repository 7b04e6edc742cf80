"""Options and arguments that several commands have, and the types of their values."""

import getpass
import os
import re
import socket
from collections.abc import Callable, Collection, Iterable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from tasks.durations import parse_duration
from tasks.errors import InvalidRequest
from tasks.labels import parse_labels
from tasks.ledger.types import Act
from tasks.records import DEFAULT_ACCOUNT, State, check_account, check_finetune_id, check_state
from tasks.text import one_line
from worker.cli.text import nearest
from worker.cli.times import later_time, local, past_time

T = TypeVar("T")

_AS_JSON = "worker.cli.as_json"


class _Parsed(click.ParamType[Any]):
    """A value that one of our functions reads. name: how help shows it."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


def login() -> str:
    """Who runs the command."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError):  # a container's uid may have no name; KeyError before Python 3.13
        name = str(os.getuid())
    return f"{name}@{socket.gethostname()}"


def _act(_context: click.Context, _option: click.Parameter, reason: str | None) -> Act:
    return Act(login(), "command", one_line(reason or "") or None)


def known_account(account: str, known: Collection[str]) -> str:
    """`account` if it is one of `known`; raises `InvalidRequest` with the nearest one."""
    return _one_of(known, partial(check_account, known=known), account)


def _one_of(known: Iterable[str], check: Callable[[str], T], text: str) -> T:
    try:
        return check(text)
    except InvalidRequest as error:
        raise InvalidRequest(f"{error}{nearest(text, known)}") from None


def _seconds(text: str) -> float:
    return parse_duration(f"{text}s" if re.fullmatch(r"[\d.]+", text) else text).total_seconds()


TIME, LATER_TIME = _Parsed("T", past_time), _Parsed("T", later_time)
DURATION = _Parsed("duration", parse_duration)
STATE, ACCOUNT = _Parsed("state", partial(_one_of, State, check_state)), _Parsed("account", check_account)
FINETUNE_ID = _Parsed("id", partial(check_finetune_id, allow_org_ids=True))

Ids = tuple[str, ...]
ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")
ids_if_any = click.argument("ids", nargs=-1, metavar="ID...")
account = click.option("--account", default=DEFAULT_ACCOUNT, help="The account.")
missing_ok = click.option("--missing-ok", is_flag=True, help="Count one that does not exist as a success.")
policy_file = click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Instead of JANITOR_POLICY_FILE."
)
# Of the commands that change something: with the login it makes the entry of the audit log.
as_person = click.option("--reason", "act", metavar="R", callback=_act, help="Why; kept in the audit log.")
yes = click.option("--yes", is_flag=True, help="Do not ask, on a terminal, before what cannot be undone.")
wait = click.option("--wait", is_flag=True, help="Wait for the outcome and show it.")
timeout = click.option(
    "--timeout", type=_Parsed("duration", _seconds), help="Wait at most that long, such as 90s, then exit 4."
)
json = click.option(
    "--json", is_flag=True, expose_value=False, help="Print JSON, one object per line.",
    callback=lambda context, _, value: context.meta.update({_AS_JSON: value}),
)  # fmt: skip


def period(what: str) -> Callable[[Any], Any]:
    """The options `--since` and `--until`, in this order. what: is dated, such as "was done"."""
    since = click.option(
        "--since", type=TIME, callback=_in_order, help=f"Only what {what} at or after this time, or '2h ago'."
    )
    until = click.option(
        "--until", type=TIME, callback=_in_order, help=f"Only what {what} at or before this time."
    )
    return lambda command: since(until(command))


def _in_order(context: click.Context, option: click.Parameter, given: datetime | None) -> datetime | None:
    both = context.params | {option.name: given}
    since, until = both.get("since"), both.get("until")
    if since and until and since > until:
        raise click.UsageError(f"--since {local(since)} is after --until {local(until)}: give an earlier one")
    return given


def labels(help_: str) -> Callable[[Any], Any]:
    """The option `--label`; the command takes `labels`: a dict, or None."""
    return click.option(
        "--label", "labels", multiple=True, metavar="KEY=VALUE", help=help_,
        callback=lambda _, __, given: parse_labels(given),
    )  # fmt: skip


def as_json() -> bool:
    """Whether the command that is running was given --json: what prints asks here, so no function passes it on."""
    return bool(click.get_current_context().meta.get(_AS_JSON))
