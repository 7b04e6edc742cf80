"""What `doctor` says of the server itself, by what the server tells."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

from worker.doctor.server import check_server

REDIS, VALKEY = "redis_version", "valkey_version"
TOLD = [
    ({REDIS: "6.0.16"}, "error", "Redis 6.0.16: 6.2 or newer is needed"),
    ({}, "error", "Redis of no known version: 6.2 or newer is needed"),  # a proxy, or a server that hides it
    ({REDIS: "7.0-rc"}, "warning", "7.2.11"),
    ({REDIS: "8.4.0-M1"}, "ok", ""),
    ({REDIS: "6.2.19"}, "warning", "6.2.20"),
    ({REDIS: "6.2.20"}, "ok", ""),
    ({REDIS: "7.0.15"}, "warning", "7.2.11"),  # a branch without a fix of its own
    ({REDIS: "7.2.10"}, "warning", "7.2.11"),
    ({REDIS: "7.4.6"}, "ok", ""),
    ({REDIS: "8.0.3"}, "warning", "8.0.4"),
    ({REDIS: "8.2.2"}, "ok", ""),
    ({REDIS: "8.4.0"}, "ok", ""),
    ({REDIS: "8.2.2", "cluster_enabled": 1}, "error", "Redis 8.2.2: this is a Redis Cluster"),
    ({REDIS: "7.2.4", VALKEY: "7.2.10"}, "warning", "7.2.11"),
    ({REDIS: "7.2.4", VALKEY: "8.0.5"}, "warning", "8.0.6"),
    ({REDIS: "7.2.4", VALKEY: "8.1.4"}, "ok", ""),
    ({REDIS: "7.2.4", VALKEY: "9.1.2"}, "ok", ""),
]


def findings(told, appendfsync="always"):
    """What is found of a server that tells this; it hides the settings that are None."""
    info = {"maxmemory_policy": "noeviction", "aof_enabled": 1, **told}
    config = {"appendfsync": appendfsync, "timeout": "0"}
    client: Any = SimpleNamespace(info=lambda: info, ping=lambda: True, config_get=lambda _: config)
    return {finding.check: finding for finding in check_server(client)}


@pytest.mark.parametrize(
    ("appendfsync", "level"), [("always", "ok"), ("everysec", "warning"), ("no", "warning"), (None, "ok")]
)
def test_only_a_server_that_is_known_to_write_late_gives_a_warning(appendfsync, level):
    found = findings({REDIS: "8.4.0"}, appendfsync)["persistence"]
    assert found.level == level
    assert f"with fsync {appendfsync or 'not known here'}" in found.message


@pytest.mark.parametrize(("told", "level", "words"), TOLD)
def test_the_product_is_named_and_a_version_with_a_known_hole_gives_a_warning(told, level, words):
    # Given a server that tells this, and is set as it should be
    # When it is checked
    found = findings(told)
    # Then it goes by its own name and version, and a warning says what to use instead
    name = f"Valkey {told[VALKEY]}" if VALKEY in told else f"Redis {told.get(REDIS, '')}"
    if level == "warning":
        words = f"has CVE-2025-49844, .* unless your distribution has fixed it; use {words} or newer$"
    assert found["redis"].level == level
    assert found["redis"].message.startswith(name)
    assert re.search(words, found["redis"].message)
    assert {finding.level for check, finding in found.items() if check != "redis"} == {"ok"}
