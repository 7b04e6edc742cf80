"""saq with aiohttp and uvloop; a job is its own result."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from typing import Any

import uvloop
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from saq.queue.redis import RedisQueue

from bench import calls
from bench.lives import THREADS

uvloop.install()
queue = RedisQueue(AsyncRedis.from_url(os.environ["REDIS_URL"]))
api = calls.Aio()
_AT_ONCE = 100


@cache
def loop() -> asyncio.Runner:
    """One for all producers of a process: the queue's connections belong to it."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


async def delete(_: Any, *, finetune_id: str) -> dict[str, Any]:
    return await api.delete(finetune_id)


settings = {"queue": queue, "functions": [delete], "concurrency": THREADS}


class Producer:
    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.sent = 0
        loop().run(queue.connect())

    def one_by_one(self, ids: list[str]) -> None:
        async def send() -> None:
            for one in ids:
                await queue.enqueue("delete", finetune_id=one)

        loop().run(send())
        self.sent += len(ids)

    def many(self, ids: list[str]) -> None:
        """There is no bulk call: many at once."""

        async def send() -> None:
            for start in range(0, len(ids), _AT_ONCE):
                some = ids[start : start + _AT_ONCE]
                await asyncio.gather(*(queue.enqueue("delete", finetune_id=one) for one in some))

        loop().run(send())
        self.sent += len(ids)

    def done(self) -> int:
        return self.sent - int(self.client.zcard("saq:default:incomplete"))


producer = Producer
