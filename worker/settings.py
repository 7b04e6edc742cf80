"""Settings from the environment: read once, checked against each other, with secrets kept out of every repr."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from datetime import timedelta
from difflib import get_close_matches
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self
from urllib.parse import urlsplit

from platformdirs import user_state_path
from pydantic import BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from tasks.durations import format_duration, parse_duration
from tasks.errors import JanitorError
from tasks.records import DEFAULT_ACCOUNT, is_account
from tasks.text import read_file

if TYPE_CHECKING:
    from tasks.ledger import Terms

DEFAULT_API_URL = "https://api.us1.bfl.ai"
_PREFIX = "JANITOR_"
_EACH_LONGER = ("connect_timeout", "call_deadline", "lease", "visibility_timeout", "retention")
# Kubernetes sets these in every pod of a namespace that has a Service named janitor or janitor-something.
_OF_KUBERNETES = re.compile(
    r"JANITOR_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)=.*"
    r"|JANITOR_(\w+_)?PORT=(tcp|udp|sctp)://.*"
)


class SettingsError(JanitorError):
    """A setting is missing, unreadable or contradicts another; the message names it."""


class Account(NamedTuple):
    """One BFL API key with its base URL. key_variable, url_variable: the environment variables that set them."""

    name: str
    key: SecretStr
    key_variable: str
    url: str
    url_variable: str


def _duration(given: object) -> object:
    return parse_duration(given) if isinstance(given, str) else given


Duration = Annotated[timedelta, BeforeValidator(_duration)]
# A shell expands ~, a file of variables does not.
_expanded = BeforeValidator(lambda given: given and os.path.expanduser(given))
File = Annotated[Path | None, _expanded]


def _default(default: str, description: str) -> Any:
    return Field(parse_duration(default), description=description, gt=timedelta(0))


class Settings(BaseSettings):
    """Every `JANITOR_*` setting, with its meaning and default; durations are written `30s`, `24h`, `90d`.

    Two settings that contradict each other, or a file that cannot be used, raise `SettingsError`.
    """

    model_config = SettingsConfigDict(
        env_prefix=_PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True, env_ignore_empty=True
    )

    redis_url: SecretStr | None = Field(None, validation_alias="REDIS_URL",
        description="Redis of the ledger and of Celery, in redis-py's form, or sentinel(s)://")  # fmt: skip
    redis_password_file: File = Field(None, validation_alias="REDIS_PASSWORD_FILE",
        description="a file with the password of Redis, if REDIS_URL has none")  # fmt: skip
    callbacks_url: SecretStr | None = Field(None,
        description="Redis as a user that may only publish callbacks, in the form of REDIS_URL")  # fmt: skip
    callbacks_password_file: File = Field(None,
        description="a file with the password of that user, if JANITOR_CALLBACKS_URL has none")  # fmt: skip
    state_dir: Annotated[Path, _expanded] = Field(
        default_factory=lambda: user_state_path("finetune-janitor", appauthor=False),
        description="where `janitor up` keeps its Redis, and each process its heartbeat")  # fmt: skip
    max_concurrent: int = Field(8, ge=1, le=1000, description="API calls at once per account, over all workers")
    threads: int = Field(8, ge=1, le=256, description="API calls at once per worker process")
    lease: Duration = _default("30s", "how long a worker holds a deletion unrenewed")
    call_deadline: Duration = _default("20s", "total time of one API call")
    connect_timeout: Duration = _default("5s", "time to connect to the API")
    read_timeout: Duration = _default("15s", "longest silence while an answer is read")
    retry_budget: Duration = Field(timedelta(seconds=5),
        description="total time of a deletion's short waits; longer ones free the worker")  # fmt: skip
    give_up_after: Duration = _default("7d", "a deletion that is overdue by this much gets one last try")
    observe_within: Duration = _default("1h", "a deletion that waited longer needs a creation time from the API "
        "or two observations that can be compared; without these it ends in review")  # fmt: skip
    retention: Duration = _default("90d", "how long final records and results are kept")
    audit_retention: Duration = _default("1095d", "how long the audit log is kept, in whole months")
    visibility_timeout: Duration = _default("1h", "when the broker delivers an unacknowledged message again")
    maintenance_every: Duration = _default("1s", "how often each worker looks for due work and expired leases; "
        "what is due may wait that long")  # fmt: skip
    tick_every: Duration = _default("1m", "how often beat looks for scheduled cleanups that are due")
    allow_org_ids: bool = Field(default=False, description="accept ids of the form org/name")
    allow_api_url: bool = Field(default=False,
        description="accept an API URL that is neither at bfl.ai nor loopback")  # fmt: skip
    ca_bundle: File = Field(None,
        description="a PEM file of the authorities trusted for the API, instead of the usual ones")  # fmt: skip
    strict: bool = Field(default=False,
        description="do not start on a Redis that evicts or does not persist; else warn")  # fmt: skip
    tokens_file: File = Field(None, description="who may use the HTTP service, a TOML file of tokens")
    http_requests_per_minute: int = Field(600, ge=1, le=1_000_000,
        description="HTTP requests a minute of one token")  # fmt: skip
    http_open_deletions: int = Field(10_000, ge=1, le=1_000_000,
        description="deletions of one token over HTTP that may be unfinished at once")  # fmt: skip
    policy_file: File = Field(None, description="the cleanup policies, a TOML file")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="what is logged")

    @property
    def accounts(self) -> dict[str, Account]:
        """The accounts in the environment, by name; raises `SettingsError`."""
        return read_accounts(os.environ, allow_api_url=self.allow_api_url)

    @model_validator(mode="after")
    def _check(self) -> Self:
        for shorter, longer in pairwise(_EACH_LONGER):
            low, high = getattr(self, shorter), getattr(self, longer)
            if low >= high:
                raise SettingsError(
                    f"{_variable(shorter)}={format_duration(low)} must be shorter than "
                    f"{_variable(longer)}={format_duration(high)}"
                )
        bundle = self.ca_bundle
        if bundle and "-----BEGIN CERTIFICATE-----" not in read_text("JANITOR_CA_BUNDLE", bundle):
            raise SettingsError("JANITOR_CA_BUNDLE names a file without certificates: give a PEM file")
        return self


def load_settings() -> Settings:
    """The settings of this environment; raises `SettingsError` with one line that names the setting."""
    _refuse_unknown(os.environ)
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        message = first["msg"].removeprefix("Value error, ").replace("Input should", "should")
        raise SettingsError(f"{_variable(str(first['loc'][0]))}: {message}") from None


def terms(settings: Settings) -> Terms:
    """The ledger's durations, from the settings."""
    from tasks.ledger import Terms  # noqa: PLC0415 -- what only reads settings loads no ledger

    kept = {"lease", "call_deadline", "give_up_after", "retention", "audit_retention"}
    # A moment without reports is noted at the next look for them, and must count until the one after it.
    clear_for = max(timedelta(seconds=5), 3 * settings.maintenance_every)
    return Terms(**settings.model_dump(include=kept), reports_clear_for=clear_for)


