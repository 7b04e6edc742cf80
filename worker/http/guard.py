"""Before every request: a known token is required, and a body is bounded in size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import Depends
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asgi

from worker.http.problems import problem
from worker.http.tokens import Scope, Token, find

BODY_SECONDS, MOST_BYTES = 30.0, 1 << 20
_OPEN = ("/healthz", "/readyz", "/openapi.json")
_bearer = HTTPBearer(auto_error=False, description="a token from the file JANITOR_TOKENS_FILE")


class Guard:
    """Refuses a request without a known token before anything of it is read."""

    def __init__(self, app: ASGIApp, tokens: Sequence[Token]) -> None:
        self._app = app
        self._tokens = tokens

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in _OPEN:
            kind, _, secret = Headers(scope=scope).get("Authorization", "").partition(" ")
            secret = secret.strip() if kind.lower() == "bearer" else ""
            token = find(self._tokens, secret) if secret else None
            if token is None:
                given = "a token that is not known" if secret else "no token"
                refusal = problem(
                    401, f"{given}: send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
                )
                return await refusal(scope, receive, send)
            scope["janitor.token"] = token
        return await self._app(scope, _bounded(receive) if scope["type"] == "http" else receive, send)


def needs(scope: Scope) -> Callable[..., Awaitable[Token]]:
    """A dependency: the caller's token, if it has `scope`."""

    async def caller(request: Request, _: Annotated[object, Depends(_bearer)]) -> Token:
        token: Token = request.scope["janitor.token"]
        if scope not in token.scopes:
            raise HTTPException(403, f"the token {token.name!r} lacks the scope {scope!r}: use one that has it")
        return token

    return caller


def check_accounts(caller: Token, accounts: Sequence[str]) -> None:
    """Raise a 403 if the token may not use one of these."""
    for account in accounts:
        if not caller.may_use(account):
            may = ", ".join(caller.accounts)
            raise HTTPException(403, f"the token {caller.name!r} may not use the account {account!r}: only {may}")


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
