"""Bearer tokens and what each may do. The file holds only their SHA-256, so that reading it gives no access."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from tasks.errors import InvalidRequest
from worker.settings import SettingsError, read_text

Scope = Literal["enqueue", "read", "admin"]
EVERY_ACCOUNT = "*"
_NAME = r"^[A-Za-z0-9_-]{1,60}$"
_HOW = "`janitor serve --new-token NAME` makes a token and shows what the file must hold"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    scopes: tuple[Scope, ...] = Field(min_length=1)
    accounts: tuple[Annotated[str, Field(pattern=r"^(\*|[a-z0-9_]{1,40})$")], ...] = Field(min_length=1)


class Token(_Entry):
    """One token; its name is `requested_by` in the records."""

    name: str

    @property
    def limited_to(self) -> tuple[str, ...]:
        """The accounts it may see and use; empty if that is all of them."""
        return () if EVERY_ACCOUNT in self.accounts else self.accounts

    def may_use(self, account: str) -> bool:
        return not self.limited_to or account in self.limited_to


def read_tokens(file: Path | None) -> list[Token]:
    """The tokens in `file`; raises `SettingsError` with one line if there is none, or one is not right."""
    if file is None:
        raise SettingsError(f"JANITOR_TOKENS_FILE is not set, and no request is served without a token: {_HOW}")
    text = read_text("JANITOR_TOKENS_FILE", file)
    try:
        tables = tomllib.loads(text)
        entries = TypeAdapter(dict[Annotated[str, Field(pattern=_NAME)], _Entry]).validate_python(tables)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise SettingsError(f"JANITOR_TOKENS_FILE: {where}: {first['msg']}; {_HOW}") from None
    except ValueError as error:
        raise SettingsError(f"JANITOR_TOKENS_FILE: not TOML: {str(error).splitlines()[0]}") from None
    if not entries:
        raise SettingsError(f"JANITOR_TOKENS_FILE names a file that holds no token: {_HOW}")
    if len({entry.sha256 for entry in entries.values()}) < len(entries):
        raise SettingsError("JANITOR_TOKENS_FILE gives two names the same token: make one for each")
    return [Token(name=name, **entry.model_dump()) for name, entry in entries.items()]


def find(tokens: Sequence[Token], secret: str) -> Token | None:
    """The token with this secret; the time it takes tells nothing about any of them."""
    digest = _digest(secret)
    matches = [token for token in tokens if hmac.compare_digest(token.sha256, digest)]
    return matches[0] if matches else None


def new_token(name: str) -> tuple[str, str]:
    """A token, to be shown once, and the table for the file; raises `InvalidRequest`."""
    if not re.fullmatch(_NAME, name):
        raise InvalidRequest(f"the name {name!r} is not accepted: give letters, digits, - and _, at most 60")
    secret = secrets.token_urlsafe(32)
    table = f'[{name}]\nsha256 = "{_digest(secret)}"\nscopes = ["enqueue", "read"]\naccounts = ["default"]'
    return secret, table


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
