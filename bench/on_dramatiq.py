"""dramatiq on Redis, with its result backend; it acknowledges after the work."""

from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from redis import Redis

from bench import calls

broker = RedisBroker(url=os.environ["REDIS_URL"])
results = RedisBackend(url=os.environ["REDIS_URL"])
broker.add_middleware(Results(backend=results))
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def delete(finetune_id: str) -> dict[str, Any]:
    return calls.prepared(finetune_id)


class Producer:
    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.keys: list[str] = []

    def one_by_one(self, ids: list[str]) -> None:
        self.keys += [results.build_message_key(delete.send(one)) for one in ids]

    def many(self, ids: list[str]) -> None:
        sent = dramatiq.group(delete.message(one) for one in ids).run()
        self.keys += [results.build_message_key(message) for message in sent.children]

    def done(self) -> int:
        return int(self.client.exists(*self.keys))


producer = Producer
