"""Quotas of each token, counted in Redis for all processes of the service: requests a minute, open deletions."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from redis.exceptions import ResponseError
from starlette.exceptions import HTTPException

from tasks.ledger import Ledger
from tasks.ledger.queries import each, ended
from tasks.ledger.redis_errors import unavailable

_MINUTE, _LOOK_AGAIN_SECONDS, _AT_ONCE = 60, 10, 500
_KEPT = timedelta(days=30)  # since the token last asked for something


@dataclass(frozen=True)
class Quotas:
    """What each token may do. now: seconds since the epoch, for tests. All raise `LedgerUnavailable`."""

    ledger: Ledger
    requests_per_minute: int
    open_deletions: int
    now: Callable[[], float] = time.time

    def count_request(self, token: str) -> int | None:
        """Count a request; if there were too many in this minute, the seconds until the next one."""
        minute, second = divmod(int(self.now()), _MINUTE)
        key = self.ledger.keys.token_requests(token, minute)
        with unavailable(), self.ledger.client.pipeline(transaction=False) as pipe:
            try:
                pipe.incr(key)
                pipe.expire(key, _MINUTE)
                count, _ = pipe.execute()
            except ResponseError:
                return None  # Redis is full or read-only: reads and cancels go on
        return _MINUTE - second if count > self.requests_per_minute else None

    def reserve(self, token: str, ids: Sequence[str]) -> None:
        """Count these deletions as open, before they are accepted; raises a 429 if there would be too many.

        What has ended is looked for only when the quota is reached, and each deletion at most once in ten seconds:
        most calls cost little, and so do refusals. One that was reserved and then not accepted counts until the
        next such look.
        """
        key, now = self.ledger.keys.token_open(token), int(self.now())
        with self.ledger.redis.pipeline(transaction=False) as pipe:
            # Before they are written: two calls at the same time must not both find room.
            for id_ in ids:
                pipe.zadd(key, {id_: now}, nx=True)
            pipe.expire(key, _KEPT)
            pipe.zcard(key)
            *added, _, count = pipe.execute()
        if count <= self.open_deletions or self._forget_ended(key, now) <= self.open_deletions:
            return
        known = each(self.ledger, ids, lambda pipe, id_: pipe.exists(self.ledger.keys.deletion(id_)))
        new = [id_ for id_, is_known in zip(ids, known, strict=True) if not is_known]
        if not new:
            return  # the same call again: it gets the same answer
        # Not what another call under the same key has reserved and is about to write.
        if ours := [id_ for id_, is_added in zip(ids, added, strict=True) if is_added and id_ in new]:
            self.ledger.redis.zrem(key, *ours)
        words = f"{len(new)} more deletions would be too many unfinished ones for the token {token!r}"
        raise HTTPException(
            429, f"{words}, whose quota is {self.open_deletions}: wait until some have ended, or cancel some",
            {"Retry-After": str(_LOOK_AGAIN_SECONDS)},
        )  # fmt: skip

    def _forget_ended(self, key: str, now: int) -> int:
        """How many are left without those that have ended, or that were never written."""
        redis: Any = self.ledger.redis
        while True:
            ids = redis.zrangebyscore(key, "-inf", now - _LOOK_AGAIN_SECONDS, 0, _AT_ONCE)
            gone = ended(self.ledger, ids)
            with redis.pipeline(transaction=False) as pipe:
                for id_ in ids:
                    pipe.zrem(key, id_) if id_ in gone else pipe.zadd(key, {id_: now}, xx=True)
                *_, count = pipe.zcard(key).execute()
            if not ids:
                return int(count)
