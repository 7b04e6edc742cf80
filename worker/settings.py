"""Environment to settings: read once, checked against each other, secrets kept out of every repr."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.durations import format_duration, parse_duration
from tasks.errors import JanitorError
from tasks.records import DEFAULT_ACCOUNT, is_account

DEFAULT_API_URL = "https://api.us1.bfl.ai"


class SettingsError(JanitorError):
    """A setting is missing, unreadable or contradicts another; the message names it."""


class Account(NamedTuple):
    """One BFL API key with its base URL."""

    name: str
    key: SecretStr
    url: str


def _user_state_dir() -> Path:
    from platformdirs import user_state_path  # noqa: PLC0415 -- only where no state dir is set

    return user_state_path("finetune-janitor", appauthor=False)


def _duration(value: object) -> object:
    return parse_duration(value) if isinstance(value, str) else value


Duration = Annotated[timedelta, BeforeValidator(_duration)]


class Settings(BaseSettings):
    """Every `JANITOR_*` setting, with its meaning and default; durations are written `30s`, `24h`, `90d`."""

    model_config = SettingsConfigDict(
        env_prefix="JANITOR_", frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    redis_url: SecretStr | None = Field(
        None,
        validation_alias="REDIS_URL",
        description="Redis of the ledger and of Celery, in redis-py's form, or sentinel://",
    )
    redis_password_file: Path | None = Field(
        None,
        validation_alias="REDIS_PASSWORD_FILE",
        description="a file that holds the password of Redis, where REDIS_URL has none",
    )
    state_dir: Path = Field(default_factory=_user_state_dir, description="where `janitor up` keeps its Redis")
    max_concurrent: int = Field(8, ge=1, le=1000, description="API calls at once per account, over all workers")
    threads: int = Field(8, ge=1, le=256, description="API calls at once per worker process")
    lease: Duration = Field(timedelta(seconds=30), description="how long a worker holds a deletion unrenewed")
    call_deadline: Duration = Field(timedelta(seconds=20), description="total time of one API call")
    connect_timeout: Duration = Field(timedelta(seconds=5), description="time to connect to the API")
    read_timeout: Duration = Field(timedelta(seconds=15), description="longest silence while an answer is read")
    retry_budget: Duration = Field(
        timedelta(seconds=20), description="time a worker spends on retries before it gives the slot back"
    )
    give_up_after: Duration = Field(
        timedelta(days=7), description="after being due this long, one last attempt is made"
    )
    first_look_within: Duration = Field(
        timedelta(hours=1), description="a first look later than this trusts only the API's own timestamp"
    )
    look_first: Literal["always", "unclear"] = Field(
        "always", description="look at the finetune before each delete, or only where something is unclear"
    )
    retention: Duration = Field(timedelta(days=90), description="how long final records and results are kept")
    visibility_timeout: Duration = Field(
        timedelta(hours=1), description="when the broker delivers an unacknowledged message again"
    )
    dispatch_every: Duration = Field(
        timedelta(seconds=1), description="how often each worker looks for due work and ended leases"
    )
    tick_every: Duration = Field(
        timedelta(minutes=1), description="how often beat has the cleanups looked for whose time has come"
    )
    allow_org_ids: bool = Field(default=False, description="accept ids of the form org/name")
    allow_api_url: bool = Field(
        default=False, description="accept an API URL that is neither at bfl.ai nor loopback"
    )
    strict: bool = Field(
        default=False, description="do not start on a Redis that evicts or does not persist; else warn"
    )
    tokens_file: Path | None = Field(None, description="who may use the HTTP service, a TOML file of tokens")
    policy_file: Path | None = Field(None, description="the cleanup policies, a TOML file")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged")

    @property
    def accounts(self) -> dict[str, Account]:
        """The accounts in the environment, by name; raises `SettingsError`."""
        return read_accounts(os.environ, allow_api_url=self.allow_api_url)


def load_settings() -> Settings:
    """The settings of this environment; raises `SettingsError` with one line that names the setting."""
    try:
        settings = Settings()
    except ValidationError as error:
        raise SettingsError(_one_line(error)) from None
    check(settings)
    return settings


def require_accounts(settings: Settings) -> None:
    """Raise `SettingsError` where there is no API key: only workers and what looks at the API need one."""
    if not settings.accounts:
        raise SettingsError(
            "no API key: set BFL_API_KEY, or BFL_API_KEY_FILE to a file that holds it "
            f"(the API is {DEFAULT_API_URL} unless BFL_API_URL says otherwise); `janitor demo` needs none"
        )


def check(settings: Settings) -> None:
    """Raise `SettingsError` where two settings contradict each other."""
    for name in (
        "lease", "call_deadline", "connect_timeout", "read_timeout", "retention", "visibility_timeout",
        "dispatch_every", "give_up_after", "tick_every",
    ):  # fmt: skip
        if getattr(settings, name) <= timedelta(0):
            raise SettingsError(f"JANITOR_{name.upper()} must be longer than 0s")
    for shorter, longer in pairwise(("connect_timeout", "call_deadline", "lease", "visibility_timeout")):
        low, high = getattr(settings, shorter), getattr(settings, longer)
        if low >= high:
            raise SettingsError(
                f"JANITOR_{shorter.upper()}={format_duration(low)} must be shorter than "
                f"JANITOR_{longer.upper()}={format_duration(high)}"
            )


def read_accounts(environ: Mapping[str, str], *, allow_api_url: bool = False) -> dict[str, Account]:
    """Accounts from `BFL_API_KEY[_FILE][_<NAME>]` and `BFL_API_URL[_<NAME>]`; raises `SettingsError`."""
    accounts = {}
    for variable in environ:
        match = re.fullmatch(r"BFL_API_KEY(?P<file>_FILE)?(?:_(?P<name>[A-Za-z0-9_]+))?", variable)
        if match is None or not environ[variable].strip():
            continue
        name = (match["name"] or DEFAULT_ACCOUNT).lower()
        if name == "file" or not is_account(name):
            raise SettingsError(f"{variable} names the account {name!r}: give letters, digits and _, at most 40")
        if name in accounts:
            raise SettingsError(f"{variable} and another variable both give the key of account {name!r}: keep one")
        wanted = "BFL_API_URL" + (f"_{name.upper()}" if match["name"] else "")
        url_variable = next((one for one in environ if one.upper() == wanted), wanted)
        url = environ.get(url_variable, "").strip() or DEFAULT_API_URL
        key = _read_key(variable, environ[variable], is_file=bool(match["file"]))
        accounts[name] = Account(name, key, _checked_url(url_variable, url, allow_any=allow_api_url))
    return accounts


def read_text(variable: str, file: str | Path) -> str:
    """What the file holds that a variable names; raises `SettingsError`."""
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise SettingsError(f"{variable} names a file that cannot be read: {reason}") from None


def _read_key(variable: str, value: str, *, is_file: bool) -> SecretStr:
    key = (read_text(variable, value.strip()) if is_file else value).strip()
    # requests repeats an illegal header value in its error: such a key must not get that far.
    if not re.fullmatch(r"[\x21-\x7e]+", key):
        raise SettingsError(f"{variable} must hold one key of printable ASCII characters without spaces")
    return SecretStr(key)


def _checked_url(variable: str, url: str, *, allow_any: bool) -> str:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        parts, host = urlsplit(""), ""
    more = parts.username or parts.password or re.search(r"[?#\s]", url)
    if not host or parts.scheme not in ("http", "https") or more:
        raise SettingsError(f"{variable} must be a base URL such as {DEFAULT_API_URL}")
    at_bfl = parts.scheme == "https" and (host == "bfl.ai" or host.endswith(".bfl.ai"))
    if not (at_bfl or _is_loopback(host) or allow_any):
        raise SettingsError(
            f"{variable}={parts.scheme}://{host} is neither https at bfl.ai nor loopback, and the key would be "
            "sent there: correct it, or set JANITOR_ALLOW_API_URL=true if that is meant"
        )
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _one_line(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    field = str(first["loc"][0])
    variable = field if field.isupper() else f"JANITOR_{field.upper()}"
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
    return f"{variable}: {message}"
