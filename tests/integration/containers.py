"""The image, made and run by podman, in a storage of its own; its base made from this machine if none is given."""

import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from collections.abc import Sequence
from pathlib import Path

from tests.integration.composed import COMMANDS, DOTENV, ROOT, SERVICES, Outside, replaced

_OF_CONTAINERS = ("/run/secrets", "/var/lib/janitor")
# Podman's own defaults may be above what this machine lets root set.
_LIMITS = ("--ulimit=nofile=4096:4096", "--ulimit=nproc=4096:4096")


def run(*argv: str | Path) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=600, cwd=ROOT)
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


class Podman:
    """Podman with its storage in `folder`, so that nothing stays on the machine."""

    def __init__(self, folder: Path) -> None:
        self.argv = ["podman", f"--root={folder}/storage", f"--runroot={folder}/run", "--cgroup-manager=cgroupfs"]
        # crun, the default, refuses a machine that has both kinds of cgroups.
        self.argv += ["--runtime=runc"] * bool(shutil.which("runc"))

    def __call__(self, *argv: str) -> str:
        return run(*self.argv, *argv)

    def run_argv(self, *argv: str) -> list[str]:
        return [*self.argv, "run", "--rm", "--network=host", *_LIMITS, *argv]

    def close(self) -> None:
        self("rm", "--all", "--force", "--time=0")
        self("image", "umount", "--all", "--force")
        self("rmi", "--all", "--force")

    def make_base(self, folder: Path) -> str:
        """Debian with this machine's Python in /usr/local, and pip: what the Dockerfile's base image is."""
        root, stdlib = folder / "base", Path(sysconfig.get_path("stdlib"))
        run("debootstrap", "--variant=minbase", platform.freedesktop_os_release()["VERSION_CODENAME"], root)
        for name in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
            shutil.rmtree(root / name)
        local = root / "usr" / "local"
        left_out = shutil.ignore_patterns("site-packages", "__pycache__", "test", "tests", "*.a")
        shutil.copytree(stdlib, local / "lib" / stdlib.name, symlinks=True, ignore=left_out)
        python = shutil.copy(Path(sys.executable).resolve(), local / "bin" / stdlib.name)
        for link in ("python", "python3"):
            (local / "bin" / link).symlink_to(stdlib.name)
        for library in set(re.findall(r"=> (/\S+)", run("ldd", python, *(local / "lib").rglob("*.so")))):
            if not (root / library[1:]).exists():
                shutil.copy(library, local / "lib")
        run("ldconfig", "-r", root)
        run("chroot", root, "/usr/local/bin/python", "-m", "ensurepip", "--default-pip")
        run("tar", "--directory", root, "--create", "--file", folder / "base.tar", ".")
        shutil.rmtree(root)
        path = "ENV PATH=/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
        self("import", "--change", path, f"{folder}/base.tar", "localhost/base:made-here")
        (folder / "base.tar").unlink()
        return "localhost/base:made-here"

    def make_image(self, folder: Path, name: str, base: str, *options: str) -> None:
        """`make image`. base: empty for the Dockerfile's own, which is pulled."""
        given = f"--network=none {_wheels(folder)} {' '.join(_LIMITS)}" if base.startswith("localhost/") else ""
        variables = [f"DOCKER={' '.join(self.argv)}", f"TAG=localhost/{name}", f"BASE={base}"]
        run("make", "image", *variables, f"OPTIONS={given} {' '.join(options)}")


def _wheels(folder: Path) -> str:
    """Options for a build without a network: what this machine's pip finds, and a pip.conf that says so."""
    options = f"--volume={folder}/wheels:/tmp/wheels:ro --volume={folder}/pip.conf:/etc/pip.conf:ro"
    if (folder / "wheels").exists():
        return options
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip", "download", "--quiet", f"--dest={folder}/wheels"]
    run(*pip, "--require-hashes", f"--requirement={ROOT}/constraints-flower.txt")
    run(*pip, "--require-hashes", f"--requirement={ROOT}/constraints-run.txt")
    run(*pip, *build)
    (folder / "pip.conf").write_text("[global]\nno-index = true\nfind-links = /tmp/wheels\n", encoding="utf-8")
    return options


class InContainers(Outside):
    """The composed services in containers, confined as docker-compose.yml says; Redis is a process here.

    They share this machine's network. init: a process 1 that is not ours, as in Compose; Kubernetes has none.
    """

    def __init__(self, folder: Path, podman: Podman, *, init: bool = True) -> None:
        super().__init__(folder)
        self.podman = podman
        self.init = init

    def environment(self, name: str) -> dict[str, str]:
        return dict(os.environ) if _has_image(name) else super().environment(name)

    def command(self, name: str) -> list[str]:
        if not _has_image(name):
            return super().command(name)
        entrypoint = [f"--entrypoint={part}" for part in SERVICES[name].get("entrypoint", [])]
        return self._run_argv(name, f"--name={name}", "--replace", *entrypoint) + [
            self._inside(part) for part in SERVICES[name]["command"]
        ]

    def run(self, name: str, argv: Sequence[str], timeout_seconds: float) -> subprocess.CompletedProcess[str]:
        if _has_image(name):
            in_it = (
                self._run_argv(name, "--entrypoint=") if name in COMMANDS else [*self.podman.argv, "exec", name]
            )
            argv = [*in_it, *argv]
        return super().run(name, argv, timeout_seconds)

    def _run_argv(self, name: str, *options: str) -> list[str]:
        service = (SERVICES | COMMANDS)[name]
        environment = DOTENV | service.get("environment", {})
        return self.podman.run_argv(
            *options,
            *["--init"] * (service["init"] and self.init),
            *["--read-only", "--read-only-tmpfs=false"] * service["read_only"],
            *(f"--cap-drop={name}" for name in service["cap_drop"]),
            *(f"--security-opt={option.removesuffix(':true')}" for option in service["security_opt"]),
            f"--pids-limit={service['pids_limit']}",
            f"--memory={service['mem_limit']}",
            *(f"--tmpfs={place}:notmpcopyup" for place in service["tmpfs"]),
            *(f"--env={key}={self._inside(value)}" for key, value in environment.items()),
            *(
                f"--volume={self.folder}/secrets/{secret}:/run/secrets/{secret}:ro"
                for secret in service.get("secrets", [])
            ),
            f"localhost/{service['image']}",
        )

    def _inside(self, text: str) -> str:
        """As `here`, for a container, which has its secrets and its state at their own places."""
        return replaced(text, {place: here for place, here in self.places.items() if place not in _OF_CONTAINERS})


def _has_image(name: str) -> bool:
    return "build" in (SERVICES | COMMANDS)[name]
