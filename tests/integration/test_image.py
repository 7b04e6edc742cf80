"""The image, built as `make image` does and run as docker-compose.yml says, by podman.

`make test-confined` runs it. BASE: the base image, to be pulled; without it one is made from this machine.
"""

import json
import os
import shutil
import signal
import stat
import time
from pathlib import Path

import pytest

from tasks.ledger import Ledger
from tasks.ledger.queries import Filter, list_deletions
from tests.chaos.harness import LONG, assert_true
from tests.integration.composed import SERVICES, composed, password_of, seconds, until
from tests.integration.containers import InContainers, Podman, run
from tests.processes import ROOT, skip_before_redis_7
from worker.sandbox.api import Sandbox

NEEDED = ("podman", *([] if os.environ.get("BASE") else ["debootstrap"]))
MISSING = [name for name in NEEDED if shutil.which(name) is None]
pytestmark = [
    pytest.mark.skipif(not LONG, reason="takes minutes: make test-confined"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="podman with a memory limit, and debootstrap, need root"),
    pytest.mark.xdist_group("image"),
    pytest.mark.timeout(900),
]

IMAGE = "localhost/finetune-janitor"
INSTALLERS = {"apt", "apt-get", "conda", "dpkg", "easy_install", "pip", "pip3", "uv"}
COMPILERS = {"as", "c++", "cc", "cpp", "g++", "gcc", "go", "ld", "make"}
FETCHERS = {"curl", "git", "wget"}
MODULES = {"ensurepip", "pip", "setuptools", "wheel"}
ASKED_FOR = 80


@pytest.fixture(scope="module")
def podman(tmp_path_factory):
    """Podman with all images that docker-compose.yml builds."""
    folder = tmp_path_factory.mktemp("image")
    podman, made = Podman(folder), set()
    try:
        base = os.environ.get("BASE") or podman.make_base(folder)
        for service in SERVICES.values():
            args = [f"--build-arg={name}={value}" for name, value in build_args(service).items()]
            if "build" in service and service["image"] not in made:
                made.add(service["image"])
                podman.make_image(folder, service["image"], base, *args)
        yield podman
    finally:
        podman.close()
        shutil.rmtree(folder)


def build_args(service):
    return service["build"].get("args", {}) if isinstance(service.get("build"), dict) else {}


@pytest.fixture(scope="module")
def inspected(podman):
    return json.loads(podman("image", "inspect", IMAGE))[0]


@pytest.fixture(scope="module")
def root(podman):
    """The image's files, mounted."""
    return Path(podman("image", "mount", IMAGE).strip())


@pytest.fixture(scope="module")
def files(root):
    """Every file of the image, with what `lstat` says."""
    return {
        Path("/", path.relative_to(root)): path.lstat() for path in root.rglob("*") if path.parent != root / "dev"
    }


class TestContents:
    def test_it_says_what_it_is_and_runs_as_a_user_of_its_own(self, inspected):
        labels = {
            name.removeprefix("org.opencontainers.image."): value for name, value in inspected["Labels"].items()
        }
        assert labels.keys() >= {"title", "description", "licenses", "base.name"}
        assert f'version = "{labels["version"]}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        assert labels["revision"] not in ("", "unknown")
        assert inspected["User"] == "10001:10001"
        assert inspected["Config"]["Volumes"].keys() == {"/var/lib/janitor"}

    def test_nothing_in_it_gives_rights_installs_builds_or_fetches(self, files):
        regular = {path: found for path, found in files.items() if stat.S_ISREG(found.st_mode)}
        assert [path for path, found in regular.items() if found.st_mode & (stat.S_ISUID | stat.S_ISGID)] == []
        programs = {path.name for path in files if path.parent.name in ("bin", "sbin")}
        assert programs & (INSTALLERS | COMPILERS | FETCHERS) == set()
        assert [path for path in files if path.name in MODULES and path.parent.name.endswith("packages")] == []
        assert [path for path in files if path.suffix == ".whl" or path.name == "ensurepip"] == []

    def test_its_user_can_change_nothing_in_it_but_its_state(self, files):
        own = {path for path, found in files.items() if 10001 in (found.st_uid, found.st_gid)}
        for_all = {
            path
            for path, found in files.items()
            if found.st_mode & stat.S_IWOTH and not stat.S_ISLNK(found.st_mode)
        }
        assert own | for_all == {Path("/var/lib/janitor"), Path("/tmp"), Path("/var/tmp"), Path("/run/lock")}

    def test_all_bytecode_is_there_since_it_cannot_be_written_later(self, podman):
        # Given the image as it is, when everything is compiled, then there is nothing to write.
        argv = podman.run_argv("--read-only", "--user=0", "--entrypoint=python", IMAGE)
        run(*argv, "-m", "compileall", "-q", "/usr/local/lib", "/opt/janitor/lib")

    def test_the_image_is_smaller_than_350_mb(self, inspected, files, root):
        debian = (root / "var/lib/dpkg/status").read_text(encoding="utf-8").count("\nStatus: install ok installed")
        python = [path for path in files if path.suffix == ".dist-info"]
        print(
            f"{inspected['Size'] / 1e6:.0f} MB, {len(files)} files, {debian} Debian, {len(python)} Python packages"
        )
        assert inspected["Size"] < 350e6


