"""The deployment files: what docker-compose.yml runs is run here as written, without Docker."""

import json
import re
import shutil
import signal
import subprocess
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import redis
from celery import Celery

from tests.integration.composed import (
    BIN,
    COMMANDS,
    COMPOSE,
    DOCKERFILE,
    IMAGE_ENVIRONMENT,
    PASSWORD,
    ROOT,
    SERVICES,
    USERS,
    Outside,
    composed,
    password_of,
    seconds,
    until,
)
from tests.processes import skip_before_redis_7
from worker.settings import Settings, load_settings

UNITS = sorted((ROOT / "docs" / "how-to" / "systemd").glob("*.service"))
MORE_SECRETS = {"worker": {"bfl_api_key", "redis_callbacks"}, "http": {"http_tokens"}}
EXAMPLES = dict(re.findall(r"^#?([A-Z_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.M))


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    skip_before_redis_7()
    with composed(Outside(tmp_path_factory.mktemp("compose"))) as outside:
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
        # Docker gives a tmpfs the mode of the folder below it, and always root as its owner.
        assert "--mode 1777 /var/lib/janitor" in DOCKERFILE

    def test_every_installation_checks_hashes_or_is_the_project_alone(self):
        installs = re.findall(r"^.*\bpip\b.*\binstall\b.*$", DOCKERFILE, re.M)
        assert len(installs) == 2
        assert "--require-hashes --requirement ${REQUIREMENTS}" in installs[0]
        assert installs[1].endswith("--no-deps .")

    def test_the_base_image_is_named_in_one_place_by_its_digest(self):
        assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)) == {"${BASE}"}
        (base,) = re.findall(r"^ARG BASE=(.+)$", DOCKERFILE, re.M)
        assert re.fullmatch(r"python:3\.11-slim-bookworm@sha256:[0-9a-f]{64}", base)

    def test_compose_names_every_image_that_it_does_not_build_by_its_digest(self):
        pulled = [service["image"] for service in COMPOSE["services"].values() if "build" not in service]
        assert pulled
        assert all(re.search(r"@sha256:[0-9a-f]{64}$", image) for image in pulled)

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
