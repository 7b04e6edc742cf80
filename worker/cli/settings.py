"""`janitor doctor --settings`: every setting with its value, where that comes from, and its meaning; no secret."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import timedelta

import click

from tasks.durations import format_duration
from tasks.records import DEFAULT_ACCOUNT
from worker.cli.output import print_json
from worker.settings import DEFAULT_API_URL, Settings

Row = dict[str, str]


def show(settings: Settings, *, as_json: bool) -> int:
    """One line or one JSON document a setting."""
    for row in [*_settings(settings), *_accounts(settings)]:
        if as_json:
            print_json([row])
            continue
        changed = "" if row["value"] == row["default"] else f", default {row['default'] or 'none'}"
        click.echo(f"{row['setting']}={row['value']}  ({row['source']}{changed})\n    {row['meaning']}")
    return 0


def _settings(settings: Settings) -> Iterator[Row]:
    for name, field in type(settings).model_fields.items():
        yield {
            "setting": str(field.validation_alias or f"JANITOR_{name.upper()}"),
            "value": _shown(getattr(settings, name)),
            "source": "environment" if name in settings.model_fields_set else "default",
            "default": _shown(field.get_default(call_default_factory=True)),
            "meaning": field.description or "",
        }


def _accounts(settings: Settings) -> Iterator[Row]:
    for account in settings.accounts.values():
        suffix = "" if account.name == DEFAULT_ACCOUNT else f"_{account.name.upper()}"
        from_file = any(name.upper() == f"BFL_API_KEY_FILE{suffix}" and os.environ[name] for name in os.environ)
        yield {
            "setting": f"BFL_API_KEY{suffix}", "value": "**********", "default": "",
            "source": "file" if from_file else "environment", "meaning": f"the key of account {account.name}",
        }  # fmt: skip
        yield {
            "setting": f"BFL_API_URL{suffix}", "value": account.url,
            "source": "default" if account.url == DEFAULT_API_URL else "environment",
            "default": DEFAULT_API_URL, "meaning": f"base URL of the API for account {account.name}",
        }  # fmt: skip


def _shown(value: object) -> str:
    if isinstance(value, timedelta):
        return format_duration(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)
