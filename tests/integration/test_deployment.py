"""The deployment files: what docker-compose.yml runs is run here as written, without Docker."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import redis
from celery import Celery
from ruamel.yaml import YAML

from tasks.durations import parse_duration
from tests.processes import free_ports, redis_cli, skip_before_redis_7
from worker.http.tokens import new_token
from worker.local.embedded import find_server
from worker.redis_url import connect
from worker.settings import Settings, load_settings

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
COMPOSE: dict[str, Any] = YAML(typ="safe", pure=True).load(ROOT / "docker-compose.yml")
COMMANDS = {"operator": COMPOSE["services"].pop("operator")}  # run by people, and not kept running
SERVICES: dict[str, Any] = COMPOSE["services"]
ACL = ROOT / "deploy" / "redis" / "users.acl"
UNITS = sorted((ROOT / "docs" / "how-to" / "systemd").glob("*.service"))
USERS = re.findall(r"^user (\w+) on ", ACL.read_text(encoding="utf-8"), re.M)
# Without comments; a line for each instruction, and for each command in it.
DOCKERFILE = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.M)
DOCKERFILE = re.sub(r"\s*\\\n\s*", " ", DOCKERFILE).replace(" && ", "\n")
IMAGE_ENVIRONMENT = {"JANITOR_STATE_DIR": "/var/lib/janitor"}
MORE_SECRETS = {"worker": {"bfl_api_key", "redis_callbacks"}, "http": {"http_tokens"}}
DOTENV = {"BFL_API_URL": "http://127.0.0.1:8899"}  # what the sandbox profile asks for
EXAMPLES = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.M))
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


class Outside:
    """The composed services as processes of this machine, with their files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = dict(zip(("6379", "5555", "8899", "8080"), map(str, free_ports(4)), strict=True))
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
        return re.sub("|".join(map(re.escape, self.places)), lambda found: self.places[found[0]], text)

    def environment(self, name: str) -> dict[str, str]:
        given = IMAGE_ENVIRONMENT | DOTENV | (SERVICES | COMMANDS)[name].get("environment", {})
        found = {key: self.here(value) for key, value in given.items()}
        return found | {"PATH": f"{self.folder}/bin:{BIN}:{os.environ['PATH']}"}

    def start(self, name: str) -> None:
        service = SERVICES[name]
        of_the_image = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[0])
        entrypoint = service.get("entrypoint", of_the_image if "build" in service else [])
        argv, env = [self.here(part) for part in [*entrypoint, *service["command"]]], self.environment(name)
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
def composed(folder: Path) -> Iterator[Outside]:
    outside = Outside(folder)
    try:
        outside.start("redis")
        until(lambda: outside.is_healthy("redis"), 60)
        for name in SERVICES.keys() - {"redis"}:
            outside.start(name)
        yield outside
    finally:
        outside.end(*outside.processes.keys() - {"redis"})
        outside.end(*outside.processes.keys() & {"redis"})


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    skip_before_redis_7()
    with composed(tmp_path_factory.mktemp("compose")) as outside:
        until(lambda: outside.says("worker", "ready"), 60)
        yield outside
    killed = [name for name, process in outside.processes.items() if process.returncode == -signal.SIGKILL]
    assert not killed, "not gone within their stop_grace_period"


