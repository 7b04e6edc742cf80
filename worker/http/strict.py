"""What a call may not be given: what would be read as something else, or be ignored."""

import json
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes

from fastapi import Request
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Scope

from tasks.errors import InvalidRequest
from tasks.text import shown


def ambiguous(scope: Scope) -> str | None:
    """Why it cannot be told what is meant, None if it can.

    What is not UTF-8 would be read as another name, and of what is given twice the last one would count.
    """
    try:
        for part in (scope.get("raw_path") or b"", scope["query_string"]):
            unquote_to_bytes(part.decode("ascii")).decode()
    except UnicodeDecodeError:
        return "the path or the query is not UTF-8: percent-encode names as UTF-8, such as %C3%A9 for \u00e9"
    if scope["method"] != "POST":  # filters of lists may be repeated
        return None
    names = [name for name, _ in parse_qsl(scope["query_string"].decode(), keep_blank_values=True)]
    names += ["Idempotency-Key"] * len(Headers(scope=scope).getlist("Idempotency-Key"))
    twice = _repeated(names)
    return None if twice is None else f"{shown(twice)} is given twice: give it once"


async def no_body(request: Request) -> None:
    """For calls that are given all in the query. A body would be ignored, and the defaults used in its place."""
    try:
        body = await request.body()
    except ClientDisconnect:  # else it is logged as a bug
        raise HTTPException(400, "the client left before its body came") from None
    if body not in (b"", b"{}"):
        raise InvalidRequest("this call takes no body: give all in the query, such as ?account=emea")


async def no_query(request: Request) -> None:
    """For the call that is given all in the body. A query would be ignored likewise."""
    if request.query_params:
        raise InvalidRequest("this call takes no query: give all in the body, such as the account")


class StrictRoute(APIRoute):
    """Refuses a JSON body that has a key twice in one object: which of the two is meant cannot be told."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return handle_strictly


class _StrictRequest(Request):
    async def json(self) -> Any:
        return json.loads(await self.body(), object_pairs_hook=_without_repeats)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = _repeated(name for name, _ in pairs)
    if twice is not None:
        raise HTTPException(422, f"the body has {shown(twice)} twice in one object: give it once")
    return dict(pairs)


def _repeated(names: Iterable[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)
