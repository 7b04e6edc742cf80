"""What the ledger needs of its server: data that this version can read, and room to write."""

from typing import Any

import redis
from redis.exceptions import NoPermissionError

from tasks.errors import LedgerFull, LedgerUnavailable, WrongLedger
from tasks.ledger.keys import SCHEMA

_LEAST_FREE = 16 << 20  # bytes


def check_schema(client: redis.Redis, key: str) -> None:
    """Raise `WrongLedger` if another version wrote the ledger; note ours if nobody did. key: of the schema.

    A user of Redis that may only read, as beat's and the exporter's, leaves the note to others.
    """
    found: Any = client.get(key)
    if found is None:
        if client.exists("janitor:accounts"):
            raise WrongLedger(
                "this Redis holds a ledger of finetune-janitor 0.1, which this version cannot read: "
                "use another Redis database, or delete the keys janitor:*"
            )
        try:
            client.set(key, SCHEMA, nx=True)
        except LedgerUnavailable as error:
            if not isinstance(error.__cause__, NoPermissionError):
                raise
        return
    if int(found) > SCHEMA:
        raise WrongLedger(
            f"the ledger has schema {found}, and this version reads up to {SCHEMA}: "
            "install the newer version here, too"
        )


def check_room(client: redis.Redis) -> None:
    """Raise `LedgerFull` if less memory is free than `free_memory` wants."""
    free, least = free_memory(client)
    if free is not None and free < least:
        raise LedgerFull(
            f"Redis has {max(free, 0) >> 10} KiB of memory left, and {least >> 10} KiB are kept for what was "
            "accepted before: give it more memory (maxmemory) and send this again"
        )


def free_memory(client: redis.Redis) -> tuple[int | None, int]:
    """(bytes left, bytes that must stay free); None if Redis has no limit, or evicts instead of refusing."""
    found: Any = client.info("memory")
    limit = int(found.get("maxmemory") or 0)
    if not limit or found.get("maxmemory_policy") != "noeviction":
        return None, 0
    return limit - int(found["used_memory"]), min(_LEAST_FREE, limit // 10)