@pytest.fixture(scope="module")
def outside(podman, tmp_path_factory):
    skip_before_redis_7()
    with composed(InContainers(tmp_path_factory.mktemp("contained"), podman)) as outside:
        yield outside
    killed = [name for name, process in outside.processes.items() if process.returncode == -signal.SIGKILL]
    assert not killed, "not gone within their stop_grace_period"


class TestServices:
    @pytest.mark.parametrize("name", SERVICES)
    def test_each_service_passes_its_health_check(self, outside, name):
        until(lambda: outside.is_healthy(name), 60)

    def test_together_they_delete_a_finetune(self, outside):
        until(lambda: outside.is_healthy("sandbox"), 60)
        done = outside.run("worker", ["janitor", "delete", "my-finetune", "--wait", "--json"], 60)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout.splitlines()[-1])["state"] == "deleted"

    def test_people_run_the_command_without_a_key(self, outside):
        done = outside.run("operator", ["janitor", "list"], 60)
        assert done.returncode == 0, done.stderr

    def test_nothing_can_be_written_but_in_what_the_service_is_given(self, outside):
        until(lambda: outside.is_healthy("worker"), 60)
        for folder in ("/", "/opt/janitor", "/var/tmp", "/run", "/run/secrets", "/etc"):
            assert outside.run("worker", ["sh", "-c", f": > {folder}/x"], 60).returncode != 0, folder
        for folder in SERVICES["worker"]["tmpfs"]:
            assert outside.run("worker", ["sh", "-c", f": > {folder}/x"], 60).returncode == 0, folder


@pytest.mark.parametrize(
    "init", [True, False], ids=["with an init, as in Compose", "as process 1, as in Kubernetes"]
)
def test_sigterm_under_load_ends_a_worker_within_its_grace_and_loses_nothing(podman, tmp_path, init):
    skip_before_redis_7()
    outside = InContainers(tmp_path, podman, init=init)
    names = [f"ft-{n}" for n in range(ASKED_FOR)]
    with (
        Sandbox(port=int(outside.places["8899"]), latency_seconds=1) as api,
        composed(outside, ["worker"]),
    ):
        # Given a worker in the middle of many deletions, with calls in flight,
        for name in names:
            api.create(name)
        until(lambda: outside.is_healthy("worker"), 60)
        done = outside.run("operator", ["janitor", "delete", *names], 60)
        assert done.returncode == 0, done.stderr
        until(lambda: len(api.deletes()) > 8, 60)
        # when it is told to stop, then it is gone within its grace, healthily, and hands back what it held;
        began = time.monotonic()
        outside.end("worker")
        took = time.monotonic() - began
        made = len(api.deletes())
        assert outside.processes["worker"].returncode == 0, (tmp_path / "worker.log").read_text(encoding="utf-8")[
            -2000:
        ]
        assert took < seconds(SERVICES["worker"], "stop_grace_period")
        assert made < ASKED_FOR
        # when another one starts, then every finetune is deleted, once.
        outside.start("worker")
        until(lambda: all(deletion.is_final for deletion in deletions(outside)), 120)
        assert {deletion.state for deletion in deletions(outside)} == {"deleted"}
        assert (len(deletions(outside)), api.finetunes(), len(api.deletes())) == (ASKED_FOR, [], ASKED_FOR)
        assert_true(deletions(outside), api)
    print(f"{made} of {ASKED_FOR} were deleted when it was told to stop; it was gone {took:.1f}s later")


def deletions(outside):
    with outside.redis("operator", password_of("operator")) as client:
        return list_deletions(Ledger(client), Filter(), limit=500).deletions
