"""Redis: which one, and how every connection to it is bounded in time.

One URL serves redis-py, kombu and Celery's result backend. Each of them reads a URL in its own way, so it is taken
apart here and each is told in its own words. What one of the three could not use is refused at the start.

`REDIS_URL` is one of

- `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS,
- `unix:///path/of/the/socket[?db=0]`,
- `sentinel://[user:password@]host[:port][,host[:port] ...][/db]?service=NAME`: user and password are those of
  Redis; those of the sentinels are the options `sentinel_username` and `sentinel_password`,
- `sentinels://...`, the same with TLS to Redis and to the sentinels.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.exceptions import ReadOnlyError, ResponseError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from tasks.errors import LedgerUnavailable
from worker.settings import Settings, SettingsError, read_text

CONNECT_SECONDS = 2.0
SOCKET_SECONDS = 10.0
# A script takes milliseconds; a worker that is to stop waits for one answer twice at most.
LEDGER_SECONDS, LEDGER_RETRIES = 4.0, 1
ACCEPTED = (
    "give redis://[user:password@]host[:port]/db, rediss://..., unix:///path?db=0, "
    "sentinel://host:26379,host:26379/db?service=NAME or sentinels://..., with special characters of a password "
    "percent-encoded"
)
_PORTS = {"redis": 6379, "rediss": 6379, "unix": 0, "sentinel": 26379, "sentinels": 26379}
_TEXT = "(?s:.+)", "at least one character"
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
# Options of every scheme, and of one: the pattern of the value, and the same in words.
_OPTIONS = {"db": ("[0-9]{1,9}", "the number of a database"), "username": _TEXT, "password": _TEXT}
_TLS = dict.fromkeys(_FILES, _TEXT) | {
    "ssl_cert_reqs": ("(?i:(cert_)?(required|optional|none))", "required, optional or none"),
    "ssl_check_hostname": ("(?i:true|false)", "true or false"),
}
_SENTINEL = dict.fromkeys(("service", "sentinel_username", "sentinel_password"), _TEXT)
_MORE_OPTIONS = {"rediss": _TLS, "sentinel": _SENTINEL, "sentinels": _SENTINEL | _TLS}


@dataclass(frozen=True)
class Place:
    """`REDIS_URL`, taken apart. hosts: Redis, or the sentinels; tls: options by redis-py's names."""

    scheme: str
    hosts: tuple[tuple[str, int], ...]
    path: str
    db: int
    login: dict[str, str] = field(repr=False)
    tls: dict[str, Any]
    service: str
    sentinel_login: dict[str, str] = field(repr=False)


def redis_url(settings: Settings) -> str:
    """`REDIS_URL`, or the Redis of a running `janitor up`; raises `LedgerUnavailable` if there is neither."""
    if settings.redis_url is not None:
        return with_password(settings.redis_url.get_secret_value(), settings.redis_password_file)
    from worker.local.embedded import find_running  # noqa: PLC0415 -- only if no other Redis is named

    url = find_running(settings.state_dir)
    if url is None:
        raise LedgerUnavailable(
            f"no Redis: REDIS_URL is not set and no `janitor up` runs in {settings.state_dir}; do one of the two"
        )
    return url


def callbacks_url(settings: Settings) -> str | None:
    """`JANITOR_CALLBACKS_URL` with its password, None if it is not set; raises `SettingsError`."""
    if settings.callbacks_url is None:
        return None
    try:
        return with_password(settings.callbacks_url.get_secret_value(), settings.callbacks_password_file)
    except SettingsError as error:
        # The form is that of REDIS_URL.
        raise SettingsError(str(error).replace("REDIS_", "JANITOR_CALLBACKS_")) from None


def with_password(url: str, file: Path | None) -> str:
    """`url` with the password that `file` holds, so that a secret stays a file.

    Raises `SettingsError`, without the password, if redis-py, kombu or Celery could not use the URL.
    """
    login = parse(url).login
    if file is None:
        return url
    if "password" in login:
        raise SettingsError("REDIS_URL and REDIS_PASSWORD_FILE both give a password: keep one of them")
    password = read_text("REDIS_PASSWORD_FILE", file).strip()
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{_login(login | {'password': password})}{rest.rpartition('@')[2]}"


