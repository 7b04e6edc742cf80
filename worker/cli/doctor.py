"""`janitor doctor`: is everything in place? Each line is ok, a warning, or what to do."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.redis_errors import unavailable
from worker.cli.common import json_option
from worker.cli.output import print_json
from worker.cli.settings import show
from worker.doctor.api import check_api, check_proxy
from worker.doctor.ledger import check_ledger
from worker.doctor.server import Finding, check_server
from worker.logs import configure as configure_logs
from worker.redis_url import connect, redis_url
from worker.settings import Settings, SettingsError, load_settings

_UNREACHABLE = 3


@click.command()
@click.option("--settings", "show_settings", is_flag=True, help="List every setting: value, source, meaning.")
@json_option
def doctor(*, show_settings: bool, as_json: bool) -> int:
    """Check settings, Redis, the API and the workers; say what to do if something is wrong.

    It deletes nothing. Exit codes: 0 all is well (warnings included), 1 something must be done, 3 Redis or the API
    cannot be reached.

    \b
    janitor doctor
    janitor doctor --settings
    """
    settings = load_settings()
    configure_logs("WARNING")  # on stderr: stdout is for findings
    if show_settings:
        return show(settings, as_json=as_json)
    return _report(check(settings), as_json=as_json)


def check(settings: Settings) -> Iterator[Finding]:
    """Everything that can be known from here, one finding at a time. Raises `WrongLedger`."""
    try:
        accounts = settings.accounts
        yield Finding("settings", "ok", "no setting contradicts another (--settings lists them)")
    except SettingsError as error:
        accounts = {}
        yield Finding("settings", "error", str(error))
    try:
        ledger = Ledger(connect(redis_url(settings), patient=False))
        ledger.check_schema()
        with unavailable():
            yield from check_server(ledger.redis)
        yield from check_ledger(ledger, settings.tick_every)
    except SettingsError as error:
        yield Finding("redis", "error", str(error))
    except LedgerUnavailable as error:
        yield Finding("redis", "unreachable", str(error))
    if not accounts:
        yield Finding("api", "warning", "no key here: set BFL_API_KEY where workers run; producers need none")
        return
    yield from check_proxy()
    for account in accounts.values():
        yield from check_api(settings, account)


def _report(findings: Iterator[Finding], *, as_json: bool) -> int:
    levels = set()
    for finding in findings:
        levels.add(finding.level)
        if as_json:
            print_json([finding._asdict()])
        else:
            click.echo(f"{finding.level:<11} {finding.check:<19} {finding.message}")
    if "unreachable" in levels:
        return _UNREACHABLE
    return 1 if "error" in levels else 0
