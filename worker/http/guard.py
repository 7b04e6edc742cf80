"""Who may call: a token, its scopes and its quota of requests. Its calls are bounded in number, size and time."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated

from fastapi import Depends
from fastapi.concurrency import run_in_threadpool
from fastapi.security import HTTPBearer
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as Asgi

from tasks.durations import iso
from tasks.errors import LedgerUnavailable
from worker.http.problems import problem
from worker.http.quotas import Quotas
from worker.http.strict import ambiguous
from worker.http.tokens import Scope, Token, TokenFile

BODY_SECONDS, MOST_BYTES = 30.0, 1 << 20
LARGE_BYTES, MOST_LARGE = 1 << 16, 8
MOST_QUERY = 1 << 14  # bytes: two texts of 500 characters fit, at most twelve bytes for each character
# Calls that one token may have in progress, of 40 threads, and how long the next one waits for a place.
MOST_CALLS, PLACE_SECONDS = 8, 10.0
_OPEN = ("/healthz", "/readyz", "/openapi.json")
_NOT_COUNTED = ("/metrics",)  # metrics must work while Redis is away, which is where requests are counted
_bearer = HTTPBearer(auto_error=False, description="a token from the file JANITOR_TOKENS_FILE")


class Guard:
    """Refuses a request without a known token, or over its quota, before anything of it is read."""

    def __init__(self, app: ASGIApp, tokens: TokenFile, quotas: Quotas) -> None:
        self._app, self._tokens, self._quotas = app, tokens, quotas
        # A body of a thousand deletions takes ten times its size while it is worked on.
        self._places = asyncio.Semaphore(MOST_LARGE)
        # Of each token: its own long lists and slow bodies must not hold up others.
        self._calls: defaultdict[str, asyncio.Semaphore] = defaultdict(lambda: asyncio.Semaphore(MOST_CALLS))

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        async with AsyncExitStack() as place:

            async def send_out(message: Message) -> None:
                await place.aclose()  # a client that reads slowly holds no place
                await send(message)

            scope["janitor.place"] = place  # a long poll gives it back while it waits
            if scope["path"] not in _OPEN and (refusal := await self._refusal(scope, place)):
                return await refusal(scope, receive, send_out)

            async def take_large() -> None:
                if scope["method"] == "POST":  # no other call takes a body, and a long poll would keep the place
                    await place.enter_async_context(self._places)

            return await self._app(scope, _bounded(receive, take_large), send_out)

    async def _refusal(self, scope: Asgi, place: AsyncExitStack) -> Response | None:
        kind, _, secret = Headers(scope=scope).get("Authorization", "").partition(" ")
        secret = secret.strip() if kind.lower() == "bearer" else ""
        token = self._tokens.find(secret) if secret else None
        if token is None or token.has_expired:
            given = "a token that is not known" if secret else "no token"
            given = f"a token that expired at {iso(token.expires)}" if token else given
            return problem(401, f"{given}: send `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"})
        scope["janitor.token"] = token
        if len(scope["query_string"]) > MOST_QUERY:
            return problem(422, f"the query has more than {MOST_QUERY} bytes: send a shorter one")
        if why := ambiguous(scope):
            return problem(422, why)
        over = None if scope["path"] in _NOT_COUNTED else await self._count(token)
        return over or await self._take_place(token, place)

    async def _take_place(self, token: Token, place: AsyncExitStack) -> Response | None:
        try:
            async with asyncio.timeout(PLACE_SECONDS):
                await place.enter_async_context(self._calls[token.name])
        except TimeoutError:
            words = f"{MOST_CALLS} calls of the token {token.name!r} are being worked on, no more at a time"
            return problem(429, f"{words}: call again when they are answered", {"Retry-After": "5"})
        return None

    async def _count(self, token: Token) -> Response | None:
        try:
            seconds = await run_in_threadpool(self._quotas.count_request, token.name)
        except LedgerUnavailable as error:
            return problem(503, str(error))
        if seconds is None:
            return None
        most = self._quotas.requests_per_minute
        words = f"the token {token.name!r} has made {most} requests in this minute, which is its quota"
        return problem(429, f"{words}: call again in {seconds} s", {"Retry-After": str(seconds)})


def check_account(caller: Token, account: str) -> None:
    """Raise a 403 if the token may not use this account."""
    if not caller.may_use(account):
        only = ", ".join(caller.accounts)
        raise HTTPException(403, f"the token {caller.name!r} may not use the account {account!r}: only {only}")


def needs(*scopes: Scope, all_accounts: bool = False) -> Callable[..., Awaitable[Token]]:
    """A dependency: the caller's token, if it has one of these scopes, and all accounts if they are needed."""

    async def caller(request: Request, _: Annotated[object, Depends(_bearer)]) -> Token:
        token: Token = request.scope["janitor.token"]
        if not set(scopes) & set(token.scopes):
            names = " or ".join(map(repr, scopes))
            raise HTTPException(403, f"the token {token.name!r} lacks the scope {names}: use one that has it")
        if all_accounts and token.limited_to:
            words = f"the token {token.name!r} is limited to some accounts"
            raise HTTPException(403, f"{words}, and this is about all of them: use one for all accounts")
        return token

    return caller


Reader = Annotated[Token, Depends(needs("read"))]
Enqueuer = Annotated[Token, Depends(needs("enqueue"))]
Admin = Annotated[Token, Depends(needs("admin"))]
ReaderOfAll = Annotated[Token, Depends(needs("read", all_accounts=True))]
AdminOfAll = Annotated[Token, Depends(needs("admin", all_accounts=True))]
# What is asked for with `enqueue` may be seen and withdrawn with it: see `Token.may`.
Follower = Annotated[Token, Depends(needs("read", "enqueue"))]
Canceller = Annotated[Token, Depends(needs("enqueue", "admin"))]


def _bounded(receive: Receive, place: Callable[[], Awaitable[None]]) -> Receive:
    """A client can neither fill the memory nor occupy the service by sending its body byte by byte.

    place: waits until a large body, which has come whole, may be worked on.
    """
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
        if whole and left < MOST_BYTES - LARGE_BYTES:
            await place()
        return message

    return receive_bounded
