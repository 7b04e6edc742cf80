"""taskiq on Redis streams, which acknowledge; results stored; aiohttp; its command uses uvloop."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from typing import Any

import uvloop
from redis import Redis
from taskiq_redis import RedisAsyncResultBackend, RedisStreamBroker

from bench import calls

URL = os.environ["REDIS_URL"]
broker = RedisStreamBroker(url=URL, consumer_id="0").with_result_backend(RedisAsyncResultBackend(redis_url=URL))
api = calls.Aio()
_AT_ONCE = 100


@cache
def loop() -> asyncio.Runner:
    """One for all producers of a process: the queue's connections belong to it."""
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


@broker.task(task_name="delete")
async def delete(finetune_id: str) -> dict[str, Any]:
    return await api.delete(finetune_id)


class Producer:
    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.keys: list[str] = []
        loop().run(broker.startup())

    def one_by_one(self, ids: list[str]) -> None:
        async def send() -> None:
            self.keys.extend([(await delete.kiq(one)).task_id for one in ids])

        loop().run(send())

    def many(self, ids: list[str]) -> None:
        """There is no bulk call: many at once."""

        async def send() -> None:
            for start in range(0, len(ids), _AT_ONCE):
                sent = await asyncio.gather(*(delete.kiq(one) for one in ids[start : start + _AT_ONCE]))
                self.keys.extend(task.task_id for task in sent)

        loop().run(send())

    def done(self) -> int:
        return int(self.client.exists(*self.keys))


producer = Producer
