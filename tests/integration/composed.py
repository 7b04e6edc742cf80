"""The services of docker-compose.yml, started as written there, without Docker: as processes of this machine."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from ruamel.yaml import YAML

from tasks.durations import parse_duration
from tests.processes import free_ports, redis_cli
from worker.http.tokens import new_token
from worker.local.embedded import find_server
from worker.redis_url import connect

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "docker-compose.yml")
COMMANDS = {"operator": COMPOSE["services"].pop("operator")}  # run by people, and not kept running
SERVICES: dict[str, Any] = COMPOSE["services"]
ACL = ROOT / "deploy" / "redis" / "users.acl"
USERS = re.findall(r"^user (\w+) on ", ACL.read_text(encoding="utf-8"), re.M)
# Without comments; a line for each instruction, and for each command in it.
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
DOCKERFILE = re.sub(r"\s*\\\n\s*", " ", DOCKERFILE).replace(" && ", "\n")
IMAGE_ENVIRONMENT = {"JANITOR_STATE_DIR": "/var/lib/janitor"}
DOTENV = {"BFL_API_URL": "http://127.0.0.1:8899"}  # what the sandbox profile asks for
# Characters that break a careless quoting: in Redis's configuration, in a shell or in a URL.
PASSWORD = "p@ss w\"or\\d'/:%#$HOME"


def password_of(user: str) -> str:
    return f"{user} {PASSWORD}"


def until(condition: Callable[[], object], timeout_seconds: float) -> None:
    """Wait for `condition`; fail once `timeout_seconds` are over."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g}s"
        threading.Event().wait(0.05)


def seconds(settings: dict[str, Any], name: str) -> float:
    return parse_duration(settings[name]).total_seconds()


def replaced(text: str, places: dict[str, str]) -> str:
    return re.sub("|".join(map(re.escape, places)), lambda found: places[found[0]], text)


class Outside:
    """The composed services as processes of this machine, with their files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = dict(zip(("6379", "5555", "8899", "8080", "9464"), map(str, free_ports(5)), strict=True))
        self.places = ports | {
            "redis:6379": f"127.0.0.1:{ports['6379']}",
            "bind * -::*": "bind 127.0.0.1",
            "0.0.0.0": "127.0.0.1",
            "/run/secrets": f"{folder}/secrets",
            "/etc/redis/users.acl": str(ACL),
            "/tmp/users.acl": f"{folder}/users.acl",
            "/var/lib/janitor": f"{folder}/state",
            "dir /data": f"dir {folder}/data",
            "$$": "$",
        }
        self._make_files(find_server().absolute())

    def _make_files(self, server: Path) -> None:
        for name in ("secrets", "state", "data", "bin"):
            (self.folder / name).mkdir()
        for user in USERS:
            (self.folder / "secrets" / f"redis_{user}").write_text(password_of(user) + "\n", encoding="utf-8")
        (self.folder / "secrets" / "bfl_api_key").write_text("sandbox-key\n", encoding="utf-8")
        (self.folder / "secrets" / "http_tokens").write_text(new_token("somebody")[1], encoding="utf-8")
        # Valkey's have other names.
        (self.folder / "bin" / "redis-server").symlink_to(server)
        (self.folder / "bin" / "redis-cli").symlink_to(redis_cli().absolute())

    def here(self, text: str) -> str:
        """`text` as Compose hands it over, with a container's places replaced by this machine's.

        Secrets and state become temporary files, ports free ones, addresses loopback, `$$` a `$`; nothing else.
        """
        return replaced(text, self.places)

    def environment(self, name: str) -> dict[str, str]:
        given = IMAGE_ENVIRONMENT | DOTENV | (SERVICES | COMMANDS)[name].get("environment", {})
        found = {key: self.here(value) for key, value in given.items()}
        return found | {"PATH": f"{self.folder}/bin:{BIN}:{os.environ['PATH']}"}

    def command(self, name: str) -> list[str]:
        service = SERVICES[name]
        of_the_image = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[0])
        entrypoint = service.get("entrypoint", of_the_image if "build" in service else [])
        return [self.here(part) for part in [*entrypoint, *service["command"]]]

    def start(self, name: str) -> None:
        argv, env = self.command(name), self.environment(name)
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(argv, env=env, cwd=self.folder, stdout=log, stderr=log)

    def run(self, name: str, argv: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        """As `docker compose exec NAME ...` does, and a health check."""
        return subprocess.run(
            argv, env=self.environment(name), cwd=self.folder, capture_output=True, text=True, check=False,
            timeout=timeout_seconds,
        )  # fmt: skip

    def is_healthy(self, name: str) -> bool:
        """What the health check says; as with Docker, no answer in the time it has is a no."""
        check = SERVICES[name]["healthcheck"]
        kind, *argv = map(self.here, check["test"])
        argv = ["sh", "-c", *argv] if kind == "CMD-SHELL" else argv
        with suppress(subprocess.TimeoutExpired):
            return self.run(name, argv, seconds(check, "timeout")).returncode == 0
        return False

    def says(self, name: str, text: str) -> bool:
        return text in (self.folder / f"{name}.log").read_text(encoding="utf-8")

    def redis(self, user: str | None, password: str | None) -> redis.Redis:
        login = f"{user or ''}:{quote(password, safe='')}@" if password else ""
        return connect(f"redis://{login}{self.places['redis:6379']}/0", patient=False)

    def end(self, *names: str) -> None:
        """End these; as Docker does, kill what is still there after the time it has."""
        for name in names:
            self.processes[name].terminate()
        for name in names:
            with suppress(subprocess.TimeoutExpired):
                self.processes[name].wait(seconds(SERVICES[name], "stop_grace_period"))
            self.processes[name].kill()
            self.processes[name].wait()


@contextmanager
def composed(outside: Outside, names: Collection[str] = SERVICES) -> Iterator[Outside]:
    """Redis and these services, for the length of a `with`."""
    try:
        outside.start("redis")
        until(lambda: outside.is_healthy("redis"), 60)
        for name in set(names) - {"redis"}:
            outside.start(name)
        yield outside
    finally:
        outside.end(*outside.processes.keys() - {"redis"})
        outside.end(*outside.processes.keys() & {"redis"})
