"""Stock Celery: acknowledged late, the result stored, prefetching as its documentation advises for short tasks."""

from __future__ import annotations

import os
from typing import Any

from celery import Celery, group
from redis import Redis

from bench import calls
from worker.redis_url import celery_url

URL = celery_url(os.environ["REDIS_URL"])
app = Celery("bench.on_celery", broker=URL, backend=URL, set_as_current=False)
app.conf.update(task_acks_late=True, worker_prefetch_multiplier=16, broker_connection_retry_on_startup=True)


@app.task(name="delete")
def delete(finetune_id: str) -> dict[str, Any]:
    return calls.prepared(finetune_id)


class Producer:
    def __init__(self, url: str) -> None:
        self.client = Redis.from_url(url)
        self.keys: list[str] = []

    def one_by_one(self, ids: list[str]) -> None:
        self.keys += [f"celery-task-meta-{delete.delay(one).id}" for one in ids]

    def many(self, ids: list[str]) -> None:
        sent: Any = group(delete.s(one) for one in ids).apply_async()
        self.keys += [f"celery-task-meta-{result.id}" for result in sent.results]

    def done(self) -> int:
        return int(self.client.exists(*self.keys))


producer = Producer
