"""Is this Redis fit to hold the ledger? Asked by `janitor doctor`, and by each worker when it starts."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import redis
from redis.exceptions import ResponseError

OLDEST = (6, 2)
# CVE-2025-49844: a Lua script can run any code in the server. The first version of each branch without it, as in
# the advisories of Redis and of Valkey (October 2025). Later branches never had it.
_HOLE = "CVE-2025-49844"
_FIXED = {
    "Redis": ((6, 2, 20), (7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
    "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4)),
}
_SLOW_SECONDS = 0.1  # a deletion needs two round trips, one to mark it and one to finish it
_SHORTEST_IDLE_SECONDS = 60  # connections are tried every 30 s

Level = Literal["ok", "warning", "error", "unreachable"]


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, how it is, and what to do if it is not ok."""

    check: str
    level: Level
    message: str


def judged(check: str, fact: str, *problems: tuple[object, Level, str]) -> Finding:
    """What was found, with the first problem that applies. problems: (whether it applies, level, what to do)."""
    for applies, level, advice in problems:
        if applies:
            return Finding(check, level, f"{fact}: {advice}")
    return Finding(check, "ok", fact)


def check_server(client: redis.Redis) -> Iterator[Finding]:
    """What Redis tells of itself. Raises redis-py's errors if it cannot be reached."""
    info: dict[str, Any] = client.info()
    yield _product(info)
    eviction = info.get("maxmemory_policy")
    yield judged(
        "eviction", f"maxmemory-policy is {eviction}",
        (eviction != "noeviction", "error", "records can be lost; set noeviction"),
    )  # fmt: skip
    yield _persistence(client, info)
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    yield judged(
        "memory", f"{used >> 20} of {limit >> 20} MiB used" if limit else f"{used >> 20} MiB used, no limit set",
        (limit and used > 0.7 * limit, "warning", "new deletions are refused when it is full; give it more"),
    )  # fmt: skip
    yield _timeouts(client)
    if replicas := int(info.get("connected_slaves", 0)):
        needed = _config(client, "min-replicas-to-write")
        # After a failover an old master accepts writes for some 10 s, unless it needs the replicas that it lost.
        yield judged(
            "replicas", f"replicas: {replicas}, min-replicas-to-write is {needed or 'not known'}",
            (needed == "0", "warning", "a failover loses what the old master still accepts; set it to 1"),
        )  # fmt: skip


def _product(info: dict[str, Any]) -> Finding:
    # As its redis_version, Valkey tells that of the Redis with which it is compatible.
    product = "Valkey" if "valkey_version" in info else "Redis"
    told = str(info.get(f"{product.lower()}_version", "of no known version"))
    version = tuple(map(int, re.findall(r"\d+", told)[:3]))
    fixed = next((first for first in _FIXED[product] if first[:2] >= version[:2]), version)
    return judged(
        "redis", f"{product} {told}",
        (version < OLDEST, "error", "6.2 or newer is needed"),
        (info.get("cluster_enabled"), "error", "this is a Redis Cluster: use a single Redis, or Sentinel"),
        (version < fixed, "warning",
         f"it has {_HOLE}, by which a script can run any code in the server, unless your distribution has fixed "
         f"it; use {'.'.join(map(str, fixed))} or newer"),
    )  # fmt: skip


def _persistence(client: redis.Redis, info: dict[str, Any]) -> Finding:
    is_on, sync = info.get("aof_enabled"), _config(client, "appendfsync") or "not known here"
    return judged(
        "persistence", f"the append-only file is {f'on, with fsync {sync}' if is_on else 'off'}",
        (not is_on, "error", "a restart loses the ledger; set appendonly yes and appendfsync always"),
        (info.get("aof_last_write_status", "ok") != "ok", "error",
         "it could not be written; is the disk of Redis full? its log says more"),
        (sync in ("everysec", "no"), "warning", "a crash of the host may lose a second; set appendfsync always"),
    )  # fmt: skip


def _timeouts(client: redis.Redis) -> Finding:
    began = time.monotonic()
    client.ping()
    seconds = time.monotonic() - began
    idle = int(_config(client, "timeout") or 0)
    return judged(
        "timeouts", f"an answer takes {seconds * 1000:.1f} ms",
        (seconds > _SLOW_SECONDS, "warning", "put the workers near Redis"),
        (0 < idle < _SHORTEST_IDLE_SECONDS, "warning",
         f"Redis closes connections that are idle for {idle}s; set timeout 0"),
    )  # fmt: skip


def _config(client: redis.Redis, name: str) -> str | None:
    try:
        return dict(client.config_get(name)).get(name)
    except ResponseError:  # a managed Redis hides its settings, or an ACL forbids the question
        return None
