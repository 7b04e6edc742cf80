"""`janitor doctor`: is everything in place? Each line is ok, a warning, or what to do."""

from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import NamedTuple

import click

from tasks.durations import format_duration
from tasks.errors import LedgerUnavailable
from tasks.ledger.redis_errors import unavailable
from tasks.ledger.statistics import statistics
from worker.cli import UNREACHABLE, options
from worker.cli.output import print_record
from worker.cli.session import Session
from worker.doctor.api import check_api, check_proxy
from worker.doctor.ledger import check_ledger
from worker.doctor.retries import retries
from worker.doctor.server import Finding, check_server
from worker.doctor.settings import check_settings
from worker.settings import DEFAULT_API_URL, Settings, SettingsError


class Setting(NamedTuple):
    """One setting, with what it is now and where that comes from; a key is not shown."""

    setting: str
    value: str
    source: str
    default: str
    meaning: str


@click.command()
@click.option("--settings", "show_settings", is_flag=True, help="List every setting: value, source, meaning.")
@options.json
def doctor(*, show_settings: bool) -> int:
    """Check settings, Redis, the API and the workers; say what to do if something is wrong.

    It deletes nothing. Exit codes: 0 all is well (warnings included), 1 something must be done, 2 a setting is
    wrong, 3 Redis or the API cannot be reached.

    \b
    janitor doctor
    janitor doctor --settings
    """
    session = Session()
    if show_settings:
        # As a list: nothing is printed if an account's settings are wrong.
        for one in list(_settings(session.settings)):
            print_record(one._asdict(), _in_words(one))
        return 0
    levels = set()
    for finding in _findings(session):
        levels.add(finding.level)
        print_record(vars(finding), f"{finding.level:<11} {finding.check:<19} {finding.message}")
    return UNREACHABLE if "unreachable" in levels else int("error" in levels)


def _findings(session: Session) -> Iterator[Finding]:
    """Everything that can be known from here, one finding at a time. Raises `WrongLedger`."""
    settings = session.settings
    yield from check_settings(settings)
    try:
        ledger = session.ledger
        with unavailable():
            yield from check_server(ledger.client)
        found = statistics(ledger)
        yield from check_ledger(ledger, settings.tick_every, found, retries(ledger, found.accounts))
    except SettingsError as error:
        yield Finding("redis", "error", str(error))
    except LedgerUnavailable as error:
        yield Finding("redis", "unreachable", str(error))
    with suppress(SettingsError):  # it is told above
        yield from _of_the_api(settings)


def _of_the_api(settings: Settings) -> Iterator[Finding]:
    accounts = settings.accounts
    if not accounts:
        yield Finding("api", "warning", "no key here: set BFL_API_KEY where workers run; producers need none")
        return
    yield from check_proxy()
    for account in accounts.values():
        yield from check_api(settings, account)


def _in_words(one: Setting) -> str:
    changed = "" if one.value == one.default else f", default {one.default or 'none'}"
    return f"{one.setting}={one.value}  ({one.source}{changed})\n    {one.meaning}"


def _settings(settings: Settings) -> Iterator[Setting]:
    for name, field in Settings.model_fields.items():
        variable = str(field.validation_alias or f"JANITOR_{name.upper()}")
        default = _shown(field.get_default(call_default_factory=True))
        source = "environment" if name in settings.model_fields_set else "default"
        yield Setting(variable, _shown(getattr(settings, name)), source, default, field.description or "")
    for account in settings.accounts.values():
        suffix = account.url_variable.upper().removeprefix("BFL_API_URL")
        variable = f"BFL_API_KEY{suffix}"
        source = "environment" if account.key_variable.upper() == variable else "file"
        yield Setting(variable, "**********", source, "", f"the key of account {account.name}")
        meaning = f"base URL of the API for account {account.name}"
        source = "default" if account.url == DEFAULT_API_URL else "environment"
        yield Setting(f"BFL_API_URL{suffix}", account.url, source, DEFAULT_API_URL, meaning)


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