def connect(url: str, *, patient: bool = True) -> redis.Redis:
    """A client of the ledger. patient: for workers, which ride out a short absence; commands say so at once.

    Every script can be sent again: the ledger's scripts recognise their own repetition. Raises `SettingsError`.
    """
    place = parse(url)
    options: dict[str, Any] = {
        "decode_responses": True,
        "retry": Retry(ExponentialBackoff(cap=0.5, base=0.05), LEDGER_RETRIES if patient else 0),
        "socket_timeout": LEDGER_SECONDS if patient else CONNECT_SECONDS,
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_keepalive": True,
        "health_check_interval": 30 if patient else 0,
        "db": place.db,
        **place.login,
    }
    client = _client(place, options)
    pool = client.connection_pool
    pool.connection_class = following(pool.connection_class, lambda: pool.disconnect(inuse_connections=False))
    return client


def celery_url(url: str) -> str:
    """The URL as Celery takes it, without what `celery_options` and `backend_tls` have."""
    place = parse(url)
    login = _login(place.login)
    if place.scheme == "unix":
        return f"redis+socket://{login}{quote(place.path)}?virtual_host={place.db}"
    hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in place.hosts]
    tls = place.tls and {**place.tls, "ssl_cert_reqs": f"CERT_{place.tls['ssl_cert_reqs'].upper()}"}
    query = f"?{urlencode(tls)}" if tls else ""
    scheme = "sentinel" if place.service else place.scheme
    return ";".join(f"{scheme}://{login}{host}/{place.db}{query}" for host in hosts)


def celery_options(url: str) -> dict[str, Any]:
    """What Celery has to be told beside the URL, as transport options of broker and result backend."""
    place = parse(url)
    return {"master_name": place.service, "sentinel_kwargs": _to_sentinels(place)} if place.service else {}


def backend_tls(url: str) -> dict[str, Any]:
    """Celery's `redis_backend_use_ssl`: behind Sentinel its result backend takes no TLS options from a URL."""
    place = parse(url)
    return place.tls if place.service else {}


def following(base: type[Any], drop: Callable[[], None]) -> type[Any]:
    """A class of redis-py connections that leave a server which is no longer the master.

    If master and replica swap roles behind one name, open connections stay on the replica, which answers READONLY
    for ever. The connection closes itself and calls `drop`, which closes the idle ones of its pool, so that each
    connects again by name. The caller sees a `redis.ConnectionError`, which redis-py, kombu and Celery retry.
    """

    class Following(base):  # type: ignore[misc] # redis-py has one class for each kind of connection
        def read_response(self, *arguments: Any, **options: Any) -> Any:
            try:
                return super().read_response(*arguments, **options)
            except ResponseError as error:
                # Redis 6.2 wraps the READONLY that a script meets; UNBLOCKED ends a BRPOP when the roles swap.
                if not (isinstance(error, ReadOnlyError) or re.search(r"-READONLY |^UNBLOCKED ", str(error))):
                    raise
            self.disconnect()
            drop()
            raise redis.ConnectionError("this Redis is a read-only replica now: connecting again")

    return Following


def parse(url: str) -> Place:
    """`url`, taken apart; raises `SettingsError`, which repeats no part of the URL that may be a secret."""
    try:
        parts = urlsplit(url)
        login, _, hosts = parts.netloc.rpartition("@")
        places = tuple(_address(host, _PORTS[parts.scheme]) for host in (hosts.split(",") if hosts else ()))
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        unix, database = parts.scheme == "unix", parts.path.strip("/")
        path_fits = database if unix else re.fullmatch(r"(/[0-9]{0,9})?", parts.path)
        one_place = not places if unix else len(places) == 1 or (places and "sentinel" in parts.scheme)
        # An @ further on, or a fragment, is the end of a password that was not percent-encoded.
        stray = parts.fragment or "@" in parts.path + parts.query or re.search(r"\s", url)
        if stray or not path_fits or not one_place:
            raise ValueError
    except (ValueError, KeyError):
        raise SettingsError(f"REDIS_URL is not a URL of a Redis: {ACCEPTED}") from None
    options = _options(parts.scheme, pairs)
    user, _, password = login.partition(":")
    by_position = {"username": unquote(user), "password": unquote(password)}
    return Place(
        scheme=parts.scheme,
        hosts=places,
        path=unquote(parts.path) if unix else "",
        db=int(options.get("db") or (not unix and database) or 0),
        login={name: value for name in by_position if (value := options.get(name) or by_position[name])},
        tls=_tls(options) if parts.scheme in ("rediss", "sentinels") else {},
        service=options.get("service", ""),
        sentinel_login={name[9:]: options[name] for name in options if name.startswith("sentinel_")},
    )


