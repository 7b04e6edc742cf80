"""Redis behind Sentinel: `sentinel://[user:password@]host[:port][,host[:port] ...]/db?service=NAME`.

User and password are those of Redis; the sentinels' own, where they have any, are the options `sentinel_username`
and `sentinel_password`. TLS is not supported here.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.sentinel import Sentinel

SCHEME = "sentinel"
_PORT = 26379
_OPTIONS = {"service", "sentinel_username", "sentinel_password"}


class Place(NamedTuple):
    """Which sentinels to ask for which service; `login` as it stands in the URL, with its `@`."""

    sentinels: tuple[tuple[str, int], ...]
    service: str
    db: int
    login: str
    sentinel_login: dict[str, str]


def is_sentinel(url: str) -> bool:
    return url.startswith(f"{SCHEME}://")


def parse(url: str) -> Place:
    """Raises `ValueError` where it is not of that form."""
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    options = {name: values[-1] for name, values in parse_qs(parts.query, strict_parsing=True).items()}
    if set(options) - _OPTIONS or not options.get("service"):
        raise ValueError(f"options are {', '.join(sorted(_OPTIONS))}, and service must be given")
    return Place(
        tuple(_address(host) for host in hosts.split(",")),
        options["service"],
        int(parts.path.strip("/") or 0),
        login + at,
        {name.removeprefix("sentinel_"): value for name, value in options.items() if name != "service"},
    )


def master(url: str, **options: Any) -> redis.Redis:
    """A client of whoever is master; it asks the sentinels anew for each connection. options: of redis-py."""
    place = parse(url)
    user, _, password = place.login.removesuffix("@").partition(":")
    login = {"username": unquote(user) or None, "password": unquote(password) or None}
    timeouts = {name: value for name, value in options.items() if name.startswith("socket_")}
    # redis-py has no types here
    sentinels: Any = Sentinel(list(place.sentinels), sentinel_kwargs={**timeouts, **place.sentinel_login})  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinels.master_for(place.service, db=place.db, **login, **options)
    return client


def celery_url(url: str) -> str:
    """Celery's form: a URL for each sentinel."""
    place = parse(url)
    return ";".join(f"{SCHEME}://{place.login}{host}:{port}/{place.db}" for host, port in place.sentinels)


def transport_options(url: str) -> dict[str, Any]:
    """What Celery is told beside its URLs, of the broker and of the result backend."""
    place = parse(url)
    return {"master_name": place.service, "sentinel_kwargs": place.sentinel_login}


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.partition(":")
    if not host or not 0 < int(port or _PORT) < 65_536:
        raise ValueError(f"{text!r} is no host with a port")
    return host, int(port or _PORT)
