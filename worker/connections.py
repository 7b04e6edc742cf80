"""Redis: which one, and how every connection to it is bounded in time."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, urlencode, urlsplit, urlunsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from tasks.claims import Terms
from tasks.errors import LedgerUnavailable
from worker import sentinel
from worker.settings import Settings, SettingsError, read_text

CONNECT_SECONDS = 2.0
SOCKET_SECONDS = 10.0
# A script takes milliseconds; a worker that is to stop waits for one answer twice at most.
LEDGER_SECONDS, LEDGER_RETRIES = 4.0, 1
ACCEPTED = (
    "give redis://[user:password@]host[:port]/db, rediss://..., unix:///path?db=0 or "
    "sentinel://host:26379,host:26379/db?service=NAME"
)


def redis_url(settings: Settings) -> str:
    """`REDIS_URL`, or the Redis of a running `janitor up`; raises `LedgerUnavailable` where there is neither."""
    if settings.redis_url is not None:
        return with_password(checked_url(settings.redis_url.get_secret_value()), settings.redis_password_file)
    from worker.embedded import find_running  # noqa: PLC0415 -- only where no other Redis is named

    url = find_running(settings.state_dir)
    if url is None:
        raise LedgerUnavailable(
            f"no Redis: REDIS_URL is not set and no `janitor up` runs in {settings.state_dir}; do one of the two"
        )
    return url


def checked_url(url: str) -> str:
    """`url` if redis-py and Celery can both use it; raises `SettingsError`, without the password."""
    try:
        if sentinel.is_sentinel(url):
            sentinel.parse(url)
            return url
        parts = urlsplit(url)
        at_host = parts.scheme in ("redis", "rediss") and parts.hostname and parts.port != 0
        fine = bool(at_host and re.fullmatch(r"(/\d*)?", parts.path))
        fine = fine or bool(parts.scheme == "unix" and parts.path)
    except ValueError:
        fine = False
    if not fine:
        raise SettingsError(f"REDIS_URL is not a URL of a Redis: {ACCEPTED}")
    return url


def with_password(url: str, file: Path | None) -> str:
    """`url` with the password that `file` holds, so that a secret stays a file; raises `SettingsError`."""
    if file is None:
        return url
    parts = urlsplit(url)
    if parts.password:
        raise SettingsError("REDIS_URL and REDIS_PASSWORD_FILE both give a password: keep one of them")
    password = read_text("REDIS_PASSWORD_FILE", file).strip()
    _, _, place = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{parts.username or ''}:{quote(password, safe='')}@{place}"))


def connect(url: str, *, patient: bool = True) -> redis.Redis:
    """A client of the ledger. patient: for workers, which ride out a short absence; commands say so at once.

    Every script can be sent again: `tasks.ledger` has each one recognise its repetition.
    """
    retries = Retry(ExponentialBackoff(cap=0.5, base=0.05), LEDGER_RETRIES if patient else 0)
    timeouts: dict[str, Any] = {"socket_timeout": LEDGER_SECONDS if patient else CONNECT_SECONDS}
    if not url.startswith("unix"):
        timeouts |= {"socket_connect_timeout": CONNECT_SECONDS, "socket_keepalive": True}
    make = sentinel.master if sentinel.is_sentinel(url) else redis.Redis.from_url
    return make(url, decode_responses=True, retry=retries, health_check_interval=30 if patient else 0, **timeouts)


def terms(settings: Settings) -> Terms:
    """The ledger's durations, from the settings."""
    return Terms(
        lease=settings.lease,
        call_deadline=settings.call_deadline,
        give_up_after=settings.give_up_after,
        retention=settings.retention,
    )


def celery_options(url: str) -> dict[str, Any]:
    """What Celery has to be told beside the URL, as transport options of broker and result backend."""
    return sentinel.transport_options(url) if sentinel.is_sentinel(url) else {}


def celery_url(url: str) -> str:
    """redis-py's URL as Celery takes it: `unix:///path?db=1` becomes `redis+socket:///path?virtual_host=1`."""
    if sentinel.is_sentinel(url):
        return sentinel.celery_url(url)
    parts = urlsplit(url)
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    if parts.scheme == "unix":
        login = parts.netloc if parts.netloc.endswith("@") else ""
        if "password" in options:
            login = f"{options.get('username', '')}:{quote(options['password'], safe='')}@"
        return f"redis+socket://{login}{parts.path}?virtual_host={options.get('db', '0')}"
    if parts.scheme == "rediss":
        # redis-py checks certificates unless told otherwise; Celery wants to be told, in words of its own.
        given = options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")
        options["ssl_cert_reqs"] = f"CERT_{given.upper()}"
        return urlunsplit(parts._replace(query=urlencode(options)))
    return url
