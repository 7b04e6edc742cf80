"""Celery's Redis result backend, which leaves a server that is no longer the master.

As it comes, Celery 5.7 takes READONLY for an error of the task: a result is lost, or raises in a pool thread.
"""

from typing import Any

import redis
from celery.backends.redis import RedisBackend

from worker.redis_url import following


class Backend(RedisBackend):
    """Writes results over connections that connect again after READONLY; Celery then tries again."""

    connparams: dict[str, Any]  # redis-py's options; not in Celery's stubs
    client: redis.Redis

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        base = self.connparams.get("connection_class", redis.Connection)
        self.connparams["connection_class"] = following(base, self._drop_idle)

    def _drop_idle(self) -> None:
        self.client.connection_pool.disconnect(inuse_connections=False)
