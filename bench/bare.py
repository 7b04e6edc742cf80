"""The limit: no queue, no record. Each process takes a list of ids, its threads walk it and call."""

from __future__ import annotations

import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import redis

from bench import calls

PROCESSES = 2


class Bare:
    def __init__(self, url: str) -> None:
        self.client = redis.Redis.from_url(url)

    def one_by_one(self, ids: list[str]) -> None:
        self.many(ids)

    def many(self, ids: list[str]) -> None:
        for n in range(PROCESSES):
            self.client.rpush("bare", json.dumps(ids[n::PROCESSES]))

    def done(self) -> int:
        count: bytes | None = self.client.get("bare:done")  # type: ignore[assignment]
        return int(count or 0)


def serve(threads: int, call_name: str) -> None:
    client = redis.Redis.from_url(os.environ["REDIS_URL"])
    call = getattr(calls, call_name)

    def walk(ids: list[str]) -> None:
        while True:
            try:
                finetune_id = ids.pop()
            except IndexError:
                return
            call(finetune_id)

    with ThreadPoolExecutor(threads) as pool:
        while True:
            ids: list[str] = json.loads(client.blpop(["bare"])[1])  # type: ignore[index]
            count = len(ids)
            for walking in [pool.submit(walk, ids) for _ in range(threads)]:
                walking.result()
            client.incrby("bare:done", count)


producer = Bare

if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2])
