"""Is this Redis fit to hold what must not be lost? Asked by `janitor doctor`, and by each worker as it starts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import redis
from redis.exceptions import ResponseError

OLDEST = (6, 2)


class Finding(NamedTuple):
    """One line: what was checked, how it is, and what to do where it is not ok."""

    check: str
    level: Literal["ok", "warning", "error", "unreachable"]
    message: str


def check_server(client: redis.Redis) -> Iterator[Finding]:
    """What can be known of a Redis from outside. Raises redis-py's errors where it cannot be reached."""
    info: dict[str, Any] = client.info()
    version = str(info["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        yield Finding("redis", "error", f"version {version}: 6.2 or newer is needed")
    elif info.get("cluster_enabled"):
        yield Finding("redis", "error", "this is a Redis Cluster: use a single Redis")
    else:
        yield Finding("redis", "ok", f"version {version}")
    yield _eviction(info)
    yield _persistence(client, info)
    yield _memory(info)


def _eviction(info: dict[str, Any]) -> Finding:
    policy = info.get("maxmemory_policy")
    if policy == "noeviction":
        return Finding("eviction", "ok", "maxmemory-policy is noeviction")
    return Finding("eviction", "error", f"maxmemory-policy is {policy}, so records could vanish: set noeviction")


def _persistence(client: redis.Redis, info: dict[str, Any]) -> Finding:
    if not info.get("aof_enabled"):
        what = "the append-only file is off, so a restart forgets: set appendonly yes and appendfsync always"
        return Finding("persistence", "error", what)
    try:
        policy = dict(client.config_get("appendfsync")).get("appendfsync")
    except ResponseError:  # a managed Redis may hide its settings
        policy = None
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
