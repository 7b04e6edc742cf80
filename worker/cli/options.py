"""Options and arguments that several commands have, and the types of their values."""

from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import click

from tasks.durations import parse_duration
from tasks.errors import InvalidRequest
from tasks.records import DEFAULT_ACCOUNT, check_account, check_finetune_id, check_state

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


def local_time(text: str) -> datetime:
    """An aware UTC `datetime`; raises `InvalidRequest`. Without an offset it is local time, as in tables."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        accepted = "give a time in ISO 8601 such as 2026-12-24T18:00:00Z; without an offset it is local time"
        raise InvalidRequest(f"{text!r} is not a time: {accepted}") from None


def later_time(text: str) -> datetime:
    """The same; raises `InvalidRequest` for a time in the past, too."""
    moment = local_time(text)
    if moment < datetime.now(UTC):
        raise InvalidRequest(f"{text!r} is in the past: give a later time, or leave it out")
    return moment


TIME, LATER_TIME = _Parsed("T", local_time), _Parsed("T", later_time)
DURATION = _Parsed("duration", parse_duration)
STATE, ACCOUNT = _Parsed("state", check_state), _Parsed("account", check_account)
FINETUNE_ID = _Parsed("id", partial(check_finetune_id, allow_org_ids=True))

Ids = tuple[str, ...]
ids = click.argument("ids", nargs=-1, required=True, metavar="ID...")
ids_if_any = click.argument("ids", nargs=-1, metavar="ID...")
account = click.option("--account", default=DEFAULT_ACCOUNT, help="The account.")
missing_ok = click.option("--missing-ok", is_flag=True, help="It is fine if a finetune does not exist.")
policy_file = click.option(
    "--file", type=click.Path(dir_okay=False, path_type=Path), help="Instead of JANITOR_POLICY_FILE."
)
wait = click.option("--wait", is_flag=True, help="Wait for the outcome and show it.")
timeout = click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="S", help="Wait at most S seconds, then exit 4."
)
json = click.option(
    "--json", is_flag=True, expose_value=False, help="Print records as JSON, one per line.",
    callback=lambda context, _, value: context.meta.update({_AS_JSON: value}),
)  # fmt: skip


def as_json() -> bool:
    """Whether the command that is running was given --json: what prints asks here, so no function passes it on."""
    return bool(click.get_current_context().meta.get(_AS_JSON))
