"""What commands share: settings, a ledger that answers or says at once that it cannot, options, waiting."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.progress import Progress

from tasks.durations import parse_duration
from tasks.errors import InvalidRequest
from tasks.intake import Intake
from tasks.ledger import Ledger
from tasks.ledger.queries import get, get_many
from tasks.records import DEFAULT_ACCOUNT, Deletion
from worker.logs import configure as configure_logs
from worker.redis_url import connect, redis_url
from worker.settings import Settings, SettingsError, load_settings, require_accounts, terms

if TYPE_CHECKING:
    from tasks.cleanup.schedule import Cleaner

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class Desk:
    """What a command works with."""

    settings: Settings
    url: str

    @cached_property
    def ledger(self) -> Ledger:
        """Raises `WrongLedger` if another version wrote it."""
        ledger = Ledger(connect(self.url, patient=False), terms(self.settings))
        ledger.check_schema()
        return ledger

    @cached_property
    def intake(self) -> Intake:
        return Intake(self.ledger, self.wake, allow_org_ids=self.settings.allow_org_ids)

    @cached_property
    def cleaner(self) -> Cleaner:
        """What reads the API and makes plans; raises `SettingsError` without a key."""
        from worker.app import cleaner  # noqa: PLC0415 -- brings in Celery

        require_accounts(self.settings)
        return cleaner(self.settings, self.ledger, self.intake, time.sleep)

    def wake(self, account: str) -> None:
        """Publish a wake-up."""
        from tasks.celery_tasks import wake  # noqa: PLC0415 -- brings in Celery
        from worker.app import create_app  # noqa: PLC0415 -- brings in Celery

        wake(create_app(self.settings, self.url), account)


def open_desk() -> Desk:
    """Settings and Redis of this environment; raises `SettingsError` or `LedgerUnavailable`."""
    settings = load_settings()
    configure_logs("WARNING")  # on stderr: stdout is for records
    return Desk(settings, redis_url(settings))


def parse_local_time(text: str) -> datetime:
    """An aware UTC `datetime`; raises `InvalidRequest`. Without an offset it is local time, as in tables."""
    try:
        return datetime.fromisoformat(text.strip()).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest(
            f"{text!r} is not a time: give a time in ISO 8601 such as 2026-12-24T18:00:00Z; without an offset it "
            "is local time"
        ) from None


class _Parsed(click.ParamType[Any]):
    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except InvalidRequest as error:
            self.fail(str(error), param, ctx)


DURATION = _Parsed("duration", parse_duration)
TIME = _Parsed("time", parse_local_time)

json_option = click.option("--json", "as_json", is_flag=True, help="Print records as JSON, one per line.")
account_option = click.option("--account", default=DEFAULT_ACCOUNT, show_default=True, help="The account.")
policy_file_option = click.option(
    "--file", "file", type=click.Path(dir_okay=False, path_type=Path), help="Instead of JANITOR_POLICY_FILE."
)
timeout_option = click.option(
    "--timeout", type=click.FloatRange(min=0), metavar="S", help="Wait at most S seconds, then exit 4."
)


def known(ledger: Ledger, ids: Sequence[str]) -> list[Deletion]:
    """The deletions with these ids; raises `UnknownDeletion` for the first that has none."""
    return [one or get(ledger, id_) for id_, one in zip(ids, get_many(ledger, ids), strict=True)]


def wait_for(ledger: Ledger, ids: Sequence[str], timeout_seconds: float | None) -> tuple[list[Deletion], bool]:
    """The deletions of these ids once all are final, or as they stand when the time is over (then False).

    Unknown ids raise `UnknownDeletion`. A bar shows the progress of many, on a terminal only.
    """
    over = time.monotonic() + (math.inf if timeout_seconds is None else timeout_seconds)
    found: dict[str, Deletion] = {}
    left = ids
    with progress("deletions") as advance:
        while True:
            found |= zip(left, known(ledger, left), strict=True)
            left = [id_ for id_ in ids if not found[id_].is_final]
            advance(len(ids) - len(left), len(ids))
            if not left or time.monotonic() >= over:
                return [found[id_] for id_ in ids], not left
            time.sleep(_POLL_SECONDS)


@contextmanager
def extra() -> Iterator[None]:
    """Around imports that the extra `http` brings; raises `SettingsError` if it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: this command needs `pip install '.[http]'` in a checkout"
        ) from None


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar for long work, told (done, total); on a terminal only."""
    if not sys.stderr.isatty():
        yield lambda _done, _total: None
        return
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