@pytest.mark.xdist_group("services")
class TestServices:
    def test_redis_keeps_every_write_and_evicts_nothing(self, outside):
        expected = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
        with outside.redis("operator", password_of("operator")) as client:
            assert {name: client.config_get(name)[name] for name in expected} == expected

    @pytest.mark.parametrize(
        ("user", "password"),
        [(None, None), ("default", PASSWORD), ("operator", "wrong"), ("operator", password_of("worker"))],
    )
    def test_redis_refuses_who_does_not_know_the_password_of_a_user(self, outside, user, password):
        with outside.redis(user, password) as client, pytest.raises(redis.AuthenticationError):
            client.ping()

    @pytest.mark.parametrize("user", USERS)
    def test_redis_knows_each_user_by_its_password_file(self, outside, user):
        with outside.redis(user, password_of(user)) as client:
            assert client.ping()

    def test_a_producer_asks_for_a_deletion_and_can_neither_read_records_nor_stop_workers(self, outside):
        # Given a service of another team, which joins the network as `producer`,
        login = f"producer:{quote(password_of('producer'), safe='')}"
        url = f"redis://{login}@{outside.places['redis:6379']}/0"
        app = Celery("somebody-else", broker=url, backend=url, set_as_current=False)
        # when it asks for a deletion and for its result, then it gets it;
        with pytest.raises(Exception, match="not_found"):
            app.send_task("finetunes.delete", ["never-there"], queue="deletions").get(timeout=60)
        # when it reads the ledger, looks at Redis or talks to workers, then Redis refuses.
        with outside.redis("producer", password_of("producer")) as client:
            for command in (["GET", "janitor:2:schema"], ["CONFIG", "GET", "*"], ["RPOP", "deletions"]):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    client.execute_command(*command)
        with pytest.raises(Exception, match="no permissions"):
            app.control.shutdown()

    def test_people_run_the_command_as_the_operator_without_a_key(self, outside):
        assert COMMANDS["operator"]["secrets"] == ["redis_operator"]
        argv = json.loads(re.findall(r"^ENTRYPOINT (.*)$", DOCKERFILE, re.M)[0])
        done = outside.run("operator", [*argv, "list"], 60)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("name", SERVICES)
    def test_each_service_passes_its_health_check(self, outside, name):
        until(lambda: outside.is_healthy(name), 60)

    def test_beat_starts(self, outside):
        until(lambda: outside.says("beat", "beat: Starting"), 60)
        assert outside.processes["beat"].poll() is None

    def test_flower_shows_its_page(self, outside):
        until(lambda: outside.is_healthy("flower"), 60)
        with urlopen(f"http://127.0.0.1:{outside.places['5555']}/", timeout=5) as answer:
            assert answer.status == 200

    def test_together_they_delete_a_finetune(self, outside):
        until(lambda: outside.is_healthy("sandbox"), 60)
        done = outside.run("worker", ["janitor", "delete", "my-finetune", "--wait", "--json"], 60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["state"] == "deleted"

    @pytest.mark.parametrize("name", SERVICES)
    @pytest.mark.parametrize("secret", [PASSWORD, quote(PASSWORD, safe=""), "sandbox-key"])
    def test_no_log_shows_a_secret(self, outside, name, secret):
        assert not outside.says(name, secret)


@pytest.mark.parametrize("name", sorted(SERVICES))
def test_a_health_check_fails_where_nothing_runs(tmp_path, name):
    assert not Outside(tmp_path).is_healthy(name)


def test_a_user_without_a_password_is_refused_before_redis_starts(tmp_path):
    # Given a password file that was forgotten,
    outside = Outside(tmp_path)
    (tmp_path / "secrets" / "redis_beat").write_text("\n", encoding="utf-8")
    # when Redis is started, then nobody can come in without a password: it says which file, and ends.
    outside.start("redis")
    assert outside.processes["redis"].wait(30) == 1
    assert outside.says("redis", "secrets/redis_beat is empty")


class TestFiles:
    def test_the_compose_file_follows_the_compose_specification(self):
        argv = [f"{BIN}/check-jsonschema", "--builtin-schema", "vendor.compose-spec", f"{ROOT}/docker-compose.yml"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout

    def test_each_service_has_one_user_and_only_workers_have_the_key(self):
        given = {name: set(service.get("secrets", [])) for name, service in (SERVICES | COMMANDS).items()}
        assert given.pop("redis") == {f"redis_{user}" for user in USERS}
        assert given.pop("sandbox") == set()
        assert given == {name: {f"redis_{name}"} | MORE_SECRETS.get(name, set()) for name in given}
        assert COMPOSE["secrets"].keys() == {f"redis_{user}" for user in USERS}.union(*MORE_SECRETS.values())
        assert COMPOSE["configs"]["redis_users"]["file"] == "./deploy/redis/users.acl"

    def test_no_dollar_is_left_for_compose_to_take_as_a_variable(self):
        text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8").replace("$$", "")
        assert "$" not in re.sub(r"^ *#.*", "", text, flags=re.M)

    @pytest.mark.parametrize("name", SERVICES)
    def test_each_service_is_confined_bounded_and_kept_running(self, name):
        service = SERVICES[name]
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert (service["security_opt"], service["restart"]) == (["no-new-privileges:true"], "unless-stopped")
        assert {"mem_limit", "healthcheck", "logging"} <= service.keys()
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))

    def test_a_worker_is_given_the_time_to_end_its_calls(self):
        call_deadline = Settings.model_fields["call_deadline"].default.total_seconds()
        assert seconds(SERVICES["worker"], "stop_grace_period") >= call_deadline + 5

    def test_the_image_runs_as_a_user_of_its_own_and_has_its_state_where_it_is_mounted(self):
        assert re.findall(r"^USER (.*)$", DOCKERFILE, re.M) == ["10001:10001"]
        assert all(f"{name}={value}" in DOCKERFILE for name, value in IMAGE_ENVIRONMENT.items())

    def test_every_installation_checks_hashes_or_is_the_project_alone(self):
        installs = re.findall(r"^.*\bpip\b.*\binstall\b.*$", DOCKERFILE, re.M)
        assert len(installs) == 2
        assert "--require-hashes --requirement ${REQUIREMENTS}" in installs[0]
        assert installs[1].endswith("--no-deps .")

    def test_the_base_image_is_named_in_one_place(self):
        assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}"}
        assert len(re.findall(r"^ARG BASE=", DOCKERFILE, re.M)) == 1

    def test_no_program_of_the_image_gives_more_rights(self):
        assert "find / -xdev -type f -perm /6000 -exec chmod a-s {} +" in DOCKERFILE.rpartition("\nFROM ")[2]

    @pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
    @pytest.mark.parametrize("unit", UNITS, ids=lambda file: file.name)
    def test_systemd_accepts_each_unit(self, tmp_path, unit):
        # Given the unit, with a command that is installed here,
        text = unit.read_text(encoding="utf-8").replace("/opt/finetune-janitor/.venv/bin", str(BIN))
        file = tmp_path / unit.name.replace("@", "@1")
        file.write_text(text, encoding="utf-8")
        # when systemd checks it, then it has nothing to say about it.
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(file)], capture_output=True, text=True, check=False
        )
        about_it = [line for line in done.stderr.splitlines() if file.name in line or str(tmp_path) in line]
        assert (done.returncode, about_it) == (0, [])

    def test_the_final_stage_has_nothing_to_build_with(self):
        final = DOCKERFILE.rpartition("\nFROM ")[2]
        assert "pip uninstall --yes pip setuptools wheel" in final
        assert not re.search(r"apt-get|\bgcc\b|pip install|COPY (?!--from=build )", final)

    def test_the_example_of_settings_names_only_settings_with_their_defaults(self, monkeypatch):
        fields = Settings.model_fields.items()
        known = {str(field.validation_alias or f"JANITOR_{name.upper()}") for name, field in fields}
        assert EXAMPLES.keys() <= known | {"BFL_API_URL"}
        monkeypatch.setattr("os.environ", {})
        defaults = load_settings()
        monkeypatch.setattr("os.environ", EXAMPLES)
        assert load_settings() == defaults
