"""`janitor doctor`: is everything in place? Each line is ok, a warning, or what to do."""

from __future__ import annotations

from collections.abc import Iterator

import click

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.records import DEFAULT_ACCOUNT, check_account
from tasks.redis_errors import unavailable
from worker.cli.common import json_option
from worker.cli.output import print_json
from worker.cli.settings import show
from worker.connections import connect, redis_url
from worker.ledger_checks import check_ledger, redis_ahead
from worker.logs import configure as configure_logs
from worker.server_checks import Finding, check_server
from worker.settings import Settings, SettingsError, load_settings, require_accounts

_UNREACHABLE = 3


@click.command()
@click.option("--settings", "show_settings", is_flag=True, help="List every setting: value, source, meaning.")
@click.option("--live", metavar="ID", help="Delete this one throwaway finetune at the API, and show the exchange.")
@click.option("--account", metavar="A", help=f"With --live: whose finetune it is; {DEFAULT_ACCOUNT} unless given.")
@click.option("--yes", is_flag=True, help="With --live: do not ask.")
@json_option
def doctor(*, show_settings: bool, live: str | None, account: str | None, yes: bool, as_json: bool) -> int:
    """Check settings, Redis, the API and the workers; say what to do where something is amiss.

    Exit codes: 0 all is well (warnings included), 1 something must be done, 3 Redis or the API cannot be reached.

    --live tries the API itself: it looks at one finetune that you name, asks, deletes it at once and for good,
    without a record, and prints what was sent (without the key) and what came back.

    \b
    janitor doctor
    janitor doctor --settings
    janitor doctor --live my-throwaway-finetune
    """
    settings = load_settings()
    configure_logs("WARNING")  # on stderr: stdout is for findings
    if live is not None:
        from worker.cli.live import delete_live  # noqa: PLC0415 -- brings in Celery

        if show_settings or as_json:
            raise click.UsageError("--live goes with --account and --yes only")
        require_accounts(settings)
        known = settings.accounts
        return delete_live(settings, known[check_account(account or DEFAULT_ACCOUNT, known)], live, sure=yes)
    if account is not None or yes:
        raise click.UsageError("--account and --yes go with --live only")
    if show_settings:
        return show(settings, as_json=as_json)
    return _report(check(settings), as_json=as_json)


def check(settings: Settings) -> Iterator[Finding]:
    """Everything that can be known from here, one finding at a time."""
    try:
        accounts = settings.accounts
        yield Finding("settings", "ok", "no setting contradicts another (--settings lists them)")
    except SettingsError as error:
        accounts = {}
        yield Finding("settings", "error", str(error))
    ahead = None
    try:
        ledger = Ledger(connect(redis_url(settings), patient=False))
        ahead = redis_ahead(ledger)
        with unavailable():
            yield from check_server(ledger.redis)
        yield from check_ledger(ledger, settings.tick_every)
    except SettingsError as error:
        yield Finding("redis", "error", str(error))
    except LedgerUnavailable as error:
        yield Finding("redis", "unreachable", str(error))
    if not accounts:
        yield Finding("api", "warning", "no key here: set BFL_API_KEY where workers run; producers need none")
    for account in accounts.values():
        from worker.api_checks import check_api  # noqa: PLC0415 -- brings in Celery

        yield from check_api(settings, account, ahead)


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
