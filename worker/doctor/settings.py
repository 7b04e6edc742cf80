"""What the settings name: a worker or the HTTP service would not start with what is wrong there."""

import os
from collections.abc import Iterator

from tasks.cleanup.policies import read_policies
from tasks.errors import InvalidRequest
from worker.doctor.server import Finding
from worker.http.tokens import read_tokens
from worker.redis_url import callbacks_url
from worker.settings import DEFAULT_API_URL, Settings, SettingsError, unused_urls


def check_settings(settings: Settings) -> Iterator[Finding]:
    """Each that is wrong, or that all is well."""
    looks = (lambda: settings.accounts, lambda: check_policies(settings), lambda: callbacks_url(settings),
             lambda: settings.tokens_file and read_tokens(settings.tokens_file))  # fmt: skip
    is_well = True
    for look in looks:
        try:
            look()
        except SettingsError as error:
            is_well = False
            yield Finding("settings", "error", str(error))
    if is_well and (unused := unused_urls(os.environ, settings.accounts)):
        is_well = False
        yield Finding(
            "settings", "warning", f"no account here uses {' and '.join(unused)}: correct the name, or remove it; "
            f"without a URL of its own, an account is at {DEFAULT_API_URL}",
        )  # fmt: skip
    if is_well:
        yield Finding("settings", "ok", "no setting contradicts another (--settings lists them)")


def check_policies(settings: Settings) -> None:
    """Raise `SettingsError` if JANITOR_POLICY_FILE is set and cannot be used."""
    try:
        if settings.policy_file:
            read_policies(settings.policy_file)
    except InvalidRequest as error:
        raise SettingsError(f"JANITOR_POLICY_FILE: {error}") from None
