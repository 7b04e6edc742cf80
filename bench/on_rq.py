"""rq with a pool of workers that do not fork for each job."""

from __future__ import annotations

from typing import Any

from redis import Redis
from rq import Queue

from bench import calls


def delete(finetune_id: str) -> dict[str, Any]:
    return calls.prepared(finetune_id)


class Producer:
    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.queue = Queue("default", connection=self.client)

    def one_by_one(self, ids: list[str]) -> None:
        for one in ids:
            self.queue.enqueue(delete, one)

    def many(self, ids: list[str]) -> None:
        self.queue.enqueue_many([Queue.prepare_data(delete, (one,)) for one in ids])

    def done(self) -> int:
        return int(self.client.zcard("rq:finished:default"))


producer = Producer
