"""The tokens of the HTTP service: a TOML file says what each may do, and is read again when it changes.

The file holds only the SHA-256 of each token, so that reading it gives no access.
"""

import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import sys
import time
import tomllib
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal

import structlog
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from tasks.errors import InvalidRequest
from tasks.records import DEFAULT_ACCOUNT, Deletion
from worker.settings import SettingsError, read_text

log = structlog.get_logger()

Scope = Literal["enqueue", "read", "admin"]
EVERY_ACCOUNT = "*"
_SETTING = "JANITOR_TOKENS_FILE"
_LOOK_SECONDS = 1.0
_NAME = r"^[A-Za-z0-9_-]{1,60}$"
_HOW = "`janitor tokens new NAME` makes a token"


def _not_of_nothing(digest: str) -> str:
    if digest == digest_of(""):
        raise ValueError(f"this is the SHA-256 of nothing: {_HOW}")
    return digest


def _expiry(given: object) -> object:
    if isinstance(given, date) and not isinstance(given, datetime):
        given = datetime.combine(given, datetime.min.time())
    if not isinstance(given, datetime):
        raise ValueError("give a date or a time without quotes, such as 2027-01-31 or 2027-01-31T18:00:00Z")
    return given if given.tzinfo else given.replace(tzinfo=UTC)


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$"), AfterValidator(_not_of_nothing)]
    scopes: tuple[Scope, ...] = Field(min_length=1)
    accounts: tuple[Annotated[str, Field(pattern=r"^(\*|[a-z0-9_]{1,40})$")], ...] = Field(min_length=1)
    expires: Annotated[datetime, BeforeValidator(_expiry)] | None = None


class Token(_Entry):
    """One token; its name is `requested_by` in the records. From `expires` on it is refused."""

    name: str

    @property
    def limited_to(self) -> tuple[str, ...]:
        """The accounts it may see and use; empty if that is all of them."""
        return () if EVERY_ACCOUNT in self.accounts else self.accounts

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)

    def may_use(self, account: str) -> bool:
        return not self.limited_to or account in self.limited_to

    def may(self, scope: Scope, deletion: Deletion) -> bool:
        """Whether it may do to this deletion what the scope allows; to one of its own it always may."""
        # A producer by name can give any `requested_by`, but it cannot choose `source`.
        is_own = deletion.source == "http" and deletion.requested_by == self.name
        return self.may_use(deletion.account) and (is_own or scope in self.scopes)


