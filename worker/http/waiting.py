"""Long polls: the ledger is asked once for all of them, so that a thousand cost little more than one."""

import asyncio
from collections import defaultdict
from contextlib import suppress

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request

from tasks.errors import LedgerUnavailable
from tasks.ledger import Ledger
from tasks.ledger.queries import ended

_EVERY_SECONDS = 0.25


class Waiting:
    """The clients that wait, by deletion. All of it runs in one event loop, so nothing here is locked."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiters: defaultdict[str, set[asyncio.Future[None]]] = defaultdict(set)
        self._poller: asyncio.Task[None] | None = None
        self._thread = CapacityLimiter(1)  # of its own: accepting must not wait for long polls
        self._stopped = False

    async def for_end(self, deletion_id: str, seconds: float, request: Request) -> bool:
        """Return once it has ended, after `seconds`, or when the client goes away or the service stops.

        Whether asking again makes sense: false if the client is gone or the service stops.
        """
        if self._stopped:
            return False
        end, gone = asyncio.get_running_loop().create_future(), asyncio.ensure_future(_gone(request))
        self._waiters[deletion_id].add(end)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll())
        try:
            await asyncio.wait({end, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done() and not self._stopped
        finally:
            gone.cancel()
            self._waiters[deletion_id].discard(end)
            if not self._waiters[deletion_id]:
                del self._waiters[deletion_id]

    def stop(self) -> None:
        """Answer all of them now: open long polls would delay the end of the service."""
        self._stopped = True
        self._answer(set(self._waiters))

    async def _poll(self) -> None:
        while self._waiters:
            await asyncio.sleep(_EVERY_SECONDS)
            try:
                found = await to_thread.run_sync(ended, self._ledger, list(self._waiters), limiter=self._thread)
            except LedgerUnavailable:
                continue  # it may be back before their time is over
            self._answer(found)

    def _answer(self, ids: set[str]) -> None:
        for end in [end for id_ in ids & self._waiters.keys() for end in self._waiters[id_]]:
            if not end.done():
                end.set_result(None)


async def _gone(request: Request) -> None:
    with suppress(HTTPException):  # a body, which has no use here, was too large or too slow
        while (await request.receive())["type"] != "http.disconnect":
            pass
