"""Is this Redis fit to hold the ledger? Asked by `janitor doctor`, and by each worker when it starts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import redis
from redis.exceptions import ResponseError

OLDEST = (6, 2)
_SLOW_SECONDS = 0.1  # a deletion needs two round trips, one to mark it and one to finish it
_SHORTEST_IDLE_SECONDS = 60  # connections are tried every 30 s


class Finding(NamedTuple):
    """One line: what was checked, how it is, and what to do if it is not ok."""

    check: str
    level: Literal["ok", "warning", "error", "unreachable"]
    message: str


def check_server(client: redis.Redis) -> Iterator[Finding]:
    """What Redis tells of itself. Raises redis-py's errors if it cannot be reached."""
    info: dict[str, Any] = client.info()
    version = str(info["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        yield Finding("redis", "error", f"version {version}: 6.2 or newer is needed")
    elif info.get("cluster_enabled"):
        yield Finding("redis", "error", "this is a Redis Cluster: use a single Redis, or Sentinel")
    else:
        yield Finding("redis", "ok", f"version {version}")
    yield _eviction(info)
    yield _persistence(client, info)
    yield _memory(info)
    yield _timeouts(client)
    if int(info.get("connected_slaves", 0)):
        yield _replicas(client, int(info["connected_slaves"]))


def _eviction(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy is noeviction")
    return Finding("eviction", "error", f"maxmemory-policy is {policy}, so records could vanish: set noeviction")


def _persistence(client: redis.Redis, info: dict[str, Any]) -> Finding:
    if not info.get("aof_enabled"):
        what = (
            "the append-only file is off, so a restart loses the ledger: set appendonly yes and appendfsync always"
        )
        return Finding("persistence", "error", what)
    if info.get("aof_last_write_status", "ok") != "ok":
        what = "the append-only file could not be written: is the disk of Redis full? its log says more"
        return Finding("persistence", "error", what)
    policy = _config(client, "appendfsync")
    if policy == "always":
        return Finding("persistence", "ok", "the append-only file is on, with fsync always")
    what = f"appendfsync is {policy or 'not known'}: a crash of the host may lose a second; set it to always"
    return Finding("persistence", "warning", what)


def _memory(info: dict[str, Any]) -> Finding:
    limit, used = int(info.get("maxmemory", 0)), int(info["used_memory"])
    if not limit:
        return Finding("memory", "ok", f"{used >> 20} MiB used, no limit set")
    text = f"{used >> 20} of {limit >> 20} MiB used"
    if used > 0.7 * limit:
        return Finding("memory", "warning", f"{text}: new deletions are refused when it is full; give it more")
    return Finding("memory", "ok", text)


def _timeouts(client: redis.Redis) -> Finding:
    began = time.monotonic()
    client.ping()
    seconds = time.monotonic() - began
    idle = int(_config(client, "timeout") or 0)
    text = f"an answer takes {seconds * 1000:.1f} ms"
    if seconds > _SLOW_SECONDS:
        return Finding("timeouts", "warning", f"{text}: put the workers near Redis")
    if 0 < idle < _SHORTEST_IDLE_SECONDS:
        return Finding(
            "timeouts", "warning", f"{text}, but Redis closes connections that are idle for {idle}s: set timeout 0"
        )
    return Finding("timeouts", "ok", text)


def _replicas(client: redis.Redis, count: int) -> Finding:
    """After a failover an old master accepts writes for some 10 s, unless it needs the replicas that it lost."""
    needed = _config(client, "min-replicas-to-write")
    text = f"replicas: {count}, min-replicas-to-write is {needed or 'not known'}"
    if needed == "0":
        return Finding(
            "replicas", "warning", f"{text}: a failover loses what the old master still accepts; set it to 1"
        )
    return Finding("replicas", "ok", text)


def _config(client: redis.Redis, name: str) -> str | None:
    try:
        return dict(client.config_get(name)).get(name)
    except ResponseError:  # a managed Redis hides its settings, or an ACL forbids the question
        return None