class TokenFile:
    """The tokens of a file, as it is now: looked at once a second. A file that cannot be used leaves the old ones.

    tokens: what was read at the start. clock: seconds, for tests.
    """

    def __init__(self, file: Path, tokens: Sequence[Token], clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._tokens, self._clock = file, tokens, clock
        self._seen: object = "at the start"
        self._next_look = clock()

    def find(self, secret: str) -> Token | None:
        """The token with this secret, expired or not; the time it takes tells nothing about any of them."""
        self._look()
        digest = digest_of(secret)
        matches = [token for token in self._tokens if hmac.compare_digest(token.sha256, digest)]
        return matches[0] if matches else None

    def _look(self) -> None:
        if self._clock() < self._next_look:
            return
        self._next_look = self._clock() + _LOOK_SECONDS
        seen = _stamp(self._file)
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._tokens = parse(read_text(_SETTING, self._file))
        except SettingsError as error:
            log.error("http.tokens_not_read", error=str(error), kept=[token.name for token in self._tokens])
        else:
            log.info("http.tokens_read", names=[token.name for token in self._tokens])


def read_tokens(file: Path | None) -> list[Token]:
    """The tokens in `file`; raises `SettingsError` with one line if there is none, or one is not right."""
    tokens = parse(read_text(_SETTING, required(file)))
    if not tokens:
        raise SettingsError(f"{_SETTING} names a file that holds no token: {_HOW}")
    return tokens


def required(file: Path | None) -> Path:
    """The file; raises `SettingsError` if none is set."""
    if file is None:
        raise SettingsError(f"{_SETTING} is not set, and no request is served without a token: {_HOW}")
    return file


def parse(text: str) -> list[Token]:
    """The tokens in the text of a file; raises `SettingsError`. It may have none: the last one was revoked."""
    try:
        tables = tomllib.loads(text)
        entries = TypeAdapter(dict[Annotated[str, Field(pattern=_NAME)], _Entry]).validate_python(tables)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where, words = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise SettingsError(f"{_SETTING}: {where}: {words}; {_HOW}") from None
    except ValueError as error:
        raise SettingsError(f"{_SETTING}: not TOML: {str(error).splitlines()[0]}") from None
    if len({entry.sha256 for entry in entries.values()}) < len(entries):
        raise SettingsError(f"{_SETTING} gives two names the same token: make one for each")
    return [Token(name=name, **entry.model_dump()) for name, entry in entries.items()]


def new_token(
    name: str, scopes: Sequence[str] = ("enqueue", "read"), accounts: Sequence[str] = (DEFAULT_ACCOUNT,),
    expires: datetime | None = None,
) -> tuple[str, str]:  # fmt: skip
    """A token, to be shown once, and the table for the file; raises `InvalidRequest`, `SettingsError`."""
    if not re.fullmatch(_NAME, name):
        raise InvalidRequest(f"the name {name!r} is not accepted: give letters, digits, - and _, at most 60")
    secret = secrets.token_urlsafe(32)
    table = (
        f'[{name}]\nsha256 = "{digest_of(secret)}"\n'
        f"scopes = {json.dumps(list(scopes))}\naccounts = {json.dumps(list(accounts))}\n"
    )
    if expires is not None:
        table += f"expires = {expires.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}\n"
    parse(table)
    return secret, table


def add(file: Path, name: str, table: str) -> None:
    """Append a token's table to the file, which is made if there is none; raises `InvalidRequest`."""

    def added(text: str) -> str:
        if any(token.name == name for token in parse(text)):
            raise InvalidRequest(f"there is a token {name!r} already: revoke it, or give this one another name")
        return text.rstrip("\n") + "\n\n" * bool(text.strip()) + table

    _edit(file, added, os.O_CREAT)


def remove(file: Path, name: str) -> None:
    """Take a token's table out of the file and keep the rest as it is; raises `InvalidRequest`."""

    def removed(text: str) -> str:
        tokens = parse(text)
        kept = [token for token in tokens if token.name != name]
        if kept == tokens:
            raise InvalidRequest(f"no token has the name {name!r}: `janitor tokens list` shows them")
        # Its lines up to the next table, without the comments above that one.
        its_lines = rf'^\[(["\']?){name}\1\].*\n(?:.*\n)*?(?=(?:(?:#.*)?\n)*(?:\[|\Z))\n?'
        left = re.sub(its_lines, "", text.rstrip("\n") + "\n", flags=re.MULTILINE)
        if parse(left) != kept:
            raise InvalidRequest(f"the table [{name}] in the file cannot be told apart: remove it with an editor")
        return left

    _edit(file, removed)


def digest_of(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _edit(file: Path, edit: Callable[[str], str], flags: int = 0) -> None:
    """Overwrite the file if the result can be read; its owner, mode and links stay."""
    # Not replaced by another file: the service could then be left without the right to read it.
    with os.fdopen(os.open(file, os.O_RDWR | flags, 0o600), "r+", encoding="utf-8") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        text = edit(read_text(_SETTING, file))
        parse(text)
        _reserve(file, opened.fileno(), len(text.encode()))
        opened.seek(0)
        opened.write(text)
        opened.truncate()


def _reserve(file: Path, descriptor: int, size: int) -> None:
    """Raise `OSError` if the disk has no room: half a table would take all tokens from the service."""
    if sys.platform == "linux":
        try:
            os.posix_fallocate(descriptor, 0, max(size, 1))
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(file)) from None


def _stamp(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
