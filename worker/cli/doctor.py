"""`janitor doctor`: is everything in place? Each line is ok, a warning, or what to do."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import click

from tasks.bfl import BflReader
from tasks.durations import format_duration, iso
from tasks.errors import ApiError, KeyRefused, LedgerUnavailable, Unclear
from tasks.ledger import Ledger
from tasks.looking import names
from tasks.poison import list_poison
from tasks.queries import oldest_due, stopped_accounts, workers_seen
from tasks.records import DEFAULT_ACCOUNT, from_ms
from worker.cli.common import json_option
from worker.cli.output import note, print_json
from worker.connections import redis_url
from worker.server_checks import Finding, check_server
from worker.settings import Account, Settings, SettingsError, load_settings

_LATE = timedelta(minutes=5)
_UNREACHABLE = 3


@click.command()
@click.option("--settings", "show_settings", is_flag=True, help="List every setting: value, default, meaning.")
@json_option
def doctor(*, show_settings: bool, as_json: bool) -> int:
    """Check settings, Redis, the API and the workers; say what to do where something is amiss.

    Exit codes: 0 all is well (warnings included), 1 something must be done, 3 Redis or the API cannot be reached.

    \b
    janitor doctor
    janitor doctor --settings
    """
    settings = load_settings()
    if show_settings:
        return _show_settings(settings, as_json=as_json)
    findings = []
    for finding in check(settings):
        findings.append(finding)
        if as_json:
            print_json([finding._asdict()])
        else:
            click.echo(f"{finding.level:<11} {finding.check:<12} {finding.message}")
    levels = {finding.level for finding in findings}
    if "unreachable" in levels:
        return _UNREACHABLE
    return 1 if "error" in levels else 0


def check(settings: Settings) -> Iterator[Finding]:
    """Everything that can be known from here, one finding at a time."""
    try:
        accounts = settings.accounts
        yield Finding("settings", "ok", "no setting contradicts another (--settings lists them)")
    except SettingsError as error:
        accounts = {}
        yield Finding("settings", "error", str(error))
    try:
        yield from _check_redis(settings)
    except SettingsError as error:
        yield Finding("redis", "error", str(error))
    if not accounts:
        yield Finding("api", "warning", "no key here: set BFL_API_KEY where workers run; producers need none")
    for account in accounts.values():
        yield _check_api(settings, account)


def _check_redis(settings: Settings) -> Iterator[Finding]:
    from worker.connections import connect  # noqa: PLC0415

    try:
        client = connect(redis_url(settings), patient=False)
        ledger = Ledger(client)
        ledger.now_ms()
    except LedgerUnavailable as error:
        yield Finding("redis", "unreachable", str(error))
        return
    yield from check_server(client)
    seen, due = workers_seen(ledger), _check_due(ledger)
    if seen:
        yield Finding("workers", "ok", f"worker processes: {', '.join(seen)}")
    else:
        nobody = "no worker is seen: start one with `janitor worker` or `janitor up`"
        yield Finding("workers", "error" if oldest_due(ledger) else "warning", nobody)
    yield due
    yield from _check_stops(ledger)
    yield _check_poison(ledger)


def _check_due(ledger: Ledger) -> Finding:
    due = oldest_due(ledger)
    if due is None:
        return Finding("queue", "ok", "nothing is due")
    age = from_ms(ledger.now_ms()) - due
    text = f"the oldest due deletion has waited {format_duration(timedelta(seconds=round(age.total_seconds())))}"
    if age > _LATE:
        return Finding(
            "queue", "warning", f"{text} (since {iso(due)}): are workers running, is the account stopped?"
        )
    return Finding("queue", "ok", text)


def _check_stops(ledger: Ledger) -> Iterator[Finding]:
    for name, stop in stopped_accounts(ledger).items():
        whom, option = ("all accounts", "") if name == "*" else (f"account {name}", f" --account {name}")
        if stop.paused is not None:
            yield Finding("paused", "warning", f"{whom}: {stop.paused}; `janitor resume{option}` goes on")
        if stop.parked is not None:
            why = f"{whom}: the API refuses its key ({stop.parked}); correct it, the worker tries it every 30s"
            yield Finding("parked", "error", why)
        if stop.cooling is not None:
            yield Finding("cool-down", "ok", f"{whom} waits, as the API asked: {stop.cooling}")


def _check_poison(ledger: Ledger) -> Finding:
    found = list_poison(ledger)
    if not found:
        return Finding("poison", "ok", "no unreadable message was put aside")
    text = f"{len(found)} unreadable messages were put aside, the last for {found[0].reason!r}"
    return Finding("poison", "warning", f"{text}: see `janitor poison list`")


def _check_api(settings: Settings, account: Account) -> Finding:
    from worker.app import client  # noqa: PLC0415 -- brings in Celery

    name = f"api {account.name}"
    suffix = "" if account.name == DEFAULT_ACCOUNT else f"_{account.name.upper()}"
    try:
        count = len(names(client(settings, account, BflReader).my_finetunes()))
    except KeyRefused as error:
        return Finding(name, "error", f"{account.url} refuses the key ({error}): correct BFL_API_KEY{suffix}")
    except Unclear as error:
        return Finding(name, "error", f"{account.url}: {error}; is this the right host?")
    except ApiError as error:
        return Finding(name, "unreachable", f"{account.url}: {error}; test another host with BFL_API_URL{suffix}")
    return Finding(name, "ok", f"{account.url} accepts the key and lists {count} finetunes")


def _show_settings(settings: Settings, *, as_json: bool) -> int:
    for name, field in type(settings).model_fields.items():
        variable = field.validation_alias or f"JANITOR_{name.upper()}"
        value = getattr(settings, name)
        default = field.get_default(call_default_factory=True)
        row = {
            "setting": str(variable),
            "value": _shown(value),
            "default": _shown(default),
            "meaning": field.description,
        }
        if as_json:
            print_json([row])
        else:
            changed = "" if row["value"] == row["default"] else f"  (default {row['default']})"
            click.echo(f"{row['setting']}={row['value']}{changed}\n    {row['meaning']}")
    for account in settings.accounts.values():
        note(f"account {account.name}: {account.url}, a key is set")
    return 0


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