def require_accounts(settings: Settings) -> None:
    """Raise `SettingsError` if there is no API key: only workers and commands that ask the API need one."""
    if not settings.accounts:
        raise SettingsError(
            "no API key: set BFL_API_KEY, or BFL_API_KEY_FILE to a file that holds it "
            f"(the API is {DEFAULT_API_URL} unless BFL_API_URL says otherwise); `janitor demo` needs none"
        )


def read_accounts(environ: Mapping[str, str], *, allow_api_url: bool = False) -> dict[str, Account]:
    """Accounts from `BFL_API_KEY[_FILE][_<NAME>]` and `BFL_API_URL[_<NAME>]`; raises `SettingsError`."""
    accounts = {}
    for variable in environ:
        match = re.fullmatch(r"BFL_API_KEY(?P<file>_FILE)?(?:_(?P<name>[A-Za-z0-9_]+))?", variable)
        if match is None or not environ[variable].strip():
            continue
        name = (match["name"] or DEFAULT_ACCOUNT).lower()
        if name.endswith("_file"):
            raise SettingsError(f"{variable} is not a setting: did you mean BFL_API_KEY_FILE_{name[:-5].upper()}?")
        if name == "file" or not is_account(name):
            raise SettingsError(f"{variable} names the account {name!r}: give letters, digits and _, at most 40")
        if name in accounts:
            raise SettingsError(f"{variable} and another variable both give the key of account {name!r}: keep one")
        url_variable, url = _url_of(name, environ)
        key = _read_key(variable, environ[variable], is_file=bool(match["file"]))
        url = _checked_url(url_variable, url, allow_any=allow_api_url)
        accounts[name] = Account(name, key, variable, url, url_variable)
    return accounts


