"""Bearer tokens: who may call, and what each token may do. The body of a call is bounded in size and time.

The file holds only the SHA-256 of each token, so that reading it gives no access.
"""

import asyncio
import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

from fastapi import Depends
from fastapi.security import HTTPBearer
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asgi

from tasks.errors import InvalidRequest
from worker.http.problems import problem
from worker.settings import SettingsError, read_text

Scope = Literal["enqueue", "read", "admin"]
EVERY_ACCOUNT = "*"
BODY_SECONDS, MOST_BYTES = 30.0, 1 << 20
_OPEN = ("/healthz", "/readyz", "/openapi.json")
_NAME = r"^[A-Za-z0-9_-]{1,60}$"
_HOW = "`janitor serve --new-token NAME` makes a token and shows what the file must hold"
_bearer = HTTPBearer(auto_error=False, description="a token from the file JANITOR_TOKENS_FILE")


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

    def check_account(self, account: str) -> None:
        """Raise a 403 if it may not use this account."""
        if not self.may_use(account):
            only = ", ".join(self.accounts)
            raise HTTPException(403, f"the token {self.name!r} may not use the account {account!r}: only {only}")


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


def new_token(name: str) -> tuple[str, str]:
    """A token, to be shown once, and the table for the file; raises `InvalidRequest`."""
    if not re.fullmatch(_NAME, name):
        raise InvalidRequest(f"the name {name!r} is not accepted: give letters, digits, - and _, at most 60")
    secret = secrets.token_urlsafe(32)
    table = f'[{name}]\nsha256 = "{_digest(secret)}"\nscopes = ["enqueue", "read"]\naccounts = ["default"]'
    return secret, table


class Guard:
    """Refuses a request without a known token before anything of it is read."""

    def __init__(self, app: ASGIApp, tokens: Sequence[Token]) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            receive = _bounded(receive)
            if scope["path"] not in _OPEN:
                kind, _, secret = Headers(scope=scope).get("Authorization", "").partition(" ")
                secret = secret.strip() if kind.lower() == "bearer" else ""
                token = self._find(secret) if secret else None
                if token is None:
                    given = "a token that is not known" if secret else "no token"
                    words = f"{given}: send `Authorization: Bearer TOKEN`"
                    return await problem(401, words, {"WWW-Authenticate": "Bearer"})(scope, receive, send)
                scope["janitor.token"] = token
        return await self._app(scope, receive, send)

    def _find(self, secret: str) -> Token | None:
        """The token with this secret; the time it takes tells nothing about any of them."""
        digest = _digest(secret)
        matches = [token for token in self._tokens if hmac.compare_digest(token.sha256, digest)]
        return matches[0] if matches else None


def needs(scope: Scope) -> Callable[..., Awaitable[Token]]:
    """A dependency: the caller's token, if it has `scope`."""

    async def caller(request: Request, _: Annotated[object, Depends(_bearer)]) -> Token:
        token: Token = request.scope["janitor.token"]
        if scope not in token.scopes:
            raise HTTPException(403, f"the token {token.name!r} lacks the scope {scope!r}: use one that has it")
        return token

    return caller


Reader = Annotated[Token, Depends(needs("read"))]
Enqueuer = Annotated[Token, Depends(needs("enqueue"))]
Admin = Annotated[Token, Depends(needs("admin"))]


def _bounded(receive: Receive) -> Receive:
    """A client can neither fill the memory nor occupy the service by sending its body byte by byte."""
    until, left, whole = asyncio.get_running_loop().time() + BODY_SECONDS, MOST_BYTES, False

    async def receive_bounded() -> Message:
        nonlocal left, whole
        if whole:
            return await receive()
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise HTTPException(408, f"the body did not come within {BODY_SECONDS:g} seconds") from None
        whole = not message.get("more_body", False)
        left -= len(message.get("body", b""))
        if left < 0:
            raise HTTPException(
                413, f"the body has more than {MOST_BYTES} bytes: send fewer deletions in one call"
            )
        return message

    return receive_bounded


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