class _Sentinels(Sentinel):
    """They say why they could not be asked: redis-py lists all options of their connections instead."""

    def discover_master(self, service_name: str) -> Any:
        try:
            return super().discover_master(service_name)  # type: ignore[no-untyped-call] # redis-py has no types here
        except MasterNotFoundError:
            # Its error has the reason, such as a certificate that is not trusted.
            self.sentinels[0].sentinel_masters()
            raise MasterNotFoundError(f"the sentinels know no master of {service_name} that is up") from None


def _client(place: Place, options: dict[str, Any]) -> redis.Redis:
    if place.scheme == "unix":
        return redis.Redis(unix_socket_path=place.path, **options)
    options = {"ssl": bool(place.tls), **place.tls, **options}
    if not place.service:
        host, port = place.hosts[0]
        return redis.Redis(host=host, port=port, **options)
    # redis-py has no types here
    sentinels: Any = _Sentinels(list(place.hosts), sentinel_kwargs=_to_sentinels(place))  # type: ignore[no-untyped-call]
    client: redis.Redis = sentinels.master_for(place.service, **options)
    return client


def _to_sentinels(place: Place) -> dict[str, Any]:
    # If one does not answer, the next is asked: redis-py's ten retries would take a minute on a dead host.
    return {
        **place.sentinel_login, **place.tls, "ssl": bool(place.tls), "retry": Retry(NoBackoff(), 0),
        "socket_timeout": CONNECT_SECONDS, "socket_connect_timeout": CONNECT_SECONDS,
    }  # fmt: skip


def _address(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    port = port if parts.port is None else parts.port
    if not port or not re.fullmatch(r"[\w.:-]+", parts.hostname or ""):
        raise ValueError(text)
    return parts.hostname or "", port


def _options(scheme: str, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """The options, each once, known and of its pattern; raises `SettingsError`."""
    accepted = _OPTIONS | _MORE_OPTIONS.get(scheme, {})
    options: dict[str, str] = {}
    for name, value in pairs:
        if name not in accepted:
            shown = name if re.fullmatch(r"[a-z_]{1,40}", name) else "an unreadable name"
            known = ", ".join(accepted)
            if name in _TLS and f"{scheme}s" in _PORTS:
                known += f"; TLS options need {scheme}s://"
            raise SettingsError(f"REDIS_URL has the option {shown}, which is not accepted: accepted are {known}")
        if name in options:
            raise SettingsError(f"REDIS_URL has the option {name} twice: keep one of them")
        pattern, words = accepted[name]
        if not re.fullmatch(pattern, value):
            raise SettingsError(f"REDIS_URL: {name} must be {words}")
        options[name] = value
    if "service" in accepted and "service" not in options:
        raise SettingsError(f"REDIS_URL has no option service: give {scheme}://host:26379/db?service=NAME")
    return options


def _login(login: dict[str, str]) -> str:
    user, password = (quote(login.get(name, ""), safe="") for name in ("username", "password"))
    return f"{user}{password and ':' + password}@" if login else ""


def _tls(options: dict[str, str]) -> dict[str, Any]:
    # redis-py checks certificates unless told otherwise; Celery wants to be told.
    tls: dict[str, Any] = {"ssl_cert_reqs": options.get("ssl_cert_reqs", "required").lower().removeprefix("cert_")}
    if "ssl_check_hostname" in options:
        tls["ssl_check_hostname"] = options["ssl_check_hostname"].lower() == "true"
    for name in set(_FILES) & set(options):
        read_text(f"REDIS_URL: {name}", options[name])
        tls[name] = options[name]
    return tls