def unused_urls(environ: Mapping[str, str], accounts: Mapping[str, Account]) -> list[str]:
    """The variables that name a base URL, of which no account here makes use; none if there are no accounts."""
    used = {account.url_variable for account in accounts.values()}
    urls = (name for name, value in environ.items() if name.upper().startswith("BFL_API_URL") and value.strip())
    return sorted(name for name in urls if accounts and name not in used)


def _url_of(account: str, environ: Mapping[str, str]) -> tuple[str, str]:
    """The base URL of an account, after the variable that names it."""
    wanted = [f"BFL_API_URL_{account.upper()}", *(["BFL_API_URL"] if account == DEFAULT_ACCOUNT else [])]
    given = [name for name in environ if name.upper() in wanted and environ[name].strip()]
    if len(given) > 1:
        raise SettingsError(f"{given[0]} and {given[1]} both give the URL of account {account!r}: keep one")
    variable = given[0] if given else wanted[-1]
    return variable, environ.get(variable, "").strip() or DEFAULT_API_URL


def read_text(variable: str, file: str | Path) -> str:
    """The text of the file that a variable names; raises `SettingsError`."""
    try:
        return read_file(Path(file))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SettingsError(f"{variable} names a file that cannot be read: {reason}") from None


def _read_key(variable: str, value: str, *, is_file: bool) -> SecretStr:
    key = (read_text(variable, os.path.expanduser(value.strip())) if is_file else value).strip()
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
    if not host or parts.scheme not in ("http", "https") or "@" in parts.netloc or re.search(r"[?#\\\s]", url):
        raise SettingsError(f"{variable} must be a base URL such as {DEFAULT_API_URL}")
    at_bfl = parts.scheme == "https" and f".{host}".endswith(".bfl.ai")
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


def _variable(field: str) -> str:
    """The variable that sets a field, which pydantic names by its alias if it has one."""
    return field if field.isupper() else f"{_PREFIX}{field.upper()}"


def _refuse_unknown(environ: Mapping[str, str]) -> None:
    """Raise `SettingsError` if a `JANITOR_*` variable is not a setting; the line names the nearest one."""
    known = sorted(str(field.validation_alias or _variable(name)) for name, field in Settings.model_fields.items())
    # Compared without the prefix: it would make all names alike.
    by_suffix = {name.removeprefix(_PREFIX): name for name in known}
    for variable, value in environ.items():
        name = variable.upper()  # pydantic reads names in any case
        is_ours = name.startswith(_PREFIX) and not _OF_KUBERNETES.fullmatch(f"{name}={value}")
        if is_ours and name not in known:
            nearest = get_close_matches(name.removeprefix(_PREFIX), by_suffix, n=1)
            hint = f"did you mean {by_suffix[nearest[0]]}?" if nearest else f"accepted are {', '.join(known)}"
            raise SettingsError(f"{variable} is not a setting: {hint}")
